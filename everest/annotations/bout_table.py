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
from typing import TYPE_CHECKING, Final

from everest.annotations.bout import ORIGINS, Bout, Bouts, origin_in
from everest.annotations.lines import in_line, number_in, separator_of
from everest.annotations.matching import VideoFinder, VideoTimes
from everest.errors import DataError, shown

if TYPE_CHECKING:
    from _csv import Reader

COLUMNS: Final = ("video", "start", "end", "label")
WINDOW: Final = "window"


def has_columns(fields: Sequence[str]) -> bool:
    """Whether a line names the columns of a table of bouts."""
    return set(COLUMNS) <= {field.strip().lower() for field in fields}


def read(path: Path, fps: float | None, videos: VideoFinder) -> list[Bout]:
    """Read a bout from each row with a label."""
    header, rows = _table(path)
    bouts = []
    for fields in filter(any, rows):
        with in_line(rows.line_num):
            if len(fields) != len(header) and header[len(fields) :] != [WINDOW]:
                raise ValueError(f"it has {len(fields)} fields, and the header {len(header)}")
            row = dict(zip(header, map(str.strip, fields), strict=False))
            if not row["label"]:
                continue
            if not row["video"]:
                raise ValueError("it names no video")
            if (origin := row.get("origin") or "manual") not in ORIGINS:
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
    header, rows = _table(path)
    if WINDOW not in header:
        return None
    place = header.index(WINDOW)
    texts = list(dict.fromkeys(fields[place] for fields in rows if len(fields) > place and fields[place]))
    with suppress(ValueError):
        (length,) = {float(text) for text in texts}
        if 0 < length < math.inf:
            return length
    raise DataError(
        f"{path}: the column '{WINDOW}' is {shown(', '.join(texts[:3]) or 'empty')}, not one length; keep it "
        "as --draw wrote it"
    )


def _table(path: Path) -> tuple[list[str], Reader]:
    """The names of the columns, in lower case, and the rows below them."""
    text = path.read_text(encoding="utf-8-sig")
    rows = csv.reader(io.StringIO(text), delimiter=separator_of(text.partition("\n")[0], has_columns))
    return [field.strip().lower() for field in next(rows, [])], rows


def write(bouts: Bouts, times: Mapping[str, VideoTimes], classes: Sequence[str]) -> str:
    """A comma-separated table; times are the shortest decimals that are read back as the same numbers."""
    has_subjects = any(bout.subject for each in bouts.values() for bout in each)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, "origin", *(["subject"] if has_subjects else [])])
    for each in bouts.values():
        for bout in each:
            subject = [bout.subject] if has_subjects else []
            writer.writerow([bout.video, bout.start, bout.end, bout.label, bout.origin, *subject])
    return text.getvalue()
