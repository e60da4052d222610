"""Tables exported by BORIS, csv or tsv: tabular events, a row an event, and aggregated events, a row a bout.

Columns are found by their names: independent variables of the user are columns in the middle, and the names
and their order differ by version. Version 7 begins a table of events with lines about the observation.

Source: boris/export_observation.py and tests/files of github.com/olivierfriard/BORIS.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final, get_args

from everest.annotations.boris_events import (
    FIX_UNPAIRED,
    Event,
    Observation,
    Status,
    paired,
)
from everest.annotations.bout import LONGEST, Bout
from everest.annotations.lines import fields_of, in_line, number_in, separator_of
from everest.annotations.matching import VideoNames
from everest.errors import shown

ID: Final = "Observation id"
START: Final = "Start (s)"  # of aggregated events
PLAYER: Final = "Player #1"  # other players show the same time from another camera
MEDIA: Final = ("Media file name", "Media file path", "Media file")  # of version 8 and 9, and of 7
UNPAIRED: Final = "UNPAIRED"  # the times of a state that is never stopped
NO_MEDIA: Final = frozenset({"", "NA", "Not found"})
# These columns are before the variables of the user, all others after them; a variable may have any name.
FIRST: Final = (ID, "Source", "Media duration (s)", "Time offset (s)", "Media file path", "Media file")

Row = dict[str, str]


def has_columns(fields: Sequence[str]) -> bool:
    """Whether a line names the columns of one of both tables."""
    names = set(fields)
    return {"Behavior", START, "Stop (s)"} <= names or (
        {"Behavior", "Time"} <= names and not names.isdisjoint(("Status", "Behavior type"))
    )


def read(path: Path, fps: float | None, videos: VideoNames) -> list[Bout]:
    """Read the bouts of a table of events or of aggregated events."""
    text = path.read_text(encoding="utf-8-sig")
    found = ((line, separator_of(line, has_columns)) for line in text.split("\n"))
    separator = next((each for line, each in found if has_columns(fields_of(line, each))), ",")
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    lines = [(reader.line_num, fields) for fields in reader if any(fields)]
    begin = next((place for place, (_, fields) in enumerate(lines) if has_columns(fields)), None)
    if begin is None:
        raise ValueError("no line with the names of the columns")
    about = [fields for _, fields in lines[:begin] if len(fields) > 1 and fields[1]]
    names = lines[begin][1]
    places = {name: names.index(name) for name in names if name in FIRST}
    places |= {name: len(names) - 1 - names[::-1].index(name) for name in names if name not in FIRST}
    rows = []
    for number, fields in lines[begin + 1 :]:
        with in_line(number):
            rows.append(_row(fields, places, len(names)))
    general = {fields[0]: fields[1] for fields in about}
    queue = tuple(fields[1] for fields in about if fields[0] == PLAYER)
    bouts: list[Bout] = []
    for row in rows:
        row[ID] = row.get(ID) or general.get(ID, "")
    for name, group in groupby(sorted(rows, key=lambda row: row[ID]), key=lambda row: row[ID]):
        found = list(group)
        where = f"{path}, observation '{name}'"
        observation = _observation(found, queue, general.get("Time offset (s)", ""), where)
        for start, end, event in _bouts(found, where):
            bouts += observation.bouts(start, end, event, videos)
    return bouts


def _row(fields: Sequence[str], places: Mapping[str, int], count: int) -> Row:
    """The cells of a line; ValueError if one is missing, or if its times or its status are none."""
    if len(fields) < count:
        raise ValueError(f"it has {len(fields)} fields, and the header {count}")
    row = {name: fields[at] for name, at in places.items()}
    if UNPAIRED in (row.get(START), row.get("Stop (s)")):
        raise ValueError(f"'{shown(row['Behavior'])}' is {UNPAIRED}; {FIX_UNPAIRED}")
    start = _time(row)
    end = number_in(row["Stop (s)"]) if START in row else start
    if end < start:
        raise ValueError(f"its stop, {end:g} s, is before its start, {start:g} s; fix it in BORIS")
    if end > LONGEST:
        raise ValueError(f"the time {end:g} s is later than {LONGEST:.0f} s; fix it in BORIS")
    _status(row)
    return row


def _observation(rows: Sequence[Row], queue: tuple[str, ...], offset: str, where: str) -> Observation:
    """The media of an observation: stated in each row or before the table, else those that rows name."""
    first = rows[0]
    media, lengths = queue, ()
    if "Source" in first:  # `player #1:a.mp4;b.mp4|player #2:c.mp4`, and `12.000;10.000|22.000`
        source = first["Source"].split("|")[0].removeprefix("player #1:")
        media = tuple(name for name in source.split(";") if name not in NO_MEDIA)
        lengths = tuple(map(_number, first.get("Media duration (s)", "").split("|")[0].split(";")))
    named = [name for row in sorted(rows, key=_time) for name in [_media(row)] if name not in NO_MEDIA]
    media = media or tuple(dict.fromkeys(named)) or (rows[0][ID],)
    if len(lengths) != len(media):
        lengths = (None,) * len(media)
    return Observation(
        where=where,
        media=media,
        seconds=lengths,
        offset=_number(first.get("Time offset (s)", offset)) or 0.0,
    )


def _media(row: Row) -> str:
    return next((row[name] for name in MEDIA if name in row), "")


def _time(row: Row) -> float:
    return number_in(row[START if START in row else "Time"])  # a variable of the user may be called Time


def _number(text: str) -> float | None:
    """A number of a cell, or None if it has none, such as `NA`."""
    try:
        return number_in(text)
    except ValueError:
        return None


def _status(row: Row) -> Status:
    """Whether an event starts a state, stops it, or is a point, as a row of aggregated events is."""
    written = [row[name] for name in ("Behavior type", "Status") if row.get(name)]
    if START in row or not written:
        return "POINT"
    for status in get_args(Status):
        if status in written:
            return status
    raise ValueError(f"the status '{shown(written[-1])}' is not one of {', '.join(get_args(Status))}")


def _bouts(rows: Sequence[Row], where: str) -> Iterator[tuple[float, float, Event]]:
    """Yield start, end and first event of each bout."""
    events = []
    for row in rows:
        modifiers = "|".join(value for name, value in row.items() if name.startswith("Modifier"))
        event = Event(
            time=_time(row),
            status=_status(row),
            behavior=row["Behavior"],
            subject=row.get("Subject", ""),
            modifiers=modifiers,
            comment=row.get("Comment", row.get("Comment start", "")),
        )
        if START in row:
            yield event.time, number_in(row["Stop (s)"]), event
        else:
            events.append(event)
    yield from paired(events, where)
