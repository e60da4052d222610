"""Repairs time stamps of frames that cannot be right, and finds the frame rate. F frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESTART_FRAMES: Final = 8  # frames on each side that show that times start again: our choice
STAMPS_COMPARED: Final = 8 * RESTART_FRAMES  # stamps on each side of one that does not rise: our choice
MAX_REPLACED_FRACTION: Final = 0.25  # heuristic: fraction of the stamps; above it, the stamps mean nothing
TIME_TOLERANCE: Final = 1e-6  # seconds; 0.1 s has no exact binary form
RATE_TOLERANCE: Final = 0.02  # heuristic: containers round times, and writers round rates

Stamps = NDArray[np.int64]


class RepairedTimes(NamedTuple):
    """Rising times of frames, and how the stamps of the file were repaired."""

    times: Stamps  # (F,); empty if the times are not known
    num_replaced: int  # frames whose time was missing or wrong
    restarts: list[int]  # frames at which the stamps start again
    are_stored: bool  # whether all times are the file's stamps, in their order

    def notices(self) -> list[str]:
        """Sentences for the user about the repairs."""
        notices = []
        if self.num_replaced:
            notices.append(
                f"{self.num_replaced} of {self.times.size} time stamps cannot be right and were interpolated"
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
    are_decode_times: bool = False,
) -> RepairedTimes:
    """Make time stamps rise, and keep every stamp that can be right.

    A single stamp that repeats another or is out of order is replaced by the middle of its neighbors. Where
    the stamps start again, as where two recordings are joined, they go on after the last one.

    Args:
        stamps: time stamps of the frames, in display order.
        packet_stamps: time stamps of the packets, in decode order. If these fall less often, the stamps are
            decode times, which have the right values in the wrong order.
        are_decode_times: the stamps are known to be decode times.
        lost: frames after which packets were lost, and how many.
    """
    stamped = np.array([frame for frame, stamp in enumerate(stamps) if stamp is not None], dtype=np.int64)
    times, packet_times = (
        np.array([stamp for stamp in values if stamp is not None], dtype=np.int64)
        for values in (stamps, packet_stamps)
    )
    if 2 * stamped.size <= len(stamps):
        return NO_TIMES
    falls, packet_falls = (int(np.sum(np.diff(values) < 0)) for values in (times, packet_times))
    are_decode_times = are_decode_times or packet_falls < falls
    if are_decode_times and lost:
        times = np.sort(packet_times)[numbers_among_lost(lost, len(stamps))[stamped]]
    elif are_decode_times:
        times = np.sort(times)
    intervals = np.diff(times)
    usual_gap = float(np.median(intervals[intervals > 0])) if np.any(intervals > 0) else 1.0
    times, kept, restarts = _choose_rising(times, stamped, usual_gap)
    replaced = len(stamps) - len(kept)
    if replaced > MAX_REPLACED_FRACTION * len(stamps):
        return NO_TIMES
    times, known = times[kept], stamped[kept]
    numbers = np.arange(len(stamps))
    all_times = np.interp(numbers, known, times.astype(np.float64))
    earlier, later = numbers < known[0], numbers > known[-1]  # at both ends, times are the usual gap apart
    all_times[earlier] = times[0] + usual_gap * (numbers[earlier] - known[0])
    all_times[later] = times[-1] + usual_gap * (numbers[later] - known[-1])
    rounded = all_times.round().astype(np.int64)
    rounded[known] = times  # undo the rounding of large times
    return RepairedTimes(rounded, replaced, stamped[restarts].tolist(), not (are_decode_times or replaced))


def numbers_among_lost(lost: Sequence[tuple[int, int]], num_frames: int) -> NDArray[np.int64]:
    """The numbers of `num_frames` frames if lost frames are counted."""
    numbers = np.arange(num_frames)
    for frames_before, num_packets in lost:
        numbers[frames_before:] += num_packets
    return numbers


def _choose_rising(times: Stamps, frames: Stamps, usual_gap: float) -> tuple[Stamps, list[int], list[int]]:
    """Choose the times that can be right.

    Args:
        times: (N,) times of the N frames that have one.
        frames: (N,) numbers of these frames.
        usual_gap: usual time from one frame to the next.
    Returns:
        The times, continued where they start again; the positions of the rising times and of the restarts.
    """
    times = times.copy()
    kept: list[int] = []
    restarts: list[int] = []
    position = 0
    while position < times.size:
        if kept and times[position] <= times[kept[-1]]:
            last = kept[-1]
            later = times[position : position + STAMPS_COMPARED]
            rises = np.flatnonzero(later > times[last])
            # Either the frames from here on are wrong, or the frames up to here.
            wrong_from_here = int(rises[0]) if rises.size else later.size
            wrong_up_to_here = int(np.sum(times[kept[-STAMPS_COMPARED:]] >= times[position]))
            is_rest = not rises.size and position + later.size == times.size
            if wrong_up_to_here >= min(RESTART_FRAMES, len(kept)) and (
                wrong_from_here >= RESTART_FRAMES or (is_rest and wrong_from_here > 1)
            ):
                restarts.append(position)
                gap = round(usual_gap * (frames[position] - frames[last]))
                times[position:] += times[last] + gap - times[position]
            elif wrong_up_to_here < wrong_from_here or (
                wrong_up_to_here == wrong_from_here == 1 and _is_smoother_without_last(times, kept, position)
            ):
                del kept[-wrong_up_to_here:]
            else:
                position += wrong_from_here
                continue
        kept.append(position)
        position += 1
    return times, kept, restarts


def _is_smoother_without_last(times: Stamps, kept: Sequence[int], position: int) -> bool:
    """Whether the last of the `kept` times is more likely wrong than the one at `position`, not later."""
    if len(kept) < 3 or position + 2 >= times.size:
        return False
    *earlier, last = kept[-3:]
    unevenness = []  # the largest change of the rate between frames; at least 0
    for middle in (position, last):
        positions = [*earlier, middle, position + 1]
        rates = np.maximum(np.diff(times[positions]), 1e-3) / np.diff(positions)
        unevenness.append(float(np.abs(np.diff(np.log(rates))).max()))
    return unevenness[0] < unevenness[1]


def frame_rate(stated: float, seconds: NDArray[np.float64]) -> float:
    """The stated frames per second if the mean or the median of the times (F,) agrees; else the mean."""
    if seconds.size < 2 or seconds[-1] <= seconds[0]:
        return stated
    mean = (seconds.size - 1) / float(seconds[-1] - seconds[0])
    usual = 1 / max(float(np.median(np.diff(seconds))), 1e-9)
    agrees = any(abs(stated / rate - 1) <= RATE_TOLERANCE for rate in (mean, usual))
    return stated if agrees else mean
