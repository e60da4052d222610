"""Videos in any container: of numbered frames with any presentation times, of given frames, repacked."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

DARKEST, STEP = 8, 2  # of the levels of a frame: any crop of it shows its number


def write_numbered(path: Path, times: Sequence[int], unit: Fraction, *, codec: str = "libx264") -> Path:
    """Write a video of up to 120 frames; frame i has one brightness, i, and is shown at `times[i]` units."""
    levels = DARKEST + STEP * np.arange(len(times), dtype=np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (len(times), 48, 64, 3))
    options = {"crf": "0", "g": "12", "bf": "2"} if codec == "libx264" else {}
    return write_frames(path, frames, codec=codec, rate=1 / unit, times=times, options=options)


def write_frames(
    path: Path,
    frames: NDArray[np.uint8],
    *,
    codec: str,
    rate: Fraction | int,
    times: Sequence[int] | None = None,
    title: str = "",
    pix_fmt: str = "yuv420p",
    b_frames: int | None = None,
    options: dict[str, str] | None = None,  # of the codec
    muxing: dict[str, str] | None = None,
) -> Path:
    """Write (F, H, W, 3) frames at a constant rate, or at `times` in units of its frames."""
    with av.open(str(path), "w", container_options=muxing) as container:
        if title:
            container.metadata["title"] = title
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.thread_count = 1
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = (times[number] if times else number), 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def repack(source: Path, target: Path, **texts: str) -> Path:
    """Write the same packets to another file, with a title or a comment; nothing is encoded again."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        new.metadata.update(texts)
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return target


def numbers_shown(clip: Tensor) -> list[int]:
    """The numbers of the frames of a clip (C, T, H, W) uint8."""
    brightness = clip.float().mean(dim=(0, 2, 3))  # (T,)
    return ((brightness - DARKEST + 1) / STEP).floor().int().tolist()  # conversion to YUV may lose a level


def nearest(seconds: Sequence[Fraction], time: Fraction) -> int:
    """The frame that is shown nearest to a time, by comparing all of them; the earlier of two."""
    return min(range(len(seconds)), key=lambda i: (abs(seconds[i] - time), i))
