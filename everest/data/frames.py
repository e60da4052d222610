"""Frame sampling: the indices of the frames of a clip. Random choices come from the generator passed in.

A video, or the segment of it that a list names, has `length` frames, numbered from 0. A clip has T `frames`,
each `stride` after the previous one (dense) or one from each of T equal parts (segment; Wang et al. 2016,
Temporal Segment Networks). If a video is too short, its last reachable frame is repeated. All functions
follow the official code of VideoMAE (Tong et al. 2022) and EVEREST, including the oddities named below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everest.errors import unknown_name

FrameIds = NDArray[np.int64]  # (T,)


def pretrain_window(length: int, frames: int, stride: int, rng: np.random.Generator) -> FrameIds:
    """Every `stride`-th frame of a random window, which never reaches a video's last frame (as released)."""
    spare = max(length - frames * stride, 0)
    start = int(rng.integers(0, spare + 1)) if spare else 0
    last = max((length - 2 - start) // stride, 0)
    return start + stride * np.minimum(np.arange(frames), last)


def finetune_window(length: int, frames: int, stride: int, rng: np.random.Generator) -> FrameIds:
    """Frames spread over a random window, both ends included: slightly more than `stride` apart."""
    window = frames * stride
    start = int(rng.integers(window, length)) - window if length > window else 0
    return _spread_window(length, frames, stride, start)


def _spread_window(length: int, frames: int, stride: int, start: int) -> FrameIds:
    window = frames * stride
    if length > window:
        ids = np.linspace(start, start + window, num=frames)
        last = start + window - 1
    else:  # all of a short video at about `stride`, then its last frame repeated
        ids = np.linspace(0, length, num=length // stride)
        ids = np.pad(ids, (0, frames - ids.size), constant_values=length)
        last = length - 1
    return np.minimum(ids.astype(np.int64), last)


def view_windows(length: int, frames: int, stride: int, clips: int) -> list[FrameIds]:
    """`clips` evaluation windows, evenly from the first to the last; a single window is in the middle."""
    ids = np.arange(0, length, stride)
    ids = np.pad(ids, (0, max(frames - ids.size, 0)), mode="edge")
    spare = ids.size - frames
    starts = [spare // 2] if clips == 1 else [truncated_fraction(spare, i, clips - 1) for i in range(clips)]
    return [ids[start : start + frames] for start in starts]


def segment_frames(length: int, frames: int, rng: np.random.Generator) -> FrameIds:
    """A random frame of each of `frames` equal parts; only the first frame if the video is shorter."""
    spacing = length // frames
    if spacing == 0:
        return np.zeros(frames, dtype=np.int64)  # as released: the frames of a short video are not spread
    return spacing * np.arange(frames) + rng.integers(0, spacing, size=frames)


def segment_views(length: float, frames: int, clips: int, begin: float = 0.0) -> list[FrameIds]:
    """One frame of each of `frames` equal parts; later clips take later frames of each part.

    Two clips take the starts and the middles of the parts, as in the official code; a single clip takes
    the middles. For `begin` see `spread_frames`.
    """
    spacing = length / frames
    phases = [0.5] if clips == 1 else [clip / clips for clip in range(clips)]
    return [(begin + spacing * phase + spacing * np.arange(frames)).astype(np.int64) for phase in phases]


def spread_frames(length: float, frames: int, phase: float, begin: float = 0.0) -> FrameIds:
    """A frame of each of `frames` equal parts, all at the same fraction `phase` in [0, 1) of their part.

    It is for long clips that cover an entire video (our choice: LVMAE does not specify it). The frames of a
    shorter video are repeated evenly.

    Args:
        length, begin: a part of a video may last a fraction of a frame, and begin between two frames.
    """
    return (begin + (np.arange(frames) + phase) * length / frames).astype(np.int64)


def truncated_fraction(total: int, numerator: int, denominator: int) -> int:
    """`total * numerator / denominator`, truncated to an integer.

    It computes in floating point and in this order, as the official code does: 49 steps of 1/49 make 48.
    """
    return int(numerator * (total / denominator))


@dataclass(frozen=True, slots=True)
class Sampling:
    """A way to choose frames, for each of four purposes. All functions take (length, frames, stride, …).

    `views` also takes where a part of a video begins; dense clips are of whole frames, and ignore it.
    """

    pretrain: Callable[[int, int, int, np.random.Generator], FrameIds]
    finetune: Callable[[int, int, int, np.random.Generator], FrameIds]
    center: Callable[[int, int, int], FrameIds]
    views: Callable[..., list[FrameIds]]  # (length, frames, stride, clips, begin)


SAMPLINGS = {
    "dense": Sampling(
        pretrain=pretrain_window,
        finetune=finetune_window,
        # The window in the middle; our choice for validation: the official code draws it at random.
        center=lambda length, frames, stride: _spread_window(
            length, frames, stride, (length - frames * stride) // 2
        ),
        views=lambda length, frames, stride, clips, begin=0.0: view_windows(length, frames, stride, clips),
    ),
    "segment": Sampling(  # the parts span the entire video: no stride
        pretrain=lambda length, frames, _, rng: segment_frames(length, frames, rng),
        finetune=lambda length, frames, _, rng: segment_frames(length, frames, rng),
        center=lambda length, frames, _: segment_views(length, frames, clips=1)[0],
        views=lambda length, frames, _, clips, begin=0.0: segment_views(length, frames, clips, begin),
    ),
    "spread": Sampling(  # frames spread evenly over the entire video: no stride
        pretrain=lambda length, frames, _, rng: spread_frames(length, frames, rng.random()),
        finetune=lambda length, frames, _, rng: spread_frames(length, frames, rng.random()),
        center=lambda length, frames, _: spread_frames(length, frames, 0.5),
        views=lambda length, frames, _, clips, begin=0.0: [
            spread_frames(length, frames, (clip + 0.5) / clips, begin) for clip in range(clips)
        ],
    ),
}


def find_sampling(name: str) -> Sampling:
    """The entry `name` of `SAMPLINGS`; an unknown name is a RecipeError that lists the known ones."""
    if name not in SAMPLINGS:
        raise unknown_name("sampling", name, SAMPLINGS)
    return SAMPLINGS[name]
