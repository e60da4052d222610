"""Predictions as text: a table, JSON, CSV, subtitles."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from typing import Any, Final

from everest.system.json_text import json_text

Rows = list[dict[str, Any]]  # as everest.inference.predictions returns them

COLUMNS: Final = ("video", "start", "end", "head", "rank", "label", "index", "probability", "error")


def as_table(rows: Rows) -> str:
    """The classes of a video below each other; of a timeline a line per window."""
    lines: list[str] = []
    for row in rows:
        lines.append(row["video"])
        for window in row.get("windows", ()):
            classes = ", ".join(f"{part['probability']:.1%} {name}" for name, part in _predictions(window))
            lines.append(f"  {window['start']:8.2f} to {window['end']:8.2f} s  {classes}")
        if "windows" not in row:
            lines += [f"  {part['probability']:6.1%}  {name}" for name, part in _predictions(row)]
        if "error" in row:
            lines.append(f"  cannot be read: {row['error']}")
    return "".join(f"{line}\n" for line in lines)


def as_json(rows: Rows) -> str:
    return json_text(rows, indent=2) + "\n"


def as_csv(rows: Rows) -> str:
    """A line per predicted class or unreadable video; columns that are always empty are left out."""
    lines: list[dict[str, Any]] = []
    for row in rows:
        for part in row.get("windows", [row]):
            times = {name: part[name] for name in ("start", "end") if name in part}
            for head, predictions in _by_head(part).items():
                shared = {"video": row["video"], **times, **({"head": head} if head else {})}
                lines += [{**shared, "rank": i, **each} for i, each in enumerate(predictions, start=1)]
        if "error" in row:
            lines.append({"video": row["video"], "error": row["error"]})
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
    following = [*(window["start"] for window in windows[1:]), float("inf")]
    cues = []
    for number, (window, next_start) in enumerate(zip(windows, following, strict=True), start=1):
        times = f"{_stamp(window['start'])} --> {_stamp(min(window['end'], next_start))}"
        classes = "\n".join(f"{name} {part['probability']:.0%}" for name, part in _predictions(window))
        cues.append(f"{number}\n{times}\n{classes}\n")
    return "\n".join(cues)


def _by_head(part: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the predictions of a video or window by head; the name of the only head is empty."""
    return part.get("heads", {"": part.get("predictions", [])})


def _predictions(part: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the predictions of a video or window with their labels, after the head's name if there is one."""
    for head, predictions in _by_head(part).items():
        yield from ((f"{head} {each['label']}" if head else each["label"], each) for each in predictions)


def _stamp(seconds: float) -> str:
    """Format a time as hours:minutes:seconds,milliseconds."""
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    minutes, second = divmod(whole, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02},{thousandths:03}"


TEXTS: Final[dict[str, Callable[[Rows], str]]] = {
    "table": as_table,
    "json": as_json,
    "csv": as_csv,
    "srt": as_srt,
}
