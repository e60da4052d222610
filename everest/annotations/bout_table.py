"""Plain tables of bouts, csv or tsv: `video,start,end,label`, perhaps `origin`, `subject`, `observer`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from everest.annotations.bout import ORIGINS, Bout, Bouts
from everest.annotations.matching import VideoFinder, VideoTimes
from everest.annotations.records import LeftOut
from everest.annotations.tables import in_line, number_in, read_table

COLUMNS: Final = ("video", "start", "end", "label")


def has_columns(cells: Sequence[str]) -> bool:
    """Whether a line names the columns of a table of bouts."""
    return {cell.strip().lower() for cell in cells}.issuperset(COLUMNS)


def read(path: Path, fps: float | None, videos: VideoFinder, left_out: LeftOut) -> Iterator[Bout]:
    """Read a bout from each row with a label."""
    _, header, rows = read_table(path, has_columns)
    names = [cell.strip().lower() for cell in header]
    for number, cells in rows:
        with in_line(number, cells, names):
            row = dict(zip(names, map(str.strip, cells), strict=False))
            if not row["label"]:
                left_out["row without a label"] += 1
                continue
            if not row["video"]:
                raise ValueError("it names no video")
            origin = row.get("origin") or "manual"
            if origin not in ORIGINS:
                raise ValueError(f"the origin is '{origin}' and not one of {', '.join(ORIGINS)}")
            start, end = number_in(row["start"]), number_in(row["end"])
            who = {name: row[name] for name in ("subject", "observer") if name in row}
            bout = Bout(video=row["video"], start=start, end=end, label=row["label"], origin=origin, **who)
        yield bout


def write(bouts: Bouts, times: Mapping[str, VideoTimes], classes: Sequence[str]) -> str:
    """A comma-separated table; times are the shortest decimals that are read back as the same numbers."""
    all_bouts = [bout for video_bouts in bouts.values() for bout in video_bouts]
    columns = [*COLUMNS, "origin"]
    columns += [name for name in ("subject", "observer") if any(getattr(bout, name) for bout in all_bouts)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *([getattr(bout, name) for name in columns] for bout in all_bouts)])
    return text.getvalue()
