"""Predictions as text: a table, JSON, CSV, subtitles."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

Rows = list[dict[str, Any]]  # as everest.inference.predictions returns them

COLUMNS: Final = ("video", "start", "end", "head", "rank", "label", "index", "probability", "error")


def as_table(rows: Rows) -> str:
    """The classes of a video, one below the other; of a timeline a line for every window."""
    return "".join(f"{line}\n" for row in rows for line in _lines(row))


def as_json(rows: Rows) -> str:
    return json.dumps(rows, indent=2) + "\n"


def as_csv(rows: Rows) -> str:
    """A line per predicted class or unreadable video; columns that are always empty are left out."""
    lines = [line for row in rows for line in _csv_lines(row)]
    columns = [name for name in COLUMNS if any(name in line for line in lines)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def as_srt(rows: Rows) -> str:
    """SubRip subtitles of a timeline. A window that overlaps the next is shown until that begins."""
    (row,) = rows
    windows = row["windows"]
    starts = [window["start"] for window in windows[1:]]
    cues = []
    for number, (window, following) in enumerate(zip(windows, [*starts, float("inf")], strict=True), start=1):
        times = (window["start"], min(window["end"], following))
        shown = "\n".join(
            f"{_named(head, found)} {found['probability']:.0%}" for head, found in _found(window)
        )
        cues.append(f"{number}\n{' --> '.join(map(_stamp, times))}\n{shown}\n")
    return "\n".join(cues)


def _lines(row: dict[str, Any]) -> Iterator[str]:
    yield row["video"]
    for window in row.get("windows", ()):
        shown = ", ".join(
            f"{found['probability']:.1%} {_named(head, found)}" for head, found in _found(window)
        )
        yield f"  {window['start']:8.2f} to {window['end']:8.2f} s  {shown}"
    if "windows" not in row:
        yield from (f"  {found['probability']:6.1%}  {_named(head, found)}" for head, found in _found(row))
    if "error" in row:
        yield f"  cannot be read: {row['error']}"


def _csv_lines(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for part in row.get("windows", [row]):
        begin = {name: part[name] for name in ("start", "end") if name in part}
        for head, likely in _by_head(part).items():
            named = {"head": head} if head else {}
            for rank, found in enumerate(likely, start=1):
                yield {"video": row["video"], **begin, **named, "rank": rank, **found}
    if "error" in row:
        yield {"video": row["video"], "error": row["error"]}


def _by_head(part: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The classes rows of a video or window; the name of the only head is empty."""
    return part.get("heads", {"": part.get("predictions", [])})


def _found(part: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((head, found) for head, likely in _by_head(part).items() for found in likely)


def _named(head: str, found: dict[str, Any]) -> str:
    return f"{head} {found['label']}" if head else found["label"]


def _stamp(seconds: float) -> str:
    """hours:minutes:seconds,milliseconds"""
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    minutes, second = divmod(whole, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02},{thousandths:03}"


TEXTS: Final[dict[str, Callable[[Rows], str]]] = {
    "table": as_table,
    "json": as_json,
    "csv": as_csv,
    "srt": as_srt,
}
