"""Which windows of many recordings are taken, if not all: evenly spread, or where much happens.

How much happens follows from the sizes of packets; nothing is decoded. The activity of a packet is its size
relative to the running median of its kind, so that slow changes, such as light or another scene, do not
count. Keyframes are left out: their sizes show the image, not the motion. The definition is our choice.

R recordings, N candidates of a recording: windows in the order of time, a step apart. P packets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from everest.video.packet_sizes import PacketSizes

# All our choice.
FLOOR: Final = 4  # by activity, one in four windows is spread evenly, whatever happens in it
MOST_TIMES: Final = 2  # a recording has at most this many times its even share by activity
RUNNING_SECONDS: Final = 600.0  # that a running median covers
OVERHEAD: Final = 64  # bytes added to a packet's size, so that ratios of nearly empty packets stay small
BLOCK_SECONDS: Final = 10.0  # whose bytes are compared to find a constant bitrate
CONSTANT: Final = 0.05  # std / mean of the bytes of these blocks, below which the bitrate is constant


def choose_windows(
    lengths: Sequence[int],
    scores: Sequence[NDArray[np.float64] | None] | None,
    *,
    count: int,
    apart: int,
    seed: int,
) -> list[NDArray[np.int64]]:
    """Choose `count` windows, or fewer if there are not as many.

    Args:
        lengths: (R,) N of each recording.
        scores: (N,) activity of the candidates of each recording; None for a recording spreads its windows
            evenly, None for all spreads all windows evenly.
        apart: steps between two windows that do not overlap. By activity, windows overlap only if there are
            not enough others, and then by as little as possible.
    Returns:
        The ascending numbers of the chosen candidates of each recording.
    """
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    count = min(count, total)
    # At equal distances from a random first one, over all recordings in a row: each gets its even share.
    even = ((np.arange(count) + rng.random()) * total / count).astype(np.int64)  # (count,)
    if scores is None:
        return [np.flatnonzero(taken) for taken in _flags_at(even, lengths)]
    floor = _flags_at(even[rng.integers(FLOOR) :: FLOOR], lengths)
    chosen = [
        share if score is None else least
        for score, share, least in zip(scores, _flags_at(even, lengths), floor, strict=True)
    ]
    limits = [int(np.ceil(MOST_TIMES * count * n / total)) for n in lengths]
    counts = [int(taken.sum()) for taken in chosen]
    missing = count - sum(counts)
    ranked = sorted(
        (-value, row, number)
        for row, score in enumerate(scores)
        if score is not None
        for number, value in enumerate(score.tolist())
    )
    while apart > 0 and missing > 0:
        for _, row, number in ranked:
            near = chosen[row][max(number - apart + 1, 0) : number + apart]
            if counts[row] < limits[row] and not near.any():
                chosen[row][number] = True
                counts[row] += 1
                missing -= 1
            if missing <= 0:
                break
        apart //= 2
    return [np.flatnonzero(taken) for taken in chosen]


def _flags_at(places: NDArray[np.int64], lengths: Sequence[int]) -> list[NDArray[np.bool_]]:
    """Whether each candidate, R of (N,), is at one of the places that count over all recordings."""
    marked = np.zeros(sum(lengths), dtype=bool)
    marked[places] = True
    return np.split(marked, np.cumsum(lengths)[:-1])


def why_none(packets: PacketSizes) -> str | None:
    """Why packet sizes do not show activity; None if they do."""
    if not (packets.kinds > 0).any():
        return "every frame is a keyframe"
    blocks = int(packets.end / BLOCK_SECONDS)  # the incomplete last one is left out
    if blocks < 3:
        return None
    numbers = (packets.seconds / BLOCK_SECONDS).astype(np.int64)
    sums = np.bincount(numbers, weights=packets.sizes)[:blocks]
    variation = float(sums.std() / sums.mean())
    if variation < CONSTANT:
        return f"its bitrate is constant (it varies by {variation:.1%} between {BLOCK_SECONDS:.0f}-s blocks)"
    return None


def window_activity(packets: PacketSizes, starts: NDArray[np.float64], seconds: float) -> NDArray[np.float64]:
    """The mean activity of the packets in each window, about 1 if it is as usual.

    Args:
        starts: (N,) seconds.
        seconds: the length of a window.
    Returns:
        (N,); 0 for a window without a packet other than keyframes.
    """
    activity = np.zeros(len(packets.sizes))  # (P,)
    for kind in (1, 2):
        chosen = np.flatnonzero(packets.kinds == kind)
        if chosen.size:
            sizes = packets.sizes[chosen] + OVERHEAD
            width = max(min(round(RUNNING_SECONDS * chosen.size / packets.end), chosen.size), 1)
            activity[chosen] = sizes / median_filter(sizes, size=width, mode="nearest")
    sums = np.concatenate([[0.0], np.cumsum(activity)])
    counts = np.concatenate([[0], np.cumsum(packets.kinds > 0)])
    first, last = (np.searchsorted(packets.seconds, times) for times in (starts, starts + seconds))
    return (sums[last] - sums[first]) / np.maximum(counts[last] - counts[first], 1)
