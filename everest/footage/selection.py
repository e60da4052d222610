"""Which windows of many recordings are taken, if not all: evenly spread, or where much happens.

R recordings, N candidates of a recording: windows in the order of time, a step apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

FLOOR: Final = 0.25  # share of windows that are spread evenly, whatever happens in them; our choice
MOST_TIMES: Final = 2  # a recording has at most this many times its even share by activity; our choice


def choose_windows(
    lengths: Sequence[int],
    scores: Sequence[NDArray[np.float64] | None] | None,
    *,
    count: int,
    apart: int,
    cap: int | None,
    seed: int,
) -> list[NDArray[np.int64]]:
    """Choose `count` windows, or fewer if the cap or the candidates do not allow as many.

    Args:
        lengths: (R,) N of each recording.
        scores: (N,) activity of the candidates of each recording; None for a recording spreads its windows
            evenly, None for all spreads all windows evenly.
        apart: steps between two windows that do not overlap. Windows overlap only if there are not enough
            others, and then by as little as possible.
        cap: windows of one recording; None: twice its even share by activity, else no limit.
    Returns:
        The ascending numbers of the chosen candidates of each recording.
    """
    rng = np.random.default_rng(seed)
    limits = np.array(lengths) if cap is None else np.minimum(lengths, cap)
    even = _quotas(limits, np.array(lengths), count, rng)
    if scores is None:
        return [_spread(n, quota, rng) for n, quota in zip(lengths, even, strict=True)]
    ranked = np.array([score is not None for score in scores])
    # Rounded at random: a recording with few windows has none, or one, in the floor.
    floor = np.where(ranked, np.floor(even * FLOOR + rng.random(len(even))), even).astype(np.int64)
    chosen = [np.zeros(n, dtype=bool) for n in lengths]
    for taken, quota in zip(chosen, floor, strict=True):
        taken[_spread(len(taken), quota, rng)] = True
    share = count * np.array(lengths) / max(sum(lengths), 1)
    limits = np.minimum(limits, np.ceil(MOST_TIMES * share).astype(np.int64)) if cap is None else limits
    _add_by_score(chosen, scores, count=count, apart=apart, limits=limits)
    return [np.flatnonzero(taken) for taken in chosen]


def _add_by_score(
    chosen: Sequence[NDArray[np.bool_]],
    scores: Sequence[NDArray[np.float64] | None],
    *,
    count: int,
    apart: int,
    limits: NDArray[np.int64],
) -> None:
    """Mark further windows, those with the highest score first, until `count` are marked."""
    ranked = [row for row, score in enumerate(scores) if score is not None]
    if not ranked:
        return
    rows = np.concatenate([np.full(len(chosen[row]), row) for row in ranked])
    numbers = np.concatenate([np.arange(len(chosen[row])) for row in ranked])
    values = np.concatenate([score for score in scores if score is not None])
    order = np.argsort(-values, kind="stable")
    rows, numbers = rows[order], numbers[order]
    counts = np.array([taken.sum() for taken in chosen])
    missing = count - int(counts.sum())
    while missing > 0 and apart > 0:
        for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
            near = chosen[row][max(number - apart + 1, 0) : number + apart]
            if counts[row] < limits[row] and not near.any():
                chosen[row][number] = True
                counts[row] += 1
                missing -= 1
                if not missing:
                    return
        apart //= 2


def _quotas(
    limits: NDArray[np.int64], lengths: NDArray[np.int64], count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Divide `count` in proportion to the lengths (R,), with at most `limits` (R,) for each."""
    count = min(count, int(limits.sum()))
    share = np.zeros(len(limits))
    full = np.zeros(len(limits), dtype=bool)
    while True:  # each round fills at least one recording
        rest = count - limits[full].sum()
        share = np.where(full, limits, lengths * rest / max(lengths[~full].sum(), 1))
        over = ~full & (share > limits)
        if not over.any():
            break
        full |= over
    # Rounded so that the sum stays: which recordings get one more is drawn.
    ends = np.floor(np.cumsum(share) + rng.random() * (1 - 1e-9) + 1e-9).astype(np.int64)
    ends[-1:] = count
    return np.diff(ends, prepend=0)


def _spread(length: int, quota: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose `quota` of `length` numbers at equal distances, from a random first one."""
    if not quota:
        return np.zeros(0, dtype=np.int64)
    return ((np.arange(quota) + rng.random()) * length / quota).astype(np.int64)
