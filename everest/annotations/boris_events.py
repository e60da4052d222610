"""Events of BORIS and their bouts: presses of a key, of which two make a state and one a point.

Their times run on over the queued media of an observation: a time after the end of the first file is in the
second. They contain the time offset of the observation.

Source: projects saved by BORIS 7 to 9 (github.com/olivierfriard/BORIS, tests/files, and issue 468 on the
offset).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final, Literal, NamedTuple

from everest.annotations.bout import LONGEST, Bout, Span, origin_in
from everest.annotations.matching import VideoFinder
from everest.errors import DataError, shown

Status = Literal["START", "STOP", "POINT"]
LEEWAY: Final = 1.0  # seconds after the end of the media: lengths are rounded, and players stop late
FIX_UNPAIRED: Final = "fix it in BORIS (Observations, Fix unpaired events)"
NO_SUBJECT: Final = "No focal subject"


class Event(NamedTuple):
    """A coded event."""

    time: float
    status: Status | None  # None: unknown; every second event of a state is its stop
    behavior: str
    subject: str
    modifiers: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The media of an observation, which are played one after the other."""

    where: str  # file and name, for messages
    media: tuple[str, ...]
    seconds: tuple[float | None, ...]  # their lengths; None: not stated
    offset: float = 0.0
    interval: Span = (0.0, 0.0)  # the observed part, without the offset; an end of 0 is the end of the media

    def bouts(self, start: float, end: float, event: Event, videos: VideoFinder) -> Iterator[Bout]:
        """Yield the bout of a time span in the file that is shown then; one for each file that it touches."""
        borders = self._borders(videos)
        start, end = start - self.offset, end - self.offset
        if not 0 <= start <= end or end > borders[-1] + LEEWAY:
            offset = f" less the time offset of {self.offset:g} s" if self.offset else ""
            raise DataError(
                f"{self.where}: '{shown(event.behavior)}' from {start:.3f} to {end:.3f} s{offset} is outside "
                f"of its media, which have {borders[-1]:.3f} s; check the observation in BORIS"
            )
        facts = {"label": event.behavior, "subject": "" if event.subject == NO_SUBJECT else event.subject}
        origin = origin_in(event.comment.strip())
        for name, (first, after) in zip(self.media, pairwise([*borders[:-1], math.inf]), strict=True):
            begin, stop = max(start, first), min(end, after)
            if first <= start < after or begin < stop:
                yield Bout(video=name, start=begin - first, end=stop - first, origin=origin, **facts)

    def observed(self, videos: VideoFinder) -> Iterator[tuple[str, Span]]:
        """Yield each file with its observed part."""
        start, end = self.interval
        borders = [0.0] * len(self.media) if self.interval == (0, 0) else self._borders(videos)
        for name, first in zip(self.media, borders, strict=False):
            yield name, (max(start - first, 0.0), min((end or math.inf) - first, LONGEST))

    def _borders(self, videos: VideoFinder) -> list[float]:
        """When each file begins, and the end of the last, which is infinite if its length is not known."""
        lengths = [
            times.seconds if known is None and (times := videos.times(name)) is not None else known
            for name, known in zip(self.media, self.seconds, strict=True)
        ]
        if None in lengths[:-1]:
            raise DataError(
                f"{self.where}: has {len(self.media)} queued media, and times run on over them, but "
                f"the length of {shown(self.media[lengths.index(None)])} is not in the file; name the "
                "folder of the videos (--videos), or use the .boris project"
            )
        return [0.0, *accumulate(math.inf if length is None else length for length in lengths)]


def paired(events: Iterable[Event], where: str) -> Iterator[tuple[float, float, Event]]:
    """Yield start and end of each state and point, with its first event."""
    running: dict[tuple[str, str, str], Event] = {}
    for event in sorted(events, key=lambda event: event.time):
        key = event.subject, event.behavior, event.modifiers
        status = event.status or ("STOP" if key in running else "START")
        if status == "POINT":
            yield event.time, event.time, event
        elif status == "START" and key not in running:
            running[key] = event
        elif status == "STOP" and key in running:
            start = running.pop(key)
            yield start.time, event.time, start
        else:  # a stop without a start, or a second start
            running = {key: event}
            break
    for event in running.values():
        known, missing = ("stopped", "started") if event.status == "STOP" else ("started", "stopped")
        raise DataError(
            f"{where}: '{shown(event.behavior)}' is {known} at {event.time:.3f} s and not {missing}; "
            f"{FIX_UNPAIRED}"
        )
