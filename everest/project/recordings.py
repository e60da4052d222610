"""Timelines of the test recordings of a project, scored against the bouts of a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from everest import functions
from everest.annotations.bout import Bout
from everest.config.heads import MULTI_LABEL
from everest.figures.timeline import draw_task_timeline, draw_timeline
from everest.inference.truth import drawn_bouts, read_truth, score_timelines
from everest.lists.sample import Sample
from everest.lists.stage import read_stage
from everest.models.classifier import VideoClassifier
from everest.project.request import write_document
from everest.system.events import Report, notice

TIMELINE: Final = "timeline.json"
SCORES: Final = ("frame_accuracy", "majority_accuracy", "mean_class_accuracy", "f1@50")
STEP: Final = 0.25  # of a window; docs/timelines.md
SMOOTHED: Final = (0.0, 1.0, 2.0)  # windows; our choice of those that are tried on the validation recordings
MOST_FIGURES: Final = 20


def score_recordings(
    model: VideoClassifier, folder: Path, annotations: str, window: float, report: Report
) -> dict[str, Any]:
    """Predict the recordings of the test list, and score them; writes timelines and figures into a folder.

    Args:
        window: seconds.
    Returns:
        The `SCORES`; `smooth`, the seconds over which probabilities are averaged; and `timeline`, the file.
    """
    smooth = window
    if model.recipe.data.val is not None:
        report(notice("timelines of the validation recordings, to choose how much to smooth"))
        tried = {}
        for seconds in (window * windows for windows in SMOOTHED):
            rows = timelines(model, "val", window, seconds, report)
            tried[seconds] = score(rows, annotations, report)[0]["frame_accuracy"]
        smooth = max(tried, key=lambda seconds: tried[seconds])
    report(notice(f"timelines of the test recordings, smoothed over {smooth:g} s"))
    rows = timelines(model, "test", window, smooth, report)
    scores, truth = score(rows, annotations, report)
    write_document(folder / TIMELINE, {**scores, "timelines": rows})
    for row in rows[:MOST_FIGURES]:
        if row["windows"] and row["video"] in truth:
            _draw(folder / f"{Path(row['video']).stem}.png", row, model, truth[row["video"]])
    return {key: scores[key] for key in SCORES} | {"smooth": smooth, "timeline": str(folder / TIMELINE)}


def timelines(
    model: VideoClassifier, key: str, window: float, smooth: float, report: Report
) -> list[dict[str, Any]]:
    """The windows and bouts of the recordings of a list; all that this room knows of timelines."""
    samples = read_stage(model.recipe.data, key, labeled=False).samples
    paths, step = list(dict.fromkeys(sample.path for sample in samples)), STEP * window
    return functions.predict_timeline(model, paths, window=window, step=step, smooth=smooth, report=report)


def score(
    rows: Sequence[dict[str, Any]], annotations: str, report: Report
) -> tuple[dict[str, Any], Mapping[str, Sequence[Bout]]]:
    """The metrics of timelines, and the bouts of a person for each recording."""
    samples = [Sample(path=row["video"]) for row in rows]
    truth, _ = read_truth(Path(annotations), [sample.path for sample in samples])
    return score_timelines(samples, rows, truth, report=report), truth


def _draw(path: Path, row: dict[str, Any], model: VideoClassifier, truth: Sequence[Bout]) -> None:
    """Draw the bouts of a person above those of the model."""
    begin, end = row["windows"][0]["start"], row["windows"][-1]["end"]
    bouts = {
        "ground truth": drawn_bouts(truth, model.class_names or (), begin, end),
        "prediction": row["bouts"],
    }
    title = Path(row["video"]).name
    if model.heads[0].task == MULTI_LABEL:
        heads = tuple(replace(model.heads[0], name=name) for name in bouts)
        draw_task_timeline(path, row["windows"], bouts, heads, title=title, aligned=True)
    else:
        draw_timeline(path, bouts, title=title, aligned=True)
