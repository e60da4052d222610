"""The observations of BORIS: their events, which are paired to bouts, and their media.

An event is a press of a key; two make a state and one a point. Times run on over the queued media of an
observation: a time after the end of the first file is in the second. They contain the time offset of the
observation.

Source: projects saved by BORIS 7 to 9 (github.com/olivierfriard/BORIS, tests/files, and issue 468 on the
offset).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from everest.annotations.bout import ORIGINS, Bout, origin_in
from everest.annotations.matching import VideoFinder
from everest.annotations.records import LeftOut
from everest.errors import DataError, shown

LEEWAY: Final = 1.0  # seconds after the end of the media: lengths are rounded, and players stop late
FIX_UNPAIRED: Final = "fix it in BORIS (Observations, Fix unpaired events)"
NO_SUBJECT: Final = "No focal subject"
OBSERVER_KEYS: Final = ("observer", "coder", "rater", "annotator", "scorer", "observer name")


class Event(NamedTuple):
    """A coded event."""

    time: float
    end: float | None  # of a point, or of a bout in a table; None: of a state, whose stop is another event
    behavior: str
    subject: str
    modifiers: str = ""
    comment: str = ""
    status: str = ""  # START or STOP of a state; empty: every second event is its stop

    def count_left_out(self, left_out: LeftOut) -> None:
        """Count the modifiers and the comment, which no bout has; comments may hold an origin."""
        left_out += LeftOut(
            {
                "modifier of an event": any(
                    part not in ("", "None", "NA") for part in self.modifiers.split("|")
                ),
                "comment of an event": self.comment.strip() not in ("", "NA", *ORIGINS),
            }
        )


class Observation(NamedTuple):
    """What an observation shows in the player of the user's videos."""

    where: str  # file and name of the observation, for messages
    observer: str
    media: Sequence[str]  # queued
    borders: Sequence[float]  # of the media; see `media_borders`
    offset: float  # seconds that are part of the times of the events
    sets_time: bool = True  # is the first player, whose time is that of the events


def player_of(players: Mapping[str, Sequence[str]], videos: VideoFinder) -> str:
    """The key of the first player that shows videos of the user; of the first player, if none does."""
    keys = sorted(players)
    return next((key for key in keys if any(map(videos.find, players[key]))), keys[0])


def observer_in(variables: Mapping[str, object]) -> str:
    """The observer that an independent variable names, such as `Observer`; empty if none does."""
    named = {name.strip().casefold(): value for name, value in variables.items()}
    return next((str(named[key]).strip() for key in OBSERVER_KEYS if named.get(key)), "")


def media_borders(
    media: Sequence[str], lengths: Sequence[float | None], videos: VideoFinder, *, where: str
) -> list[float]:
    """When each of the queued media begins, and the end of the last, which is infinite if it is not known.

    Args:
        lengths: seconds of the media; None: not stated.
        where: file and name of the observation, for messages.
    """
    seconds = [
        times.seconds if length is None and (times := videos.times(name)) is not None else length
        for name, length in zip(media, lengths, strict=True)
    ]
    if None in seconds[:-1]:
        raise DataError(
            f"{where}: has {len(media)} queued media, and times run on over them, but the length of "
            f"{shown(media[seconds.index(None)])} is not in the file; name the folder of the videos "
            "(--videos), or use the .boris project"
        )
    return [0.0, *accumulate(math.inf if length is None else length for length in seconds)]


def bouts_of(events: Sequence[Event], recording: Observation, left_out: LeftOut) -> Iterator[Bout]:
    """Yield the bouts of states and points in the files shown then: one for each file that they touch."""
    media, borders, offset = recording.media, recording.borders, recording.offset
    less_offset = f" less the time offset of {offset:g} s" if offset else ""
    for event in events:
        event.count_left_out(left_out)
    for event, stop in _paired(events, recording.where):
        start, end = event.time - offset, stop - offset
        if not recording.sets_time:  # these media may begin later, and end sooner
            start, end = max(start, 0.0), min(end, borders[-1])
            if not start <= end:
                left_out["bout outside the media of the player"] += 1
                continue
        if not 0 <= start <= end or end > borders[-1] + LEEWAY:
            what = f"'{shown(event.behavior)}' from {start:.3f} to {end:.3f} s{less_offset}"
            raise DataError(
                f"{recording.where}: {what} is outside of its media, which have {borders[-1]:.3f} s; "
                "check the observation in BORIS"
            )
        subject = "" if event.subject == NO_SUBJECT else event.subject
        who = {"label": event.behavior, "subject": subject, "observer": recording.observer}
        for name, (begin, after) in zip(media, pairwise([*borders[:-1], math.inf]), strict=True):
            first, last = max(start, begin), min(end, after)
            if begin <= start < after or first < last:
                origin = origin_in(event.comment.strip())
                yield Bout(video=name, start=first - begin, end=last - begin, origin=origin, **who)


def _paired(events: Sequence[Event], where: str) -> Iterator[tuple[Event, float]]:
    """Yield the first event of each state and point, and the time of its end."""
    running: dict[tuple[str, str, str], Event] = {}
    for event in sorted(events, key=lambda event: event.time):
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
        raise DataError(f"{where}: {problem}; {FIX_UNPAIRED}")
