"""Accuracy of a model next to its baselines: chance, the most frequent class, and a linear model.

N videos, B clips, C channels, T frames, H W pixels, P places of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from everest import functions
from everest.checkpoints.describe import load_model
from everest.config.best import MEASURED_BY
from everest.data.clip_format import ClipFormat
from everest.data.stages import labeled_samples
from everest.lists.sample import Sample
from everest.lists.stage import read_stage
from everest.metrics.metrics import measure
from everest.metrics.names import METRICS
from everest.metrics.predicted import Predictions, label_array
from everest.models.classifier import VideoClassifier
from everest.probes.baselines import difference_image
from everest.probes.classifiers import linear
from everest.project.recordings import score_recordings
from everest.project.request import REPORT
from everest.system.events import Report, notice
from everest.video.stream import VideoError

SIDE: Final = 16  # rows and columns of an image
PREDICTIONS: Final = "predictions.csv"


def measure_run(
    run: Path, folder: Path, *, annotations: str | None, window: float | None, report: Report
) -> dict[str, Any]:
    """Evaluate a run on its test list, and a linear model next to it; writes a page into `folder`.

    Args:
        annotations: of the recordings of the list, whose timelines are measured, too.
        window: seconds, of recordings.
    Returns:
        The metric of the task by its name, in percent unless it is an error of numbers: `interval` of 95 %,
        `chance`, `majority` (always the most frequent class of the test list, `majority_class`), and
        `linear_pixels`. None stands for what a task or a list does not have.
    """
    model, page = load_model(run), folder / REPORT
    assert isinstance(model, VideoClassifier)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    predictions = page / PREDICTIONS
    found = functions.evaluate(model, page=page, predictions=predictions, overwrite=True, report=report)
    metric = MEASURED_BY[model.heads[0].task]
    majority, interval = found.get("majority_top1"), found.get("intervals", {}).get(metric)
    frequent = max(found.get("per_class", ()), key=lambda row: row["videos"], default={})
    report(notice("a linear model of small images, to compare with"))
    measured = {
        metric: found[metric],
        "metric": metric,
        "interval": None if interval is None or None in interval else interval,
        "chance": found[METRICS[metric].chance or ""],
        "majority": majority,
        "majority_class": None if majority is None else frequent["name"],
        "linear_pixels": linear_pixels(model, metric, report),
        **{key: found[key] for key in ("videos", "groups", "skipped", "report", "checkpoint")},
    }
    if annotations is not None and window is not None:
        measured |= score_recordings(model, page, annotations, window, report)
    return measured


def linear_pixels(model: VideoClassifier, metric: str, report: Report) -> float | None:
    """The metric of a linear model of the mean image and the mean change of the middle clip of each video.

    Its strength is chosen on the validation list, if there is one; it then learns from both lists. None if
    all readable videos have one class.
    """
    recipe, (head,) = model.recipe, model.heads
    train, test, classes = labeled_samples(recipe)
    val: Sequence[Sample] = ()
    if recipe.data.val is not None:
        val = read_stage(recipe.data, "val", labeled=True, classes=classes).samples
    learned, chosen_on, tested = (_images(samples, model.clip, report) for samples in (train, val, test))
    learned |= chosen_on
    labels = label_array([sample.labels[0] for sample in learned], head)
    if not tested or len(np.unique(labels, axis=0)) < 2:
        return None
    outputs = linear(
        np.stack(list(learned.values())),
        labels,
        np.stack(list(tested.values())),
        head,
        seed=recipe.train.seed,
        chosen_on=np.array([sample in chosen_on for sample in learned]) if chosen_on else None,
    )
    predictions = Predictions(
        videos=[sample.video_id for sample in tested],
        labels=[sample.labels for sample in tested],
        outputs=outputs[:, None],
        skipped=[],
        heads=(head,),
    )
    return measure(predictions)[metric]


def _images(samples: Sequence[Sample], clip: ClipFormat, report: Report) -> dict[Sample, NDArray[np.float32]]:
    """The images (2 P) of each readable video: its mean, and its mean change from frame to frame."""
    images = {}
    for number, sample in enumerate(samples, start=1):
        try:
            frames = clip.read(sample)[None]  # (1, C, T, H, W) uint8
        except VideoError as error:
            report(notice(f"skipped {error}"))
            continue
        mean = F.adaptive_avg_pool2d(frames.float().mean(dim=(1, 2)), SIDE).flatten(1)
        images[sample] = torch.cat([mean, difference_image(frames, SIDE)], dim=1)[0].numpy()
        report({"event": "video", "done": number, "videos": len(samples)})
    return images
