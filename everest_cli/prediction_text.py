"""Predictions as text: a table, JSON, CSV, subtitles."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from typing import Any, Final

from everest.annotations.bout import BACKGROUND
from everest.annotations.subtitles import Cue, srt_text
from everest.system.json_text import json_text

Rows = list[dict[str, Any]]  # as everest.inference.predictions returns them

TIMES: Final = ("start", "end", "start_frame", "end_frame")
COLUMNS: Final = (
    *("video", *TIMES, "head", "rank", "label", "index", "probability", "present", "threshold", "value"),
    "error",
)


def by_head(bouts: Any) -> dict[str, Rows]:
    """Return the bouts of a video by head; the name of the only head is empty."""
    return bouts if isinstance(bouts, dict) else {"": bouts}


def with_bouts(rows: Rows) -> Rows:
    """Return the rows of a timeline with a window for each bout: its times, and its class as a prediction."""
    return [{**row, "windows": _bout_windows(row)} for row in rows]


def _bout_windows(row: dict[str, Any]) -> Rows:
    windows = []
    for head, bouts in by_head(row["bouts"]).items():
        for bout in bouts:
            prediction = {name: bout[name] for name in ("label", "index", "probability")}
            predictions = {"heads": {head: [prediction]}} if head else {"predictions": [prediction]}
            windows.append({**{name: bout[name] for name in TIMES}, **predictions})
    return sorted(windows, key=lambda window: window["start"])


def as_table(rows: Rows) -> str:
    """The classes of a video below each other; of a timeline a line per window.

    Multi-label classes are marked as present, or with the threshold that they do not reach.
    """
    lines: list[str] = []
    for row in rows:
        lines.append(row["video"])
        for window in row.get("windows", ()):
            answers = ", ".join(_short_text(name, part) for name, part in _predictions(window))
            lines.append(f"  {window['start']:8.2f} to {window['end']:8.2f} s  {answers}")
        if "windows" not in row:
            lines += [f"  {_line(name, part)}" for name, part in _predictions(row)]
        if "error" in row:
            lines.append(f"  {row['error']}")
    return "".join(f"{line}\n" for line in lines)


def scores_text(scores: dict[str, Any]) -> str:
    """The metrics of timelines in percent, and a line per class."""
    titles = {
        **{"frame_accuracy": "frame accuracy", "majority_accuracy": "most frequent class"},
        "edit": "edit score",
        **{f"f1@{k}": f"F1@{k}" for k in (10, 25, 50)},
        "map@0.5": "mAP@0.5",
    }
    lines = [
        "",
        f"  {'percent':<22}",
        *(f"  {title:<22}{_cell(scores[key])}" for key, title in titles.items()),
    ]
    width = max([len(entry["name"]) for entry in scores["classes"]] + [5])
    columns = ("frame F1", "AP@0.5", "true bouts", "predicted", "true s", "predicted s")
    lines += ["", f"  {'class':<{width}}" + "".join(f"  {name:>11}" for name in columns)]
    for entry in scores["classes"]:
        amounts = [entry[of][what] for what in ("bouts", "seconds") for of in ("truth", "predicted")]
        cells = [*(_cell(entry[key]) for key in ("f1", "ap@0.5")), *(f"{n:g}" for n in amounts)]
        lines.append(f"  {entry['name']:<{width}}" + "".join(f"  {cell:>11}" for cell in cells))
    return "".join(f"{line.rstrip()}\n" for line in lines)


def budget_text(document: dict[str, Any]) -> str:
    """The time budget of `everest budget`: a line for the seconds and for the bouts of each class."""
    lines = [
        f"{document['checked']} of {document['windows']} windows of {document['window']:g} s are checked",
        f"  {'class':<24}{'':<9}{'model':>10}{'checked':>10}{'estimate':>10}  95 % interval",
    ]
    for entry in document["classes"]:
        for what in ("seconds", "bouts"):
            row = entry[what]
            low, high = row["interval"]
            values = "".join(f"{row[key]:>10.1f}" for key in ("naive", "checked", "estimate"))
            lines.append(f"  {entry['name']:<24}{what:<9}{values}  {low:.1f} to {high:.1f}")
    return "".join(f"{line}\n" for line in lines)


def _cell(percent: float | None) -> str:
    return f"{'-' if percent is None else f'{percent:.1f}':>6}"


def as_json(rows: Rows) -> str:
    return json_text(rows, indent=2) + "\n"


def as_csv(rows: Rows) -> str:
    """A line per predicted class, number or unreadable video; columns that are always empty are left out."""
    lines: list[dict[str, Any]] = []
    for row in rows:
        for part in row.get("windows", [row]):
            times = {name: part[name] for name in TIMES if name in part}
            for head, predictions in _by_head(part).items():
                shared = {"video": row["video"], **times, **({"head": head} if head else {})}
                is_bout = "start_frame" in part  # with a single class
                for i, each in enumerate(predictions, start=1):
                    rank = {} if is_bout or "value" in each else {"rank": i}
                    present = {"present": int(each["present"])} if "present" in each else {}
                    lines.append({**shared, **rank, **each, **present})
        if "error" in row:
            lines.append({"video": row["video"], "error": row["error"]})
    columns = [name for name in COLUMNS if any(name in line for line in lines)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def as_srt(rows: Rows) -> str:
    """SubRip subtitles of a timeline. A window that overlaps the next is shown until that begins.

    Background has none, and neither has a window without a multi-label class.
    """
    (row,) = rows
    windows = row["windows"]
    cues = []
    for number, window in enumerate(windows):
        lines = [
            _subtitle(name, part)
            for name, part in _predictions(window)
            if part.get("present", True) and not ("label" in part and part["label"] is None)
        ]
        if not lines:
            continue
        overlaps = "start_frame" not in window  # bouts do not, of one head
        following = [after["start"] for after in windows[number + 1 : number + 2] if overlaps]
        end = min([window["end"], *following])
        cues.append(Cue(start=round(window["start"] * 1000), end=round(end * 1000), lines=tuple(lines)))
    return srt_text(cues)


def _by_head(part: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the predictions of a video or window by head; the name of the only head is empty."""
    return part.get("heads", {"": part.get("predictions", [])})


