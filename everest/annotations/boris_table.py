"""The tables that BORIS exports, csv or tsv: tabular events, a row an event, or aggregated, a row a bout.

Columns are found by their names: independent variables of the user are columns in the middle, and the names
and their order differ by version. Version 7 begins a table of events with lines about the observation.

Source: boris/export_observation.py of BORIS.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from everest.annotations.boris_events import (
    FIX_UNPAIRED,
    LEEWAY,
    Event,
    bouts_of,
    media_borders,
    observer_in,
)
from everest.annotations.bout import LONGEST, Bout
from everest.annotations.matching import VideoFinder
from everest.annotations.records import LeftOut
from everest.annotations.tables import in_line, number_in, read_table
from everest.errors import shown

ID: Final = "Observation id"
START: Final = "Start (s)"  # of aggregated events
STOP: Final = "Stop (s)"
OFFSET: Final = "Time offset (s)"
SOURCE: Final = "Source"  # `player #1:a.mp4;b.mp4|player #2:c.mp4`
LENGTHS: Final = "Media duration (s)"  # `12.000;10.000|22.000`
PLAYER: Final = "Player #1"  # other players show the same time from another camera
MEDIA: Final = ("Media file name", "Media file path", "Media file")  # of version 8 and 9, and of 7
UNPAIRED: Final = "UNPAIRED"  # the times of a state that is never stopped
NO_MEDIA: Final = frozenset({"", "NA", "Not found"})
# These columns are before the variables of the user, all others after them; a variable may have any name.
FIRST: Final = (ID, SOURCE, LENGTHS, OFFSET, "Media file path", "Media file")
STATUSES: Final = ("START", "STOP", "POINT")

PLAYER_PREFIX: Final = re.compile(r"^\s*player #\d+:")
KNOWN: Final = ("Behavior", "Subject", "Comment", "Modifiers")  # columns of no independent variable

Cells = dict[str, str]  # of a row, by the names of the columns


class Row(NamedTuple):
    """A row of a table."""

    cells: Cells
    event: Event
    file: str  # empty: it names none


def has_columns(cells: Sequence[str]) -> bool:
    """Whether a line names the columns of one of both tables."""
    names = set(cells)
    is_events = {"Behavior", "Time"} <= names and not names.isdisjoint(("Status", "Behavior type"))
    return is_events or {"Behavior", START, STOP} <= names


def read(path: Path, fps: float | None, videos: VideoFinder, left_out: LeftOut) -> Iterator[Bout]:
    """Read the bouts of a table of events or of aggregated events.

    Rows of one observation whose times cannot be of queued media, as in tables joined by hand, are of
    recordings of their own.
    """
    above, header, table_rows = read_table(path, has_columns)
    about = [(key, value) for key, value, *_ in (line for line in above if len(line) > 1) if value]
    general = {key: value for key, value in about if key in (ID, OFFSET)}
    places = {name: place for place, name in enumerate(header)}  # of equal names, the last
    places |= {name: header.index(name) for name in FIRST if name in header}
    column = next((title for title in MEDIA if title in places), "")
    by_recording: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for number, fields in table_rows:
        with in_line(number, fields, header):
            cells = general | {name: fields[place] for name, place in places.items()}
            event = _event(cells)
            file = cells.get(column, "").strip()
            row = Row(cells, event, "" if file in NO_MEDIA else file)
            if not (row.file or cells.get(ID)):
                raise ValueError("it names neither an observation nor a media file")
            left_out["modifier of an event"] += bool(event.modifiers.strip("| "))
            media = cells.get(SOURCE) or ("" if cells.get(ID) else row.file)
            by_recording[cells.get(ID, ""), media].append(row)
    left_out += Counter()  # drops what was not found
    for (name, _), rows in by_recording.items():
        rows.sort(key=lambda row: row.event.time)
        where = f"{path}, observation '{shown(name or rows[0].file)}'"
        yield from _bouts_of_recording(rows, about, videos, name=name, where=where)


def _bouts_of_recording(
    rows: Sequence[Row], about: Sequence[tuple[str, str]], videos: VideoFinder, *, name: str, where: str
) -> Iterator[Bout]:
    """Yield the bouts of the rows of one observation, or of one file that has none."""
    cells = rows[0].cells
    lengths: list[float | None] = []
    # Media are stated in each row or above the table, else as rows name them.
    media = [value for key, value in about if key == PLAYER]
    if cells.get(SOURCE):
        players = [PLAYER_PREFIX.sub("", text).split(";") for text in cells[SOURCE].split("|")]
        place = next((place for place, files in enumerate(players) if any(map(videos.find, files))), 0)
        media = players[place]
        parts = cells.get(LENGTHS, "").split("|")
        lengths = [_number(text) for text in parts[place].split(";")] if place < len(parts) else []
    is_stated = bool(media)
    media = [file for file in media or dict.fromkeys(row.file for row in rows) if file not in NO_MEDIA]
    media = media or [name]
    lengths = lengths if len(lengths) == len(media) else [None] * len(media)
    borders = media_borders(media, lengths, videos, where=where)
    variables = {key: value for key, value in cells.items() if key not in KNOWN}
    who = {"where": where, "offset": _number(cells.get(OFFSET, "")) or 0.0}
    who |= {"observer": observer_in(variables) or name}
    if is_stated or len(media) == 1 or _is_queue(rows, media, borders):
        yield from bouts_of([row.event for row in rows], media, borders, **who)
        return
    for file in media:
        events = [row.event for row in rows if row.file == file]
        yield from bouts_of(events, [file], media_borders([file], [None], videos, where=where), **who)


def _is_queue(rows: Sequence[Row], media: Sequence[str], borders: Sequence[float]) -> bool:
    """Whether each row has a time at which its file is played, if the media follow each other."""
    spans = dict(zip(media, pairwise([*borders[:-1], math.inf]), strict=True))
    return all(
        spans[row.file][0] - LEEWAY <= row.event.time <= spans[row.file][1] + LEEWAY
        for row in rows
        if row.file
    )


def _event(cells: Cells) -> Event:
    """The event of a row."""
    is_bout = START in cells  # a variable of the user may be called Time
    times = [cells[START], cells[STOP]] if is_bout else [cells["Time"]] * 2
    if UNPAIRED in times:
        raise ValueError(f"'{shown(cells['Behavior'])}' is {UNPAIRED}; {FIX_UNPAIRED}")
    start, end = map(number_in, times)
    if not start <= end <= LONGEST:
        raise ValueError(f"from {start:g} to {end:g} s is no interval; fix it in BORIS")
    statuses = [cells[name] for name in ("Behavior type", "Status") if cells.get(name)]
    status = next((known for known in STATUSES if known in statuses), "" if statuses else "POINT")
    if not status and not is_bout:
        raise ValueError(f"the status '{shown(statuses[-1])}' is not one of {', '.join(STATUSES)}")
    return Event(
        time=start,
        end=end if is_bout or status == "POINT" else None,
        behavior=cells["Behavior"],
        subject=cells.get("Subject", ""),
        modifiers="|".join(value for name, value in cells.items() if name.startswith("Modifier")),
        comment=cells.get("Comment", cells.get("Comment start", "")),
        status=status,
    )


def _number(text: str) -> float | None:
    """A number of a cell, or None if it has none, such as `NA`."""
    try:
        return number_in(text)
    except ValueError:
        return None
