"""Clips that play in a page: small videos as data URIs.

F frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from everest.data.crops import resize
from everest.data.footage import footage_of
from everest.figures.drawing import data_uri, write_page
from everest.lists.sample import Sample
from everest.metrics.budget import FootageWindow
from everest.video.reader import TimedFrame, VideoError, frames_in_order, probe
from everest.video.writer import H264, write_timed_frames

FPS: Final = 12.0  # our choice: frames per second of a clip on a page, at most
MOST: Final = 360  # our choice: frames of a clip; longer ones have a lower rate
SIDE: Final = 240  # our choice: pixels of the longer side
QUALITY: Final = 26  # x264's crf


def clip_card(sample: Sample) -> dict[str, Any]:
    """A clip as a data URI, or why the video is unreadable; its file, and its times."""
    times = "" if sample.start is None else f"{sample.start:.2f} s"
    times += "" if sample.end is None else f" to {sample.end:.2f} s"
    card = {"file": Path(sample.path).name, "path": sample.path, "times": times, "uri": None, "problem": None}
    try:
        info, footage = probe(sample.video), footage_of(sample, None)
        rate = info.fps or FPS
        stride = max(round(rate / FPS), -(-footage.num_frames // MOST), 1)
        numbers = footage.numbers(np.arange(footage.num_frames)[::stride])
        scale = min(SIDE / max(info.height, info.width), 1.0)
        size = max(round(info.height * scale / 2) * 2, 2), max(round(info.width * scale / 2) * 2, 2)  # even
        shown = Fraction(rate).limit_denominator(1001) / stride
        small = (
            resize(frame[None], size, antialias=True)[:, 0].movedim(0, -1).contiguous().numpy()  # (H, W, 3)
            for frame in frames_in_order(sample.video, numbers)
        )
        timed = (TimedFrame(pixels, number, 1 / shown) for number, pixels in enumerate(small))
        with TemporaryDirectory() as folder:
            clip = Path(folder) / "clip.mp4"
            write_timed_frames(clip, timed, shown, codec=H264(crf=QUALITY, gop=12), comment="")
            return card | {"uri": data_uri("video/mp4", clip.read_bytes())}
    except VideoError as error:
        return card | {"problem": error.reason}


def write_check_page(
    page: Path, windows: Sequence[FootageWindow], lines: Sequence[str], *, list_file: str
) -> None:
    """Write a page of windows to check, each as a playing clip with its line of a list."""
    samples = [Sample(path=window.video, start=window.start, end=window.end) for window in windows]
    cards = [clip_card(sample) | {"line": line} for sample, line in zip(samples, lines, strict=True)]
    write_page(page, "figures", "check_page.html", list_file=list_file, cards=cards)
