"""Timelines of the test recordings of a project, scored against the bouts of a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from everest import functions
from everest.annotations.bout import Bout
from everest.figures.timeline import draw_timelines
from everest.inference.bouts import BoutRules, Rows
from everest.inference.scores import read_truth, score_timelines
from everest.inference.timelines import Timelines
from everest.lists.stage import read_stage
from everest.models.classifier import VideoClassifier
from everest.system.events import Report, notice, silent

TIMELINE: Final = "timeline.safetensors"
FIGURE: Final = "timeline.png"
SCORES: Final = ("frame_accuracy", "majority_accuracy", "mean_class_accuracy", "f1@50")
STEP: Final = 0.25  # of a window; benchmarks/timelines.md
SMOOTHED: Final = (0.0, 1.0, 2.0)  # windows; our choice of those that are tried on the validation recordings


def score_recordings(
    model: VideoClassifier, folder: Path, annotations: str, window: float, report: Report
) -> dict[str, Any]:
    """Predict the recordings of the test list, and score them; writes their timelines and a figure.

    Args:
        window: seconds.
    Returns:
        The `SCORES`; `smooth`, the seconds over which probabilities are averaged; the `recordings`; and the
        files `timeline` and `figure`.
    """
    smooth = window
    if model.recipe.data.val is not None:
        report(notice("timelines of the validation recordings, to choose how much to smooth"))
        validated = _timelines(model, "val", window, report)
        tried = [window * windows for windows in SMOOTHED]
        smooth = max(tried, key=lambda seconds: _accuracy(validated, seconds, annotations))
    report(notice(f"timelines of the test recordings, smoothed over {smooth:g} s"))
    timelines = _timelines(model, "test", window, report)
    timelines.save(folder / TIMELINE)
    bouts = timelines.bouts(BoutRules(smooth=smooth))
    scores, truth = score(timelines, bouts, annotations, report)
    draw_timelines(folder / FIGURE, timelines, bouts, truth)
    files = {"timeline": str(folder / TIMELINE), "figure": str(folder / FIGURE)}
    recordings = [video.video for video in timelines.videos]
    return {key: scores[key] for key in SCORES} | {"smooth": smooth, "recordings": recordings, **files}


def score(
    timelines: Timelines, bouts: Sequence[dict[str, Rows]], annotations: str, report: Report
) -> tuple[dict[str, Any], Mapping[str, Sequence[Bout]]]:
    """The metrics of timelines, and the bouts of a person for each recording."""
    truth, _ = read_truth(Path(annotations), [video.path for video in timelines.videos])
    return score_timelines(timelines, bouts, truth, report=report), truth


def _accuracy(timelines: Timelines, smooth: float, annotations: str) -> float:
    """The share of right frames in percent."""
    bouts = timelines.bouts(BoutRules(smooth=smooth))
    return score(timelines, bouts, annotations, silent)[0]["frame_accuracy"]


def _timelines(model: VideoClassifier, key: str, window: float, report: Report) -> Timelines:
    """The timelines of the recordings of a list."""
    samples = read_stage(model.recipe.data, key, labeled=False).samples
    paths = list(dict.fromkeys(sample.path for sample in samples))
    return functions.timeline(model, paths, window=window, step=STEP * window, report=report)
