"""Timelines of the test recordings of a project, scored against the bouts of a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from everest import functions
from everest.config.heads import MULTI_LABEL
from everest.figures.timeline import draw_task_timeline, draw_timeline
from everest.inference.truth import drawn_bouts, read_truth, score_timelines
from everest.lists.sample import Sample
from everest.lists.stage import read_stage
from everest.models.classifier import VideoClassifier
from everest.project.measure import open_classifier
from everest.project.request import REPORT, write_document
from everest.system.events import Report, notice, silent

TIMELINE: Final = "timeline.json"
SCORES: Final = ("frame_accuracy", "majority_accuracy", "mean_class_accuracy", "f1@50")
STEP: Final = 0.25  # of a window; docs/timelines.md
SMOOTHED: Final = (0.0, 1.0, 2.0)  # windows; our choice of those that are tried on the validation recordings
MOST_FIGURES: Final = 20


def score_recordings(
    run: Path, folder: Path, annotations: str, window: float, report: Report, *, draw: bool
) -> dict[str, Any]:
    """Predict the recordings of the test list, and score them; writes timelines and figures into the report.

    Args:
        window: seconds.
    Returns:
        The `SCORES`, `smooth`, the seconds over which probabilities are averaged, and `timeline`, the file.
    """
    model = open_classifier(run)
    tested, smooth = _recordings(model, "test"), window
    if model.recipe.data.val is not None:
        report(notice("timelines of the validation recordings, to choose how much to smooth"))
        held = _recordings(model, "val")
        truth, _ = read_truth(Path(annotations), [sample.path for sample in held])
        tried = {
            seconds: score_timelines(
                held, timelines(model, held, window, seconds, report), truth, report=silent
            )["frame_accuracy"]
            for seconds in (window * windows for windows in SMOOTHED)
        }
        smooth = max(tried, key=lambda seconds: tried[seconds])
    report(notice(f"timelines of the test recordings, smoothed over {smooth:g} s"))
    rows = timelines(model, tested, window, smooth, report)
    truth, _ = read_truth(Path(annotations), [sample.path for sample in tested])
    scores = score_timelines(tested, rows, truth, report=report)
    path = folder / REPORT / TIMELINE
    write_document(path, {**scores, "timelines": rows})
    for row, sample in zip(rows[: MOST_FIGURES if draw else 0], tested, strict=False):
        if row["windows"] and sample.path in truth:
            _draw(path.with_name(f"{Path(sample.path).stem}.png"), row, model, truth[sample.path])
    return {**{key: scores[key] for key in SCORES}, "smooth": smooth, "timeline": str(path)}


def timelines(
    model: VideoClassifier, samples: Sequence[Sample], window: float, smooth: float, report: Report
) -> list[dict[str, Any]]:
    """The windows and bouts of recordings; all that this room knows of timelines."""
    return functions.predict_timeline(
        model,
        [sample.path for sample in samples],
        window=window,
        step=STEP * window,
        smooth=smooth,
        report=report,
    )


def _recordings(model: VideoClassifier, key: str) -> list[Sample]:
    """The whole recordings of the windows of a list."""
    paths = dict.fromkeys(sample.path for sample in read_stage(model.recipe.data, key, labeled=False).samples)
    return [Sample(path=path) for path in paths]


def _draw(path: Path, row: dict[str, Any], model: VideoClassifier, truth: Sequence[Any]) -> None:
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
