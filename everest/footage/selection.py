"""Which windows of many recordings are taken, if not all: evenly spread, or where much happens.

R recordings, N candidates of a recording: windows in the order of time, a step apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

FLOOR: Final = 4  # by activity, one in four windows is spread evenly, whatever happens in it; our choice
MOST_TIMES: Final = 2  # a recording has at most this many times its even share by activity; our choice


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
        return [np.flatnonzero(taken) for taken in _marked(even, lengths)]
    floor = _marked(even[rng.integers(FLOOR) :: FLOOR], lengths)
    chosen = [
        share if score is None else least
        for score, share, least in zip(scores, _marked(even, lengths), floor, strict=True)
    ]
    limits = [int(np.ceil(MOST_TIMES * count * n / total)) for n in lengths]
    _add_by_score(chosen, scores, count=count, apart=apart, limits=limits)
    return [np.flatnonzero(taken) for taken in chosen]


def _marked(places: NDArray[np.int64], lengths: Sequence[int]) -> list[NDArray[np.bool_]]:
    """Whether each candidate, R of (N,), is at one of the places that count over all recordings."""
    marked = np.zeros(sum(lengths), dtype=bool)
    marked[places] = True
    return np.split(marked, np.cumsum(lengths)[:-1])


def _add_by_score(
    chosen: Sequence[NDArray[np.bool_]],
    scores: Sequence[NDArray[np.float64] | None],
    *,
    count: int,
    apart: int,
    limits: Sequence[int],
) -> None:
    """Mark further windows, those with the highest score first, until `count` are marked."""
    ranked = [
        (-value, row, number)
        for row, score in enumerate(scores)
        if score is not None
        for number, value in enumerate(score.tolist())
    ]
    ranked.sort()
    counts = [int(taken.sum()) for taken in chosen]
    missing = count - sum(counts)
    while apart > 0:
        for _, row, number in ranked:
            if missing <= 0:
                return
            near = chosen[row][max(number - apart + 1, 0) : number + apart]
            if counts[row] < limits[row] and not near.any():
                chosen[row][number] = True
                counts[row] += 1
                missing -= 1
        apart //= 2
