"""Timelines as text: bouts, alarms and scores for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from everest_cli.bout_files import agreement_lines


def format_bouts(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format a table of recordings, with a line per bout, or per window if numbers are predicted."""
    lines: list[str] = []
    for row in rows:
        lines.append(row["video"])
        bouts = row["bouts"] if isinstance(row["bouts"], dict) else {"": row["bouts"]}
        parts: list[tuple[float, float, str, str]] = []
        for head, head_bouts in bouts.items():
            for bout in head_bouts:
                name = f"{head} {bout['label'] or 'background'}"
                parts.append((bout["start"], bout["end"], name, f"{bout['probability']:.1%}"))
        parts += [
            (window["start"], window["end"], head, f"{predictions[0]['value']:.6g}")
            for window in row["windows"]
            for head, predictions in window.get("heads", {"": window.get("predictions", ())}).items()
            if "value" in predictions[0]
        ]
        for start, end, name, value in sorted(parts):
            lines.append(f"  {start:8.2f} to {end:8.2f} s  {value:>8}  {name.strip()}".rstrip())
        if "error" in row:
            lines.append(f"  {row['error']}")
    return "".join(f"{line}\n" for line in lines)


def format_alarms(document: Mapping[str, Any]) -> str:
    """Format the document of `find_alarms`: a line for each alarm, and one with their number per day."""
    alarms, (low, high) = document["list"], document["interval"]
    lines = [
        f"  ALARM  {alarm['time']:8.2f} s  {alarm['probability']:>8.1%}  {alarm['label']}  {alarm['video']}"
        for alarm in alarms
    ]
    day, low, high = (f"{float(f'{number:.3g}'):,g}" for number in (document["per_day"], low, high))
    count = f"{len(alarms)} in {document['hours']:.3g} hours, {day} per day (95 % interval {low} to {high})"
    lines.append(f"alarms at threshold {document['threshold']:.3g}: {count}")
    return "".join(f"{line}\n" for line in lines)


def format_scores(scores: Mapping[str, Any]) -> str:
    """Format the metrics of timelines in percent, with a line per class."""
    titles = {"frame_accuracy": "frame accuracy", "majority_accuracy": "most frequent class"}
    titles |= {"mean_class_accuracy": "class mean", "edit": "edit score", "f1@10": "F1@10"}
    titles |= {"f1@25": "F1@25", "f1@50": "F1@50", "map@0.5": "mAP@0.5"}
    lines = ["", "  percent", *(f"  {title:<22}{_format_cell(scores[key])}" for key, title in titles.items())]
    if short := ", ".join(f"'{name}' ({seconds:g} s)" for name, seconds in scores["too_short"].items()):
        lines.append(f"  left out of the class mean, with little truth: {short}")
    width = max(len(entry["name"]) for entry in [{"name": "class"}, *scores["classes"]])
    columns = ("frame F1", "AP@0.5", "true bouts", "predicted", "true s", "predicted s")
    lines += ["", f"  {'class':<{width}}" + "".join(f"  {name:>11}" for name in columns)]
    for entry in scores["classes"]:
        cells = [_format_cell(entry[key]) for key in ("f1", "ap@0.5")]
        cells += [f"{entry[of][unit]:g}" for unit in ("bouts", "seconds") for of in ("truth", "predicted")]
        lines.append(f"  {entry['name']:<{width}}" + "".join(f"  {cell:>11}" for cell in cells))
    lines += [line for document in scores.get("agreement", ()) for line in ("", *agreement_lines(document))]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _format_cell(percent: float | None) -> str:
    return f"{'-' if percent is None else f'{percent:.1f}':>6}"
