"""Videos whose frames show their numbers as brightness, with any presentation times."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
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


def numbers_shown(clip: Tensor) -> list[int]:
    """The numbers of the frames of a clip (C, T, H, W) uint8."""
    brightness = clip.float().mean(dim=(0, 2, 3))  # (T,)
    return ((brightness - DARKEST + 1) / STEP).floor().int().tolist()  # conversion to YUV may lose a level


def nearest(seconds: Sequence[Fraction], time: Fraction) -> int:
    """The frame that is shown nearest to a time, by comparing all of them; the earlier of two."""
    return min(range(len(seconds)), key=lambda i: (abs(seconds[i] - time), i))
