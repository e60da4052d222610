"""BORIS: its events and their bouts, and the tables that it exports, csv or tsv. `boris` reads its projects.

An event is a press of a key; two make a state and one a point. Times run on over the queued media of an
observation: a time after the end of the first file is in the second. They contain the time offset of the
observation.

A table has tabular events, a row an event, or aggregated events, a row a bout. Columns are found by their
names: independent variables of the user are columns in the middle, and the names and their order differ by
version. Version 7 begins a table of events with lines about the observation.

Source: projects saved by BORIS 7 to 9 (github.com/olivierfriard/BORIS, tests/files, and issue 468 on the
offset), and boris/export_observation.py there.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

from everest.annotations.bout import LONGEST, Bout, Span, origin_in
from everest.annotations.lines import fields_of, in_line, number_in, separator_of
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


ID: Final = "Observation id"
START: Final = "Start (s)"  # of aggregated events
STOP: Final = "Stop (s)"
OFFSET: Final = "Time offset (s)"
PLAYER: Final = "Player #1"  # other players show the same time from another camera
MEDIA: Final = ("Media file name", "Media file path", "Media file")  # of version 8 and 9, and of 7
UNPAIRED: Final = "UNPAIRED"  # the times of a state that is never stopped
NO_MEDIA: Final = frozenset({"", "NA", "Not found"})
# These columns are before the variables of the user, all others after them; a variable may have any name.
FIRST: Final = (ID, "Source", "Media duration (s)", OFFSET, "Media file path", "Media file")

STATUSES: Final[tuple[Status, ...]] = get_args(Status)
Cells = dict[str, str]  # of a row, by the names of the columns
Row = tuple[Cells, Event, float]  # with its stop, of an aggregated event


def has_columns(fields: Sequence[str]) -> bool:
    """Whether a line names the columns of one of both tables."""
    names = set(fields)
    return {"Behavior", START, STOP} <= names or (
        {"Behavior", "Time"} <= names and not names.isdisjoint(("Status", "Behavior type"))
    )


def read(path: Path, fps: float | None, videos: VideoFinder) -> list[Bout]:
    """Read the bouts of a table of events or of aggregated events."""
    text = path.read_text(encoding="utf-8-sig")
    separators = ((line, separator_of(line, has_columns)) for line in text.split("\n"))
    separator = next((each for line, each in separators if has_columns(fields_of(line, each))), ",")
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    lines = [(reader.line_num, fields) for fields in reader if any(fields)]
    begin = next((place for place, (_, fields) in enumerate(lines) if has_columns(fields)), None)
    if begin is None:
        raise ValueError("no line with the names of the columns")
    about = [fields for _, fields in lines[:begin] if len(fields) > 1 and fields[1]]
    general = {key: value for key, value, *_ in about if key in (ID, OFFSET)}
    names = lines[begin][1]
    places = {name: place for place, name in enumerate(names)}  # of equal names, the last
    places |= {name: names.index(name) for name in FIRST if name in names}
    by_observation: dict[str, list[Row]] = defaultdict(list)
    for number, fields in lines[begin + 1 :]:
        with in_line(number, fields, names):
            cells = general | {name: fields[at] for name, at in places.items()}
            by_observation[cells.get(ID, "")].append((cells, *_event(cells)))
    queue = tuple(name for key, name, *_ in about if key == PLAYER)
    bouts: list[Bout] = []
    for name, rows in by_observation.items():
        where = f"{path}, observation '{name}'"
        observation = _observation(rows, queue, name, where)
        if START in names:
            spans = ((event.time, stop, event) for _, event, stop in rows)
        else:
            spans = paired((event for _, event, _ in rows), where)
        for start, stop, event in spans:
            bouts += observation.bouts(start, stop, event, videos)
    return bouts


def _event(cells: Cells) -> tuple[Event, float]:
    """The event of a row, and its stop, which is its start in a table of events."""
    if UNPAIRED in (cells.get(START), cells.get(STOP)):
        raise ValueError(f"'{shown(cells['Behavior'])}' is {UNPAIRED}; {FIX_UNPAIRED}")
    start = number_in(cells[START if START in cells else "Time"])  # a variable of the user may be called Time
    stop = number_in(cells.get(STOP, str(start)))
    if not start <= stop <= LONGEST:
        raise ValueError(f"from {start:g} to {stop:g} s is no interval; fix it in BORIS")
    written = [cells[name] for name in ("Behavior type", "Status") if cells.get(name)]
    statuses: list[Status] = [each for each in STATUSES if each in written]
    if START not in cells and written and not statuses:
        raise ValueError(f"the status '{shown(written[-1])}' is not one of {', '.join(STATUSES)}")
    modifiers = "|".join(value for name, value in cells.items() if name.startswith("Modifier"))
    comment = cells.get("Comment", cells.get("Comment start", ""))
    status = statuses[0] if statuses else "POINT"
    return Event(start, status, cells["Behavior"], cells.get("Subject", ""), modifiers, comment), stop


def _observation(rows: Sequence[Row], queue: tuple[str, ...], name: str, where: str) -> Observation:
    """The media of an observation: stated in each row or before the table, else those that rows name."""
    first = rows[0][0]
    media, lengths = queue, ()
    if "Source" in first:  # `player #1:a.mp4;b.mp4|player #2:c.mp4`, and `12.000;10.000|22.000`
        media = tuple(first["Source"].split("|")[0].removeprefix("player #1:").split(";"))
        lengths = tuple(map(_number, first.get("Media duration (s)", "").split("|")[0].split(";")))
    column = next((name for name in MEDIA if name in first), "")
    named = [cells.get(column, "") for cells, event, _ in sorted(rows, key=lambda row: row[1].time)]
    media = tuple(file for file in media or dict.fromkeys(named) if file not in NO_MEDIA) or (name,)
    return Observation(
        where=where,
        media=media,
        seconds=lengths if len(lengths) == len(media) else (None,) * len(media),
        offset=_number(first.get(OFFSET, "")) or 0.0,
    )


def _number(text: str) -> float | None:
    """A number of a cell, or None if it has none, such as `NA`."""
    try:
        return number_in(text)
    except ValueError:
        return None
