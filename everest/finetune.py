"""Supervised fine-tuning of a pre-trained encoder on the tokens that say something."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from everest.checkpoints.load import open_weights, start_from
from everest.config.settings import FinetuneSettings, Recipe
from everest.data.augment import mix
from everest.data.classes import empty_classes
from everest.data.crops import erase
from everest.data.dataset import Clip, VideoClips
from everest.data.stages import finetune_clips, validation_clips
from everest.inference.accuracy import accuracies, refuse_too_many_skipped
from everest.inference.multi_view import score_videos
from everest.models.classifier import VideoClassifier
from everest.models.spec import classifier_spec
from everest.system.events import notice, silent
from everest.train.health import stays_at_chance
from everest.train.setup import RunContext, set_up_training
from everest.train.training import Training
from everest.video.pixels import normalize


def set_up_finetuning(
    recipe: Recipe, place: RunContext, *, init: Path | None
) -> tuple[Training, VideoClips | None]:
    """Everything up to the first step, and the validation set if `data.val` names one.

    Args:
        init: weights whose encoder the classifier starts from; None starts from scratch.
    Raises:
        UserError: everest.errors tells which.
    """
    clips, classes = finetune_clips(recipe)
    for name in empty_classes(clips.samples, classes):
        place.report(notice(f"data.train has no video of class '{name}'"))
    validation = validation_clips(recipe, classes)
    spec = classifier_spec(recipe, num_classes=classes.count, heads=classes.heads)
    start = None
    if init is not None:
        notify = lambda text: place.report(notice(text))  # noqa: E731
        start = partial(start_from, spec=spec, weights=open_weights(init), source=init, notify=notify)
    training = set_up_training(
        recipe, recipe.finetune, spec, clips, place, classes=classes.names, start=start
    )
    return training, validation


def classification_loss(training: Training, clip: Clip, settings: FinetuneSettings) -> Tensor:
    """Cross-entropy with soft targets of a batch on the device, after erasing, mixup and cutmix.

    Of several heads it is the mean, so that the learning rate need not follow their number; ours.
    """
    model = training.trained_model
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
    drawn = clip.noise.flatten(0, 1)  # (B, N), or nothing where nothing is drawn
    logits = training.model(frames, noise=drawn if drawn.size(1) else None).float()  # (B, classes)
    parts = zip(logits.split(sizes, dim=-1), targets.split(sizes, dim=-1), strict=True)
    losses = [F.cross_entropy(one, target) for one, target in parts]
    return torch.stack(losses).mean() if len(losses) > 1 else losses[0]


def finetune(training: Training, settings: FinetuneSettings, validation: VideoClips | None) -> None:
    """Train to the end of the plan.

    With a validation set every epoch ends with its accuracy, and the weights with the best are kept.

    Raises:
        UserError: everest.errors tells which; the run can be resumed.
    """
    validated = {row["step"]: row["val_top1"] for row in training.run.rows() if "val_top1" in row}
    best = max(validated.values(), default=-1.0)
    training.model.train()
    with training.explain_out_of_memory():
        if validation is not None and training.ends_epoch and training.steps_done not in {0, *validated}:
            best = _validate(training, validation, best)  # the run was ended between save and validation
        for _ in training.steps():
            for clip in training.micro_batches():
                training.backward(classification_loss(training, clip, settings))
            training.update()
            if training.ends_epoch:
                _warn_at_chance(training, settings)
                if validation is not None:
                    training.save()  # first: a validation may take long, and may fail
                    best = _validate(training, validation, best)


def _validate(training: Training, clips: VideoClips, best: float) -> float:
    """Log the accuracy on one centre view of every validation video; the weights of a new best are kept."""
    model = training.trained_model
    assert isinstance(model, VideoClassifier)
    scores = score_videos(model, clips, training.accelerator, settings=training.settings, report=silent)
    training.model.train()
    for path, reason in scores.skipped:
        training.notice(f"validation skips {path}: {reason}")
    refuse_too_many_skipped(scores, training.bad_videos.max_bad)
    found = accuracies(scores)
    judged = validation_row(found)
    if judged["val_top1"] > best:  # before it is logged: a row without its weights could not be mended
        training.save_weights(training.run.best)
    row = {"step": training.steps_done, **judged}
    training.log(row)
    training.report({"event": "validation", **row})
    return max(best, judged["val_top1"])


def validation_row(found: dict[str, Any]) -> dict[str, float]:
    """What metrics.jsonl says of accuracies; of several heads `val_top1` counts videos with all right."""
    if "heads" not in found:
        return {"val_top1": found["top1"], "val_top5": found["top5"]}
    return {
        "val_top1": found["action_top1"],
        **{f"val_{name}_top1": head["top1"] for name, head in found["heads"].items()},
    }


def _warn_at_chance(training: Training, settings: FinetuneSettings) -> None:
    """Say so once, after the epoch that follows the warm-up, when nothing has been learned."""
    model, plan = training.trained_model, training.plan
    assert isinstance(model, VideoClassifier)
    if (
        training.steps_done != (settings.warmup_epochs + 1) * plan.steps_per_epoch
        or settings.mixup
        or settings.cutmix
    ):
        return
    losses = training.recent_losses(plan.steps_per_epoch)
    told = stays_at_chance(losses, model.head_sizes)
    if told:
        training.notice(told)
