"""Video files, written by PyAV: the same frames give the same bytes.

F frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
from av import Packet, VideoFrame, VideoStream
from av.container import OutputContainer
from PIL import Image
from torch import Tensor

from everest.video.reader import TimedFrame
from everest.video.stream import VideoError, open_container


@dataclass(frozen=True, slots=True, kw_only=True)
class H264:
    """H.264 by x264: small files, yuv420p, even sizes."""

    gop: int  # frames from one keyframe to the next; short distances make random access cheap
    crf: int  # x264's quality, 0 (lossless) to 51; 18 is visually close to the source


@dataclass(frozen=True, slots=True, kw_only=True)
class Mjpeg:
    """Motion JPEG: an image per frame, full range, chroma of half the resolution."""

    quality: int  # libjpeg's quality, 1 to 95


Codec = H264 | Mjpeg


def write_video(path: str | Path, frames: Tensor, fps: int, *, crf: int = 18, gop: int = 12) -> None:
    """Write (F, H, W, 3) uint8 frames as H.264, yuv420p; VideoError for an odd height or width.

    Args:
        crf, gop: see `H264`.
    """
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise VideoError(path, f"yuv420p needs even sizes, not {height}x{width}")
    # An absolute path, which FFmpeg does not take for an address with a protocol.
    address = str(Path(path).absolute())
    with av.open(address, "w", container_options={"fflags": "+bitexact"}) as container:
        stream = _add_stream(container, fps, (height, width), H264(crf=crf, gop=gop))
        for frame in frames.numpy():
            container.mux(stream.encode(VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def write_timed_frames(
    path: Path, frames: Iterable[TimedFrame], rate: Fraction, *, codec: Codec, comment: str
) -> int:
    """Write frames as they arrive, each at its own time, as an mp4 file; the first one sets the size.

    Args:
        rate: nominal frames per second.
        comment: text for the file's metadata.
    Returns:
        The number of frames.
    """
    num_frames = 0
    # faststart puts the index in front: a file can be read before all of it has arrived.
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    with av.open(str(path.absolute()), "w", format="mp4", container_options=options) as container:
        container.metadata["comment"] = comment
        stream = None
        for pixels, time, time_base in frames:
            if stream is None:
                height, width, _ = pixels.shape
                stream = _add_stream(container, rate, (height, width), codec)
                stream.codec_context.time_base = time_base
            if isinstance(codec, Mjpeg):  # libjpeg's bytes, unlike FFmpeg's, are the same on every processor
                image = BytesIO()
                Image.fromarray(pixels).save(image, "JPEG", quality=codec.quality)
                packet = Packet(image.getvalue())
                packet.stream, packet.time_base, packet.is_keyframe = stream, time_base, True
                packet.pts = packet.dts = time
                container.mux(packet)
            else:
                frame = VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = time, time_base
                container.mux(stream.encode(frame))
            num_frames += 1
        if stream is not None:
            container.mux(stream.encode(None))
    return num_frames


def read_comment(path: Path) -> str:
    """The comment in a file's metadata; empty if there is none, or if the file is not a video."""
    with suppress(VideoError), open_container(path) as container:
        return container.metadata.get("comment", "")
    return ""


def _add_stream(
    container: OutputContainer, rate: int | Fraction, size: tuple[int, int], codec: Codec
) -> VideoStream:
    """Add a stream of frames of an even size (height, width) to a file that is being written."""
    if isinstance(codec, Mjpeg):
        stream = container.add_stream("mjpeg", rate=rate)
        stream.pix_fmt = "yuvj420p"
    else:
        # Macroblock-tree rate control gives small frames other bytes in every run (x264 in av 18.1).
        options = {"crf": str(codec.crf), "g": str(codec.gop), "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
    stream.height, stream.width = size
    stream.codec_context.thread_count = 1  # threads change the rate control, and so the bytes
    return stream
