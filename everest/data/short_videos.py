"""A look at the videos before a run starts: which are shorter than a clip, and whether any can be read.

The last frame of a short video is repeated to fill the clip (everest.data.frames), so that a part of each
clip shows nothing new.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import numpy as np

from everest.data.dataset import VideoClips
from everest.data.footage import footage_of
from everest.errors import DataError
from everest.lists.sample import ListSize, Sample
from everest.system.storage import RemotePath
from everest.video.source import Member
from everest.video.stream import VideoError

# Our choices.
MOST: Final = 64  # videos whose length is read, spread over the list
SECONDS: Final = 3.0  # for reading them; some formats have to be decoded to be counted
FITTING: Final = 0.05  # share of the videos that may still be too short at a suggested stride


def largest_stride(lengths: Sequence[int], frames: int) -> int | None:
    """The largest stride at which nearly all videos fill a clip of `frames`; None if even 1 is too large."""
    return _short_length(lengths) // frames or None


def _short_length(lengths: Sequence[int]) -> int:
    """Returns the largest length that at most a share of `FITTING` is below."""
    return sorted(lengths)[int(FITTING * len(lengths) + 1e-9)]


def padding_notice(clips: VideoClips, key: str) -> str | None:
    """Returns a line about the videos that are shorter than a clip; None if there are none.

    Videos of a storage are not examined: each would have to be loaded.

    Args:
        key: the section of the recipe with the stride, for the message.
    """
    views = clips.make_views
    stride = views.stride if views.sampling == "dense" else 1  # the other ways span any video
    lengths = read_lengths(clips.samples, views.fps)
    short = sum(length < views.frames * stride for length in lengths)
    if not short:
        return None
    total, unit = len(clips), ListSize.of(clips.samples).unit
    rate = "" if views.fps is None else f" at {views.fps:g} per second"
    of_what = f"{total} {unit}s" if len(lengths) == total else f"{len(lengths)} {unit}s examined"
    text = (
        f"{short} of {of_what} ({short / len(lengths):.0%}) are shorter than a clip of {views.frames} frames "
        f"at stride {stride} ({views.frames * stride} frames{rate}): frames are repeated"
    )
    if short <= FITTING * len(lengths):
        return text
    fitting = largest_stride(lengths, views.frames)
    if fitting is not None and views.sampling == "dense":
        return f"{text}; {key}.stride={fitting} fits"
    frames = _short_length(lengths)
    if frames < 2:
        return f"{text}; most are single images, which show no motion"
    return f"{text}; lower data.frames: most {unit}s have {frames} frames{rate} or more"


def read_lengths(samples: Sequence[Sample], fps: float | None) -> list[int]:
    """Count the frames (at `fps`) of up to `MOST` samples, spread over the list, within `SECONDS`."""
    lengths: list[int] = []
    failed: list[VideoError] = []
    end = time.monotonic() + SECONDS
    number = min(len(samples), MOST)
    chosen = np.linspace(0, len(samples) - 1, number).astype(int)
    # In an order whose every beginning is spread over the list.
    for index in np.random.default_rng(0).permutation(chosen).tolist():
        sample = samples[index]
        video = sample.video
        if isinstance(video, RemotePath) or (
            isinstance(video, Member) and isinstance(video.shard, RemotePath)
        ):
            continue
        try:
            lengths.append(footage_of(sample, fps).num_frames)
        except VideoError as error:
            failed.append(error)  # training names them, if others can be read
        if time.monotonic() > end:
            break
    if failed and len(failed) == number:
        of_what = (
            "none of the videos" if len(failed) == len(samples) else f"none of {len(failed)} videos examined"
        )
        raise DataError(f"{of_what} can be read, first {failed[0].path}: {failed[0].reason}")
    return lengths
