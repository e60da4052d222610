"""Frames of a video, exactly the ones asked for.

F frames, H height, W width. A "video" is a file, or a folder of pictures taken in the order of their names;
it is named by a path, a URL that fsspec reads, or as a part of a shard.
Frames are chosen by number also where the frame rate varies; `frames_between` turns seconds into numbers.

A frame is found by its time stamp, decoding from the keyframe before it; files without usable stamps
(everest.data.packet_index names them) are decoded from the start and counted. Decoders are imported by
everest.data.video_stream, everest.data.backends and here, and nowhere else.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
from av import VideoFrame, VideoStream
from av.container import OutputContainer
from torch import Tensor

from everest.video.stream import VideoError


def write_video(path: str | Path, frames: Tensor, fps: int, *, crf: int = 18, gop: int = 12) -> None:
    """Write (F, H, W, 3) uint8 frames as H.264, yuv420p. The same frames give the same bytes.

    Args:
        crf: x264's quality, 0 (lossless) to 51; 18 is visually close to the source.
        gop: frames from one keyframe to the next; short ones make random access cheap.
    """
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise VideoError(path, f"yuv420p needs even sizes, not {height}x{width}")
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        stream = add_h264(container, fps, (height, width), crf=crf, gop=gop)
        for frame in frames.numpy():
            container.mux(stream.encode(VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def add_h264(
    container: OutputContainer,
    rate: int | Fraction,
    size: tuple[int, int],
    *,
    crf: int,
    gop: int,
    tune: str | None = None,
) -> VideoStream:
    """A stream of H.264, yuv420p, in a file that is written. The same frames give the same bytes.

    Args:
        size: (height, width), both even.
        tune: x264's name of a use, as `fastdecode`.
    """
    # Macroblock-tree rate control gives small frames other bytes in every run (x264 in av 18.1).
    options = {"crf": str(crf), "g": str(gop), "x264-params": "mbtree=0"} | ({"tune": tune} if tune else {})
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    stream.codec_context.thread_count = 1  # threads change the rate control, and so the bytes
    return stream
