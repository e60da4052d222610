"""Supervised fine-tuning of a pre-trained encoder on the tokens that say something."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from everest.build import classifier_spec
from everest.checkpoint import Weights, read_weights
from everest.clips import finetune_clips, validation_clips
from everest.data.datasets import Clip, VideoClips
from everest.data.mixing import mix
from everest.data.transforms import erase
from everest.evaluate import accuracies, score_videos
from everest.load import start_from
from everest.models.classifier import VideoClassifier
from everest.pixels import normalise
from everest.run_folder import RunFolder
from everest.settings import FinetuneSettings, Recipe
from everest.setup import set_up_training
from everest.training import Report, Training


def set_up_finetuning(
    recipe: Recipe, run: RunFolder, *, init: Path | None, cpu: bool, report: Report
) -> tuple[Training, VideoClips | None]:
    """Everything up to the first step, and the validation set if `data.val` names one.

    Args:
        init: weights whose encoder the classifier starts from; None starts from scratch.
    Raises:
        UserError: everest.errors tells which.
    """
    clips, classes = finetune_clips(recipe)
    spec = classifier_spec(recipe, num_classes=classes.count)
    notify: Callable[[str], None] = lambda text: report({"event": "notice", "text": text})  # noqa: E731
    start = (
        partial(start_from, spec=spec, weights=read_weights(init), source=init, notify=notify)
        if init
        else None
    )
    weights = Weights(kind=spec.kind, settings=spec.dump(), classes=classes.names, recipe=recipe.name, step=0)
    training = set_up_training(
        recipe, recipe.finetune, spec, weights, clips, run, cpu=cpu, report=report, start=start
    )
    return training, validation_clips(recipe, classes)


def classification_loss(training: Training, clip: Clip, settings: FinetuneSettings) -> Tensor:
    """Cross-entropy with soft targets of a batch on the device, after erasing, mixup and cutmix."""
    model = training.trained_model
    assert isinstance(model, VideoClassifier)
    rng = training.rng()
    device = clip.frames.device
    noise = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
    frames = erase(normalise(clip.frames.flatten(0, 1)), clip.erase.flatten(0, 1), generator=noise)
    frames, targets = mix(
        frames,  # (B, 3, T, H, W)
        clip.label[:, 0],
        num_classes=model.num_classes,
        smoothing=settings.label_smoothing,
        mixup=settings.mixup,
        cutmix=settings.cutmix,
        rng=rng,
    )
    return F.cross_entropy(training.model(frames).float(), targets)


def finetune(training: Training, settings: FinetuneSettings, validation: VideoClips | None) -> None:
    """Train to the end of the plan, going on from the newest state of the run if it has one.

    With a validation set every epoch ends with its accuracy, and the weights with the best are kept.

    Raises:
        UserError: everest.errors tells which; the run can be resumed.
    """
    training.resume()
    best = max((row["val_top1"] for row in training.run.rows() if "val_top1" in row), default=-1.0)
    training.model.train()
    for _ in training.steps():
        for clip in training.micro_batches():
            training.backward(classification_loss(training, clip, settings))
        training.update()
        if validation is not None and training.ends_epoch:
            top1 = validate(training, validation)
            if top1 > best:
                best = top1
                training.save_weights(training.run.best)


def validate(training: Training, clips: VideoClips) -> float:
    """Log the accuracy on one centre view of every validation video; returns top-1 in percent."""
    model = training.trained_model
    assert isinstance(model, VideoClassifier)
    workers = training.settings.workers
    scores = score_videos(model, clips, training.accelerator, workers=workers, report=lambda event: None)
    training.model.train()
    found = accuracies(scores)
    row = {"step": training.steps_done, "val_top1": found["top1"], "val_top5": found["top5"]}
    training.log(row)
    training.report({"event": "validation", **row})
    return found["top1"]
