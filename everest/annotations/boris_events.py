"""The observations of BORIS: their events, which are paired to bouts, and their media.

An event is a press of a key; two make a state and one a point. Times run on over the queued media of an
observation: a time after the end of the first file is in the second. They contain the time offset of the
observation.

Source: projects saved by BORIS 7 to 9 (github.com/olivierfriard/BORIS, tests/files, and issue 468 on the
offset).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from everest.annotations.bout import LONGEST, Bout, Span, origin_in
from everest.annotations.matching import VideoFinder
from everest.errors import DataError, shown

LEEWAY: Final = 1.0  # seconds after the end of the media: lengths are rounded, and players stop late
FIX_UNPAIRED: Final = "fix it in BORIS (Observations, Fix unpaired events)"
NO_SUBJECT: Final = "No focal subject"


class Event(NamedTuple):
    """A coded event."""

    time: float
    end: float | None  # of a point, or of a bout in a table; None: of a state, whose stop is another event
    behavior: str
    subject: str
    modifiers: str = ""
    comment: str = ""
    status: str = ""  # START or STOP of a state; empty: every second event is its stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Events, and the media in which they are, played one after the other."""

    where: str  # file and name, for messages
    events: Sequence[Event]
    media: Sequence[str]
    seconds: Sequence[float | None]  # their lengths; None: not stated
    offset: float = 0.0
    interval: Span = (0.0, 0.0)  # the observed part, without the offset; an end of 0 is the end of the media

    def bouts(self, videos: VideoFinder) -> Iterator[Bout]:
        """Yield the bouts of states and points in the files shown then: one for each file that they touch."""
        borders = self._borders(videos) if self.events else [0.0]
        offset = f" less the time offset of {self.offset:g} s" if self.offset else ""
        for event, stop in self._paired():
            start, end = event.time - self.offset, stop - self.offset
            if not 0 <= start <= end or end > borders[-1] + LEEWAY:
                raise DataError(
                    f"{self.where}: '{shown(event.behavior)}' from {start:.3f} to {end:.3f} s{offset} is "
                    f"outside of its media, which have {borders[-1]:.3f} s; check the observation in BORIS"
                )
            subject = "" if event.subject == NO_SUBJECT else event.subject
            who = {"label": event.behavior, "subject": subject}
            for name, (first, after) in zip(self.media, pairwise([*borders[:-1], math.inf]), strict=True):
                begin, last = max(start, first), min(end, after)
                if first <= start < after or begin < last:
                    origin = origin_in(event.comment.strip())
                    yield Bout(video=name, start=begin - first, end=last - first, origin=origin, **who)

    def observed(self, videos: VideoFinder) -> Iterator[tuple[str, Span]]:
        """Yield each file with its observed part."""
        start, end = self.interval
        borders = [0.0] * len(self.media) if self.interval == (0, 0) else self._borders(videos)
        for name, first in zip(self.media, borders, strict=False):
            yield name, (max(start - first, 0.0), min((end or math.inf) - first, LONGEST))

    def _paired(self) -> Iterator[tuple[Event, float]]:
        """Yield the first event of each state and point, and the time of its end."""
        running: dict[tuple[str, str, str], Event] = {}
        for event in sorted(self.events, key=lambda event: event.time):
            key = event.subject, event.behavior, event.modifiers
            if event.end is not None:
                yield event, event.end
            elif key in running and event.status != "START":
                yield running.pop(key), event.time
            elif key not in running and event.status != "STOP":
                running[key] = event
            else:  # a stop without a start, or a second start
                running = {key: event}
                break
        for event in running.values():
            done, missing = ("stopped", "started") if event.status == "STOP" else ("started", "stopped")
            problem = f"'{shown(event.behavior)}' is {done} at {event.time:.3f} s and not {missing}"
            raise DataError(f"{self.where}: {problem}; {FIX_UNPAIRED}")

    def _borders(self, videos: VideoFinder) -> list[float]:
        """When each file begins, and the end of the last, which is infinite if its length is not known."""
        lengths = [
            times.seconds if seconds is None and (times := videos.times(name)) is not None else seconds
            for name, seconds in zip(self.media, self.seconds, strict=True)
        ]
        if None in lengths[:-1]:
            raise DataError(
                f"{self.where}: has {len(self.media)} queued media, and times run on over them, but "
                f"the length of {shown(self.media[lengths.index(None)])} is not in the file; name the "
                "folder of the videos (--videos), or use the .boris project"
            )
        return [0.0, *accumulate(math.inf if length is None else length for length in lengths)]