def _predictions(part: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the predictions of a video or window, each after its label and its head, if there are any."""
    for head, predictions in _by_head(part).items():
        for each in predictions:
            label = BACKGROUND if "label" in each and each["label"] is None else each.get("label", "")
            yield " ".join(filter(None, [head, label])), each


def _line(name: str, part: dict[str, Any]) -> str:
    """A prediction in a line of its own."""
    if "value" in part:
        return " ".join(filter(None, [name, f"{part['value']:.6g}"]))
    absent = "present" in part and not part["present"]
    mark = f" (below its threshold, {part['threshold']:.1%})" if absent else _mark(part)
    return f"{part['probability']:6.1%}  {name}{mark}"


def _short_text(name: str, part: dict[str, Any]) -> str:
    """A prediction among others in a line."""
    if "value" in part:
        return _line(name, part)
    percent = f"{part['probability']:.1%}"
    background = part["label"] is None
    return f"{name} (highest probability {percent})" if background else f"{percent} {name}{_mark(part)}"


def _mark(part: dict[str, Any]) -> str:
    return " (present)" if part.get("present") else ""


def _subtitle(name: str, part: dict[str, Any]) -> str:
    if "value" in part:
        return " ".join(filter(None, [name, f"{part['value']:.3g}"]))
    return f"{name} {part['probability']:.0%}"


TEXTS: Final[dict[str, Callable[[Rows], str]]] = {
    "table": as_table,
    "json": as_json,
    "csv": as_csv,
    "srt": as_srt,
}
