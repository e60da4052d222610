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
    with av.open(str(path), "w") as container:
        options = {"crf": "0", "g": "12", "bf": "2"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=1 / unit, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = unit
        stream.codec_context.thread_count = 1
        for number, time in enumerate(times):
            pixels = np.full((48, 64, 3), DARKEST + STEP * number, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_frames(
    path: Path,
    frames: NDArray[np.uint8],
    *,
    codec: str,
    rate: int,
    title: str = "",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,  # of the codec
    muxing: dict[str, str] | None = None,
) -> Path:
    """Write (F, H, W, 3) frames at a constant rate."""
    with av.open(str(path), "w", container_options=muxing) as container:
        if title:
            container.metadata["title"] = title
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def repack(source: Path, target: Path, *, comment: str = "") -> Path:
    """Write the same packets to another file: other bytes, nothing encoded again."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        if comment:
            new.metadata["comment"] = comment
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
