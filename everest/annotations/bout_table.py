"""Plain tables of bouts, csv or tsv: `video,start,end,label`, and `origin` and `subject` if there are any.

`everest budget --draw` writes one with the column `window`, the exact length of its windows in seconds; the
rows that a person adds may end before it.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from everest.annotations.bout import ORIGINS, Bout, Bouts, origin_in
from everest.annotations.matching import VideoFinder, VideoTimes
from everest.annotations.tables import in_line, number_in, read_table
from everest.errors import DataError, shown

COLUMNS: Final = ("video", "start", "end", "label")
WINDOW: Final = "window"


def has_columns(cells: Sequence[str]) -> bool:
    """Whether a line names the columns of a table of bouts."""
    return set(COLUMNS) <= set(_names(cells))


def _names(cells: Sequence[str]) -> list[str]:
    return [cell.strip().lower() for cell in cells]


def read(path: Path, fps: float | None, videos: VideoFinder) -> list[Bout]:
    """Read a bout from each row with a label."""
    _, header, rows = read_table(path, has_columns)
    names = _names(header)
    bouts = []
    for number, cells in rows:
        if names[len(cells) :] == [WINDOW]:
            cells.append("")
        with in_line(number, cells, names):
            row = dict(zip(names, map(str.strip, cells), strict=False))
            if not row["label"]:
                continue
            if not row["video"]:
                raise ValueError("it names no video")
            origin = row.get("origin") or "manual"
            if origin not in ORIGINS:
                raise ValueError(f"the origin is '{origin}' and not one of {', '.join(ORIGINS)}")
            bouts.append(
                Bout(
                    video=row["video"],
                    start=number_in(row["start"]),
                    end=number_in(row["end"]),
                    label=row["label"],
                    origin=origin_in(origin),
                    subject=row.get("subject", ""),
                )
            )
    return bouts


def read_window_length(path: Path) -> float | None:
    """Read the column `window` of a table that `read` has read; None if it has no such column."""
    _, header, rows = read_table(path, has_columns)
    names = _names(header)
    if WINDOW not in names:
        return None
    place = names.index(WINDOW)
    texts = list(dict.fromkeys(cell for _, cells in rows for cell in cells[place : place + 1] if cell))
    with suppress(ValueError):
        (length,) = {float(text) for text in texts}
        if 0 < length < math.inf:
            return length
    raise DataError(
        f"{path}: the column '{WINDOW}' is {shown(', '.join(texts[:3]) or 'empty')}, not one length; keep it "
        "as --draw wrote it"
    )


def write(bouts: Bouts, times: Mapping[str, VideoTimes], classes: Sequence[str]) -> str:
    """A comma-separated table; times are the shortest decimals that are read back as the same numbers."""
    every = [bout for video_bouts in bouts.values() for bout in video_bouts]
    columns = [*COLUMNS, "origin", *(["subject"] if any(bout.subject for bout in every) else [])]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *([getattr(bout, name) for name in columns] for bout in every)])
    return text.getvalue()
