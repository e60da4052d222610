"""Time stamps of frames, repaired where they cannot be right, and the frame rate that follows from them.

F frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESTART: Final = 8  # frames on each side that show that times start again: our choice
MOST_REPLACED: Final = 0.25  # our choice: of the stamps; with more, a file has none that mean anything
RATE_TOLERANCE: Final = 0.02  # our choice: containers round times, and writers round rates


class Repaired(NamedTuple):
    """Times of frames that rise."""

    times: NDArray[np.int64]  # (F,); empty: not known
    replaced: int  # frames whose time was missing or wrong
    restarts: list[int]  # frames at which the stamps start again
    is_sound: bool  # the stamps are those of the frames, in their order

    def notices(self) -> list[str]:
        """What a user should know."""
        found = []
        if self.replaced:
            found.append(
                f"{self.replaced} of {self.times.size} time stamps cannot be right and were interpolated"
            )
        if self.restarts:
            places = ", ".join(map(str, self.restarts[:3]))
            found.append(f"time stamps start again at frame {places}; they are continued")
        return found


def repaired(
    stamps: Sequence[int | None],
    packet_stamps: Sequence[int | None],
    lost: Sequence[tuple[int, int]] = (),
    *,
    of_decoding: bool = False,
) -> Repaired:
    """Make time stamps rise, and keep all that can be right.

    A single stamp that repeats another or is out of order is replaced by the middle of its neighbors. Where
    the stamps start again, as where two recordings are joined, they go on after the last one.

    Args:
        stamps: of the frames, as shown.
        packet_stamps: of the packets, as decoded. If these fall less often, they are times of decoding, which
            have the right values in the wrong order.
        of_decoding: they are times of decoding in any case.
        lost: frames after which packets were lost, and how many.
    """
    known = np.array([number for number, stamp in enumerate(stamps) if stamp is not None], dtype=np.int64)
    values = np.array([stamp for stamp in stamps if stamp is not None], dtype=np.int64)
    if 2 * known.size <= len(stamps):
        return Repaired(values[:0], 0, [], False)
    is_sound = True
    of_packets = np.array([stamp for stamp in packet_stamps if stamp is not None], dtype=np.int64)
    if of_decoding or np.sum(np.diff(of_packets) < 0) < np.sum(np.diff(values) < 0):
        is_sound = False
        values = np.sort(of_packets)[places_with(lost, len(stamps))[known]] if lost else np.sort(values)
    steps = np.diff(values)
    usual = float(np.median(steps[steps > 0])) if np.any(steps > 0) else 1.0
    times = values.copy()
    kept: list[int] = []  # positions in `values`
    restarts: list[int] = []
    offset, skipped_until = 0, 0
    for i in range(values.size):
        times[i] = values[i] + offset
        if i < skipped_until:
            continue
        if kept and times[i] <= times[kept[-1]]:
            level = times[kept[-1]]
            later = values[i : i + 8 * RESTART] + offset
            above = np.flatnonzero(later > level)
            # Either the frames from here on are wrong, or those up to here.
            after = int(above[0]) if above.size else later.size
            before = int(np.sum(times[kept[-8 * RESTART :]] >= times[i]))
            is_rest = not above.size and i + later.size == values.size
            if before >= min(RESTART, len(kept)) and (after >= RESTART or (is_rest and after > 1)):
                restarts.append(int(known[i]))
                offset = int(level + round(usual * (known[i] - known[kept[-1]])) - values[i])
                times[i] = values[i] + offset
            elif before < after or (
                before == after == 1 and _is_smoother_without_last(kept, i, times, later)
            ):
                del kept[-before:]
            else:
                skipped_until = i + after
                continue
        kept.append(i)
    if len(stamps) - len(kept) > MOST_REPLACED * len(stamps):
        return Repaired(values[:0], 0, [], False)
    rising = np.interp(np.arange(len(stamps)), known[kept], times[kept].astype(np.float64))
    for side, end in ((slice(None, known[kept[0]]), 0), (slice(known[kept[-1]] + 1, None), -1)):
        numbers = np.arange(len(stamps))[side]
        rising[side] = times[kept[end]] + usual * (numbers - known[kept[end]])
    result = rising.round().astype(np.int64)
    result[known[kept]] = times[kept]
    return Repaired(result, len(stamps) - len(kept), restarts, is_sound and len(kept) == len(stamps))


def places_with(lost: Sequence[tuple[int, int]], count: int) -> NDArray[np.int64]:
    """The numbers that `count` frames would have with the lost ones among them."""
    numbers = np.arange(count)
    for frames, packets in lost:
        numbers[frames:] += packets
    return numbers


def _is_smoother_without_last(
    kept: Sequence[int], i: int, times: NDArray[np.int64], later: NDArray[np.int64]
) -> bool:
    """Whether the last of `kept` is more likely wrong than frame i, which does not come after it."""
    if len(kept) < 3 or later.size < 3:
        return False

    def unevenness(places: list[int], values: list[int]) -> float:
        """The largest change of the rate between frames; at least 0."""
        rates = np.maximum(np.diff(values), 1e-3) / np.diff(places)
        return float(np.abs(np.diff(np.log(rates))).max())

    a, b, c = kept[-3:]
    with_last = unevenness([a, b, c, i + 1], [*times[[a, b, c]].tolist(), int(later[1])])
    without_last = unevenness([a, b, i, i + 1], [*times[[a, b, i]].tolist(), int(later[1])])
    return without_last < with_last


def frame_rate(stated: float, seconds: NDArray[np.float64]) -> float:
    """The stated frames per second if the mean or the median of the times (F,) agrees; else the mean."""
    if seconds.size < 2 or seconds[-1] <= seconds[0]:
        return stated
    mean = (seconds.size - 1) / float(seconds[-1] - seconds[0])
    usual = 1 / max(float(np.median(np.diff(seconds))), 1e-9)
    agrees = any(abs(stated / rate - 1) <= RATE_TOLERANCE for rate in (mean, usual))
    return stated if agrees else mean
