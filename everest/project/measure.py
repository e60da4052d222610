"""The accuracy of a trained model beside chance, the most frequent class, and a linear model of small images.

N videos, C channels, T frames, H W pixels, P places of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from everest import functions
from everest.checkpoints.describe import load_model
from everest.config.best import MEASURED_BY
from everest.data.clip_format import ClipFormat
from everest.data.stages import labeled_samples
from everest.errors import RecipeError
from everest.lists.sample import Sample
from everest.lists.stage import read_stage
from everest.metrics.metrics import measure
from everest.metrics.names import METRICS
from everest.metrics.predicted import Predictions, label_array
from everest.models.classifier import VideoClassifier
from everest.probes.baselines import difference_image
from everest.probes.probe import LINEAR
from everest.project.request import REPORT
from everest.system.events import Report, notice
from everest.video.stream import VideoError

SIDE: Final = 16  # rows and columns of an image
MOST_VIDEOS: Final = 4000  # our choice: of a list that the linear model reads, spread over it
PREDICTIONS: Final = "predictions.csv"


def measure_model(run: Path, folder: Path, report: Report) -> dict[str, Any]:
    """Evaluate a run on its test list, and a linear model next to it; writes the page into `folder`.

    Returns:
        The metric of the task by its name, in percent unless it is an error of numbers: `interval` of 95 %,
        `chance`, `majority` (always the most frequent class of the test list, `majority_class`), and
        `linear_pixels`. None stands for what a task or a list does not have.
    """
    model = open_classifier(run)
    page = folder / REPORT
    found = functions.evaluate(
        model, page=page, predictions=page / PREDICTIONS, overwrite=True, report=report
    )
    if len(model.heads) != 1:
        raise RecipeError(f"{run}: has several heads; `everest eval` measures them")
    metric = MEASURED_BY[model.heads[0].task]
    frequent = max(found.get("per_class", ()), key=lambda row: row["videos"], default=None)
    report(notice("logistic regression on small images, to compare with"))
    return {
        metric: found[metric],
        "metric": metric,
        "interval": found.get("intervals", {}).get(metric),
        "chance": found.get(METRICS[metric].chance or ""),
        "majority": found.get("majority_top1"),
        "majority_class": frequent["name"] if frequent and "majority_top1" in found else None,
        "linear_pixels": linear_pixels(model, metric, report),
        "videos": found["videos"],
        "groups": found["groups"],
        "skipped": found["skipped"],
        "report": found["report"],
        "checkpoint": found["checkpoint"],
    }


def open_classifier(run: Path) -> VideoClassifier:
    """The classifier of a run, on a GPU if there is one."""
    model = load_model(run)
    assert isinstance(model, VideoClassifier)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


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
    parts = [_images(samples, model.clip, report) for samples in (train, val, test)]
    learned, tested = parts[0] | parts[1], parts[2]
    labels = label_array([sample.labels[0] for sample in learned], head)
    if not tested or len(np.unique(labels, axis=0)) < 2:
        return None
    held = np.array([sample in parts[1] for sample in learned])
    outputs, _ = LINEAR[head.task](
        np.stack(list(learned.values())),
        labels,
        np.stack(list(tested.values())),
        head,
        seed=recipe.train.seed,
        chosen_on=held if held.any() else None,
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
    chosen = samples[:: -(-len(samples) // MOST_VIDEOS) or 1]
    images = {}
    for number, sample in enumerate(chosen, start=1):
        try:
            frames = clip.read(sample)[None]  # (1, C, T, H, W)
        except VideoError as error:
            report(notice(f"skipped {error}"))
            continue
        images[sample] = torch.cat([mean_image(frames), difference_image(frames, SIDE)], dim=1)[0].numpy()
        report({"event": "video", "done": number, "videos": len(chosen)})
    return images


def mean_image(clips: Tensor) -> Tensor:
    """The mean over the frames of clips (B, C, T, H, W) uint8, as small gray images (B, P)."""
    return F.adaptive_avg_pool2d(clips.float().mean(dim=(1, 2)), SIDE).flatten(1)
