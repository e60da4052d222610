"""Tables exported by BORIS (csv, tsv): tabular events, one per row, or aggregated events, one bout per row.

Columns are found by name: the user's independent variables are columns in the middle, and the names and their
order differ by version. Version 7 begins a table of events with lines about the observation.

Source: boris/export_observation.py of BORIS.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Final, NamedTuple

from everest.errors import shorten
from everest_workflows.annotations.boris import (
    END_LEEWAY,
    FIX_UNPAIRED,
    NO_FOCAL_SUBJECT,
    Event,
    Observation,
    choose_player,
    find_observer,
    make_bouts,
    media_borders,
)
from everest_workflows.annotations.bout import LATEST_TIME, Bout
from everest_workflows.annotations.matching import VideoFinder
from everest_workflows.annotations.records import LeftOut, line_errors, read_number, read_table

ID: Final = "Observation id"
START: Final = "Start (s)"  # column of aggregated events
STOP: Final = "Stop (s)"
KIND: Final = "Observation type"  # `Media file(s)`, `Live observation`, or another for pictures
OFFSET: Final = "Time offset (s)"
SOURCE: Final = "Source"  # `player #1:a.mp4;b.mp4|player #2:c.mp4`
LENGTHS: Final = "Media duration (s)"  # `12.000;10.000|22.000`
PLAYER_PREFIX: Final = "Player #"  # all players play at the same time, such as several cameras
MEDIA_COLUMNS: Final = ("Media file name", "Media file path", "Media file")  # names in versions 8, 9 and 7
UNPAIRED: Final = "UNPAIRED"  # in place of the times of a state that is never stopped
NO_NAMES: Final = frozenset({"", "NA", "Not found"})
# These columns precede the variables of the user, other columns follow; a variable may have any name.
LEADING_COLUMNS: Final = (ID, KIND, SOURCE, LENGTHS, OFFSET, "Media file path", "Media file")
STATUSES: Final = ("START", "STOP", "POINT")
NAMED_PLAYER: Final = re.compile(r"\A\s*(player #\d+):", re.IGNORECASE)

Cells = dict[str, str]  # the cells of a row by the names of the columns


class Row(NamedTuple):
    cells: Cells
    event: Event
    file: str  # empty if the row names no file


def is_header(cells: Sequence[str]) -> bool:
    """Whether a line is the header of a table of events or of aggregated events."""
    names = set(cells)
    is_events = {"Behavior", "Time"} <= names and not names.isdisjoint(("Status", "Behavior type"))
    return is_events or {"Behavior", START, STOP} <= names


def read(path: Path, fps: float | None, videos: VideoFinder, left_out: LeftOut) -> Iterator[Bout]:
    """Read the bouts of a table of events or of aggregated events.

    If the times of an observation do not fit its queued media, as in tables joined by hand, each media file
    is a separate recording.
    """
    above, header, table_rows = read_table(path, is_header)
    info = [(key, value) for key, value, *_ in (line for line in above if len(line) > 1) if value]
    shared_cells = {key: value for key, value in info if key in (ID, OFFSET) or find_observer({key: value})}
    players = defaultdict(list)
    for key, value in info:
        if key.startswith(PLAYER_PREFIX):
            players[key].append(value)
    column_ids = {name: column_id for column_id, name in enumerate(header)}  # the last of equal names counts
    column_ids |= {name: header.index(name) for name in LEADING_COLUMNS if name in header}
    column = next((title for title in MEDIA_COLUMNS if title in column_ids), "")
    rows_by_observation: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for line_number, fields in table_rows:
        with line_errors(line_number, fields, header):
            cells = shared_cells | {name: fields[column_id].strip() for name, column_id in column_ids.items()}
            name, file, observer = _find_name(cells, ID), _find_name(cells, column), find_observer(cells)
            if not (file or name):
                raise ValueError("it names neither an observation nor a media file")
        kind = _find_name(cells, KIND)
        is_read = kind.startswith("Media") or (kind.startswith("Live") and not videos.videos)
        if kind and not file and not is_read:
            left_out[f"row of '{shorten(name)}' ({kind}), which has no video"] += 1
            continue
        media = [*chain(*_media_by_player(cells, players).values())] or [file or name]
        with left_out.reading(f"line {line_number}", media, observer or name) as record:
            record.subject = cells.get("Subject", "").removeprefix(NO_FOCAL_SUBJECT)
            row = Row(cells, _make_event(cells), file)
            source = _find_name(cells, SOURCE) or ("" if name else file)
            rows_by_observation[name, source, observer].append(row)
    for (name, _, observer), rows in rows_by_observation.items():
        rows.sort(key=lambda row: row.event.time)
        by_player = _media_by_player(rows[0].cells, players)
        files = dict.fromkeys(row.file for row in rows if row.file)
        media = [*chain(*by_player.values())] or [*files] or [name]
        where = f"observation '{shorten(name or rows[0].file)}'"
        with left_out.reading(where, media, observer or name):
            parts = _divide_rows(rows, by_player, videos, left_out, name=name, where=where)
            for observation, events in parts:
                yield from make_bouts(events, observation._replace(observer=observer or name), left_out)


def _media_by_player(cells: Cells, players: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The named media of each player: of the column Source, else those stated above the table."""
    stated = dict(players)
    if source := _find_name(cells, SOURCE):  # the key of players without a name is ""
        named_media = map(NAMED_PLAYER.split, source.split("|"))
        stated = {"".join(player): media.split(";") for *player, media in named_media}
    return {key: [name for name in media if name not in NO_NAMES] for key, media in stated.items()}


