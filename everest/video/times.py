"""Time stamps of frames, repaired where they cannot be right, and the frame rate that follows from them.

F frames, N of them with a time stamp.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESTART: Final = 8  # frames on each side that show that times start again: our choice
MOST_REPLACED: Final = 0.25  # heuristic: of the stamps; with more, a file has none that mean anything
TIME_TOLERANCE: Final = 1e-6  # seconds; 0.1 s has no exact binary form
RATE_TOLERANCE: Final = 0.02  # heuristic: containers round times, and writers round rates

Stamps = NDArray[np.int64]


class RepairedTimes(NamedTuple):
    """Times of frames that rise."""

    times: Stamps  # (F,); empty: not known
    replaced: int  # frames whose time was missing or wrong
    restarts: list[int]  # frames at which the stamps start again
    are_stored: bool  # all are the stamps of the file, in their order

    def notices(self) -> list[str]:
        """What a user should know."""
        notices = []
        if self.replaced:
            notices.append(
                f"{self.replaced} of {self.times.size} time stamps cannot be right and were interpolated"
            )
        if self.restarts:
            frames = ", ".join(map(str, self.restarts[:3]))
            notices.append(f"time stamps start again at frame {frames}; they are continued")
        return notices


NO_TIMES: Final = RepairedTimes(np.empty(0, dtype=np.int64), 0, [], are_stored=False)


def repair_times(
    stamps: Sequence[int | None],
    packet_stamps: Sequence[int | None],
    lost: Sequence[tuple[int, int]] = (),
    *,
    of_decoding: bool = False,
) -> RepairedTimes:
    """Make time stamps rise, and keep the most that can be right together.

    Where the stamps start again, as where two recordings are joined, they go on after the last one. Of the
    others, the longest series that rises is kept; the rest is interpolated.

    Args:
        stamps: of the frames, as shown.
        packet_stamps: of the packets, as decoded. If these fall less often, they are times of decoding, which
            have the right values in the wrong order.
        of_decoding: they are times of decoding in any case.
        lost: frames after which packets were lost, and how many.
    """
    frames = np.array([frame for frame, stamp in enumerate(stamps) if stamp is not None], dtype=np.int64)
    if 2 * frames.size <= len(stamps):
        return NO_TIMES
    times, packet_times = (  # (N,)
        np.array([stamp for stamp in each if stamp is not None], dtype=np.int64)
        for each in (stamps, packet_stamps)
    )
    of_decoding = of_decoding or bool(np.sum(np.diff(packet_times) < 0) < np.sum(np.diff(times) < 0))
    if of_decoding and lost:
        times = np.sort(packet_times)[numbers_among_lost(lost, len(stamps))[frames]]
    elif of_decoding:
        times = np.sort(times)
    steps = np.diff(times)
    usual_step = float(np.median(steps[steps > 0])) if np.any(steps > 0) else 1.0
    restarts: list[int] = []
    for at in (np.flatnonzero(steps <= 0) + 1).tolist():
        before, after = times[max(at - RESTART, 0) : at], times[at : at + RESTART]
        if after.size > 1 and np.all(before >= times[at]) and np.all(after <= times[at - 1]):
            restarts.append(int(frames[at]))
            gap = round(usual_step * (frames[at] - frames[at - 1]))
            times[at:] += times[at - 1] + gap - times[at]
    kept = _longest_rising(times)
    replaced = len(stamps) - len(kept)
    if replaced > MOST_REPLACED * len(stamps):
        return NO_TIMES
    times, frames = times[kept], frames[kept]
    numbers = np.arange(len(stamps))
    filled = np.interp(numbers, frames, times.astype(np.float64))
    before, after = numbers < frames[0], numbers > frames[-1]  # the usual step apart
    filled[before] = times[0] + usual_step * (numbers[before] - frames[0])
    filled[after] = times[-1] + usual_step * (numbers[after] - frames[-1])
    all_times = filled.round().astype(np.int64)
    all_times[frames] = times  # large ones were rounded above
    return RepairedTimes(all_times, replaced, restarts, not (of_decoding or replaced))


def _longest_rising(values: Stamps) -> list[int]:
    """The positions of the longest series of values that rises."""
    last_values: list[int] = []  # the smallest last value of a series of each length
    last_places: list[int] = []  # its position
    place_before: list[int] = []  # for each value, the position before it in its series; -1: none
    for place, value in enumerate(values.tolist()):
        length = bisect_left(last_values, value)
        last_values[length : length + 1] = [value]
        last_places[length : length + 1] = [place]
        place_before.append(last_places[length - 1] if length else -1)
    series = [last_places[-1]]
    while (place := place_before[series[-1]]) >= 0:
        series.append(place)
    series.reverse()

    def unevenness(places: list[int]) -> float:
        """The largest change of the rate between frames; at least 0."""
        rates = np.diff(values[places]) / np.diff(places)
        return float(np.abs(np.diff(np.log(rates))).max())

    # It has the later of two values that exclude each other; the earlier one counts unless it is less even.
    for at in range(1, len(series) - 1):
        before, place, after = series[at - 1 : at + 2]
        if before < place - 1 and values[before] < values[place - 1] < values[after]:
            around = series[max(at - 2, 0) : at]
            is_less_even = unevenness([*around, place - 1, after]) > unevenness([*around, place, after])
            series[at] = place if is_less_even and at > 1 else place - 1
    return series


def numbers_among_lost(lost: Sequence[tuple[int, int]], count: int) -> NDArray[np.int64]:
    """The numbers that `count` frames would have if the lost ones were among them."""
    numbers = np.arange(count)
    for frames, packets in lost:
        numbers[frames:] += packets
    return numbers


def frame_rate(stated: float, seconds: NDArray[np.float64]) -> float:
    """The stated frames per second if the mean or the median of the times (F,) agrees; else the mean."""
    if seconds.size < 2 or seconds[-1] <= seconds[0]:
        return stated
    mean = (seconds.size - 1) / float(seconds[-1] - seconds[0])
    usual = 1 / max(float(np.median(np.diff(seconds))), 1e-9)
    agrees = any(abs(stated / rate - 1) <= RATE_TOLERANCE for rate in (mean, usual))
    return stated if agrees else mean
