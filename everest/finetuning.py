"""Supervised fine-tuning of a pre-trained encoder on the informative tokens of a clip."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from everest.checkpoints.load import open_encoder, start_from
from everest.config.settings import FinetuneSettings, Recipe
from everest.data.augment import mix
from everest.data.classes import empty_classes
from everest.data.crops import erase
from everest.data.dataset import Clip, VideoClips
from everest.data.stages import finetune_clips, validation_clips
from everest.errors import DivergedError
from everest.inference.accuracy import accuracies, refuse_too_many_skipped
from everest.inference.multi_view import evaluate_views
from everest.models.classifier import VideoClassifier
from everest.models.spec import classifier_spec
from everest.system.events import notice, silent
from everest.train.context import RunContext
from everest.train.health import stays_at_chance
from everest.train.setup import set_up_training
from everest.train.training import Training
from everest.video.pixels import normalize


def set_up_finetuning(
    recipe: Recipe, context: RunContext, *, init: Path | None
) -> tuple[Training, VideoClips | None]:
    """Prepare everything up to the first step.

    Args:
        init: weights whose encoder the classifier starts from; None starts from scratch.
    Returns:
        The training, and the validation set if `data.val` names one.
    Raises:
        UserError: the recipe, the data or the environment does not allow it; see everest.errors.
    """
    weights = None if init is None else open_encoder(init)  # first: reading the data may take minutes
    clips, classes = finetune_clips(recipe)
    for name in empty_classes(clips.samples, classes):
        context.report(notice(f"data.train has no video of class '{name}'"))
    validation = validation_clips(recipe, classes)
    spec = classifier_spec(recipe, num_classes=classes.count, heads=classes.heads)
    start = None
    if init is not None and weights is not None:
        notify = lambda text: context.report(notice(text))  # noqa: E731
        start = partial(start_from, spec=spec, weights=weights, source=init, notify=notify)
    training = set_up_training(
        recipe, recipe.finetune, spec, clips, context, classes=classes.names, start=start
    )
    return training, validation


def classification_loss(training: Training, clip: Clip, settings: FinetuneSettings) -> Tensor:
    """Cross-entropy with soft targets of a batch on the device, after erasing, mixup and cutmix.

    Ours: the mean over several heads, so that the learning rate need not follow their number.
    """
    model = training.state.trained_model
    assert isinstance(model, VideoClassifier)
    rng = training.rng()
    generator = torch.Generator(clip.frames.device).manual_seed(int(rng.integers(2**63)))
    frames = erase(normalize(clip.frames.flatten(0, 1)), clip.erase.flatten(0, 1), generator=generator)
    frames, targets = mix(
        frames,  # (B, 3, T, H, W)
        clip.label,
        num_classes=model.head_sizes,
        smoothing=settings.label_smoothing,
        mixup=settings.mixup,
        cutmix=settings.cutmix,
        rng=rng,
    )
    sizes = model.head_sizes
    noise = clip.noise.flatten(0, 1)  # (B, N), or (B, 0) if the selection draws nothing
    logits = training.model(frames, noise=noise if noise.size(1) else None).float()  # (B, classes)
    heads = zip(logits.split(sizes, dim=-1), targets.split(sizes, dim=-1), strict=True)
    losses = [F.cross_entropy(head_logits, head_targets) for head_logits, head_targets in heads]
    return torch.stack(losses).mean() if len(losses) > 1 else losses[0]


def finetune(training: Training, settings: FinetuneSettings, validation: VideoClips | None) -> None:
    """Train to the end of the plan.

    With a validation set, its accuracy is measured after every epoch and the best weights are kept.

    Raises:
        UserError: see everest.errors; the run can be resumed.
    """
    validated = {row["step"]: row["val_top1"] for row in training.run.rows() if "val_top1" in row}
    best = max(validated.values(), default=-1.0)
    training.model.train()
    with training.explain_out_of_memory():
        if validation is not None and training.ends_epoch and training.steps_done not in {0, *validated}:
            best = _validate(training, validation, best)  # the run was stopped between save and validation
        for _ in training.steps():
            for clip in training.micro_batches():
                training.backward([classification_loss(training, clip, settings)])
            training.update()
            if training.ends_epoch:
                _warn_at_chance(training, settings)
                if validation is not None:
                    training.save()  # first: a validation may take long, and may fail
                    best = _validate(training, validation, best)


def _validate(training: Training, clips: VideoClips, best: float) -> float:
    """Log the accuracy on one center view of every validation video, and keep the weights of a new best.

    Returns:
        The best `val_top1` so far.
    """
    model = training.state.trained_model
    assert isinstance(model, VideoClassifier)
    (predictions,) = evaluate_views(
        model, clips, training.accelerator, settings=training.settings, report=silent
    )
    training.model.train()
    for path, reason in predictions.skipped:
        training.notice(f"validation skips {path}: {reason}")
    refuse_too_many_skipped(predictions, training.bad_videos.max_bad)
    if not np.isfinite(predictions.probabilities).all():
        raise DivergedError(
            f"step {training.steps_done}: the outputs for the validation videos are not finite; lower "
            "base_lr or set train.clip_grad"
        )
    measured = accuracies(predictions)
    row: dict[str, Any] = {"step": training.steps_done}
    if "heads" in measured:
        row["val_top1"] = measured["action_top1"]  # videos with all heads right
        row |= {f"val_{name}_top1": head["top1"] for name, head in measured["heads"].items()}
    else:
        row |= {"val_top1": measured["top1"], "val_top5": measured["top5"]}
    if row["val_top1"] > best:  # before it is logged: a row without its weights could not be repaired
        training.state.save_weights(training.run.best, training.steps_done)
    training.log(row)
    training.report({"event": "validation", **row})
    return max(best, row["val_top1"])


def _warn_at_chance(training: Training, settings: FinetuneSettings) -> None:
    """Warn once, after the epoch that follows the warm-up, if nothing has been learned."""
    model, plan = training.state.trained_model, training.plan
    assert isinstance(model, VideoClassifier)
    due = training.steps_done == (settings.warmup_epochs + 1) * plan.steps_per_epoch
    if not due or settings.mixup or settings.cutmix:
        return
    losses = list(training.losses.finite)[-plan.steps_per_epoch :]
    warning = stays_at_chance(losses, model.head_sizes)
    if warning:
        training.notice(warning)