def _divide_rows(
    rows: Sequence[Row],
    players: Mapping[str, Sequence[str]],
    videos: VideoFinder,
    left_out: LeftOut,
    *,
    name: str,
    where: str,
) -> Iterator[tuple[Observation, list[Event]]]:
    """Yield the recordings of one observation, or of a file without one, each with its events.

    The media are those of the stated player, otherwise the files that the rows name.
    """
    cells, events = rows[0].cells, [row.event for row in rows]
    lengths_of = dict(zip(players, cells.get(LENGTHS, "").split("|"), strict=False))
    row_files = list(dict.fromkeys(row.file for row in rows if row.file))
    media, player, first = row_files or [name], "", ""
    if players := {key: named for key, named in players.items() if named}:
        player, first = choose_player(players, videos, left_out), min(players)
        media = players[player]
    lengths = [_parse_number(text) for text in lengths_of.get(player, cells.get(LENGTHS, "")).split(";")]
    lengths = lengths if len(lengths) == len(media) else [None] * len(media)
    borders = media_borders(media, lengths, videos)
    offset = _parse_number(cells.get(OFFSET, "")) or 0.0
    # If the media are played one after the other, the file of a row may not be playing at the row's time.
    spans = dict(zip(media, pairwise([*borders[:-1], math.inf]), strict=True))
    wrong = None
    for row in rows:
        start, end = spans.get(row.file, (0.0, math.inf))
        if not start - END_LEEWAY <= row.event.time - offset <= end + END_LEEWAY:
            wrong = wrong or row
    if wrong is None:
        is_alone = len(players) <= 1
        yield Observation(where, "", media, borders, offset, player == first, is_alone), events
        return
    if players or not all(row.file for row in rows):
        raise ValueError(
            f"at {wrong.event.time:g} s an event names {shorten(wrong.file)}, which its queue of "
            "media does not show then; remove the column Source, or use the .boris project"
        )
    for file in media:
        borders = media_borders([file], [None], videos)
        events = [row.event for row in rows if row.file == file]
        yield Observation(where, "", [file], borders, offset), events


def _find_name(cells: Cells, column: str) -> str:
    """The name in a cell; empty if the cell has none."""
    text = cells.get(column, "")
    return "" if text in NO_NAMES else text


def _make_event(cells: Cells) -> Event:
    is_bout = START in cells  # a variable of the user may be called Time
    times = [cells[START], cells[STOP]] if is_bout else [cells["Time"]] * 2
    if UNPAIRED in times:
        raise ValueError(f"'{shorten(cells['Behavior'])}' is {UNPAIRED}; {FIX_UNPAIRED}")
    start, end = map(read_number, times)
    if not start <= end <= LATEST_TIME:
        raise ValueError(f"from {start:g} to {end:g} s is no interval; fix it in BORIS")
    if not cells["Behavior"]:
        raise ValueError("it names no behavior")
    statuses = [cells[name].upper() for name in ("Behavior type", "Status") if cells.get(name)]
    status = next((known for known in STATUSES if known in statuses), "" if statuses else "POINT")
    if not status and not is_bout:
        raise ValueError(f"the status '{shorten(statuses[-1])}' is not one of {', '.join(STATUSES)}")
    return Event(
        time=start,
        end=end if is_bout or status == "POINT" else None,
        behavior=cells["Behavior"],
        subject=cells.get("Subject", ""),
        modifiers="|".join(value for name, value in cells.items() if name.startswith("Modifier")),
        comment=cells.get("Comment", cells.get("Comment start", "")),
        status=status,
    )


def _parse_number(text: str) -> float | None:
    """The number in a cell, or None if the cell has no number, such as `NA`."""
    try:
        return read_number(text)
    except ValueError:
        return None
