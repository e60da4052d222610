"""The tables that BORIS exports, csv or tsv: tabular events, a row an event, or aggregated, a row a bout.

Columns are found by their names: independent variables of the user are columns in the middle, and the names
and their order differ by version. Version 7 begins a table of events with lines about the observation.

Source: boris/export_observation.py of BORIS.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from everest.annotations.boris_events import FIX_UNPAIRED, Event, bouts_of, media_borders
from everest.annotations.bout import LONGEST, Bout
from everest.annotations.matching import VideoFinder
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

Cells = dict[str, str]  # of a row, by the names of the columns


def has_columns(cells: Sequence[str]) -> bool:
    """Whether a line names the columns of one of both tables."""
    names = set(cells)
    is_events = {"Behavior", "Time"} <= names and not names.isdisjoint(("Status", "Behavior type"))
    return is_events or {"Behavior", START, STOP} <= names


def read(path: Path, fps: float | None, videos: VideoFinder) -> Iterator[Bout]:
    """Read the bouts of a table of events or of aggregated events."""
    above, header, table_rows = read_table(path, has_columns)
    about = [(key, value) for key, value, *_ in (line for line in above if len(line) > 1) if value]
    general = {key: value for key, value in about if key in (ID, OFFSET)}
    places = {name: place for place, name in enumerate(header)}  # of equal names, the last
    places |= {name: header.index(name) for name in FIRST if name in header}
    by_observation: dict[str, list[tuple[Cells, Event]]] = defaultdict(list)
    for number, fields in table_rows:
        with in_line(number, fields, header):
            cells = general | {name: fields[place] for name, place in places.items()}
            by_observation[cells.get(ID, "")].append((cells, _event(cells)))
    for name, rows in by_observation.items():
        rows.sort(key=lambda row: row[1].time)
        first_cells = rows[0][0]
        where = f"{path}, observation '{name}'"
        # Media are stated in each row or above the table, else as rows name them.
        media = [value for key, value in about if key == PLAYER]
        if SOURCE in first_cells:
            media = first_cells[SOURCE].split("|")[0].removeprefix("player #1:").split(";")
        column = next((title for title in MEDIA if title in first_cells), "")
        media = media or list(dict.fromkeys(cells.get(column, "") for cells, _ in rows))
        media = [file for file in media if file not in NO_MEDIA] or [name]
        lengths = [_number(text) for text in first_cells.get(LENGTHS, "").split("|")[0].split(";")]
        is_stated = SOURCE in first_cells and len(lengths) == len(media)
        borders = media_borders(media, lengths if is_stated else [None] * len(media), videos, where=where)
        offset = _number(first_cells.get(OFFSET, "")) or 0.0
        yield from bouts_of([event for _, event in rows], media, borders, where=where, offset=offset)


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
