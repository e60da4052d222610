"""Supervised fine-tuning of a pre-trained encoder on the informative tokens of a clip."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from everest.config.settings import Recipe
from everest.config.stage_settings import FinetuneSettings
from everest.data.augment import mix
from everest.data.classes import empty_classes, empty_classes_notice
from everest.data.crops import erase
from everest.data.dataset import Clip, VideoClips
from everest.data.stages import finetune_clips, validation_clips
from everest.errors import DivergedError
from everest.inference.accuracy import (
    Predictions,
    accuracies,
    chance_top1,
    mean_loss,
    refuse_too_many_skipped,
)
from everest.inference.multi_view import evaluate_views
from everest.models.classifier import VideoClassifier
from everest.models.of_recipe import classifier_spec
from everest.system.events import notice, silent
from everest.train.context import RunContext
from everest.train.health import FEWEST_STEPS, stays_at_chance
from everest.train.setup import set_up_training
from everest.train.training import Training
from everest.train.validations import Validations


def set_up_finetuning(recipe: Recipe, context: RunContext) -> tuple[Training, VideoClips | None]:
    """Prepare everything up to the first step.

    Returns:
        The training, and the validation set if `data.val` names one.
    Raises:
        UserError: the recipe, the data or the environment does not allow it; see everest.errors.
    """
    start = context.read_start()  # first: reading the data may take minutes
    clips, classes = finetune_clips(recipe)
    for name in empty_classes(clips.samples, classes):
        context.report(notice(f"data.train has no video of class '{name}'"))
    validation = validation_clips(recipe, classes)
    if validation is not None and (text := empty_classes_notice("val", validation.samples, classes)):
        context.report(notice(text))
    spec = classifier_spec(recipe, num_classes=classes.count, heads=classes.heads)
    if start is not None:
        spec = start.adapted(spec)
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
    frames = model.pixels.normalize(clip.frames.flatten(0, 1))  # (B, C, T, H, W)
    frames = erase(frames, clip.erase.flatten(0, 1), generator=generator)
    frames, targets = mix(
        frames,
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


def finetune(training: Training, settings: FinetuneSettings, clips: VideoClips | None) -> None:
    """Train to the end of the plan, or until `finetune.patience` ends the run.

    Args:
        clips: of the validation videos. The weights with the best accuracy on them are kept.
    Raises:
        UserError: see everest.errors; the run can be resumed.
    """
    validations = Validations(training.run.rows())
    training.model.train()
    with training.explain_out_of_memory():
        validated = training.steps_done in {0, *validations.steps}
        if clips is not None and training.at_checkpoint and not validated:
            _validate(training, clips, validations)  # the run was stopped between save and validation
        _end_early(training, settings, validations)
        for _ in training.steps():
            for clip in training.micro_batches():
                training.backward([classification_loss(training, clip, settings)])
            rows = training.update()
            validates = clips is not None and training.at_checkpoint
            if validates:
                rows += training.save()  # first: a validation may take long, and may fail
            for row in rows:
                validations.add(row)
                _warn_at_chance(training, settings, row["step"])
            if clips is not None and validates:
                _validate(training, clips, validations)
                _end_early(training, settings, validations)
    training.notice(_summary(training, validations, videos=0 if clips is None else len(clips)))


def _end_early(training: Training, settings: FinetuneSettings, validations: Validations) -> None:
    """End the run if its last `finetune.patience` validations brought nothing better."""
    if settings.patience is not None and validations.since_best >= settings.patience:
        reason = f"the last {settings.patience} validations brought nothing better"
        training.end(f"step {training.steps_done}: {reason}")


def _validate(training: Training, clips: VideoClips, validations: Validations) -> None:
    """Measure one center view of every validation video, log it, and keep new best weights."""
    model, plan, step = training.state.trained_model, training.plan, training.steps_done
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
            f"step {step}: the outputs for the validation videos are not finite; lower base_lr or set "
            "train.clip_grad"
        )
    row = {"step": step, **_validation_row(predictions)}
    if validations.add(row):  # before it is logged: a row without its weights could not be repaired
        training.state.save_weights(training.run.best, step)
    training.log(row)
    best = validations.best or row
    event = {
        "epoch": plan.epoch(step - 1),
        "epochs": plan.epochs,
        "steps": plan.steps,
        "train_loss": validations.train_loss,
        "chance": chance_top1(model.head_sizes),
        "best_top1": best["val_top1"],
        "best_step": best["step"],
    }
    training.report({"event": "validation", **event, **row})
    training.warn_once("overfitting", validations.overfits())


def _validation_row(predictions: Predictions) -> dict[str, float]:
    measured, loss = accuracies(predictions), {"val_loss": mean_loss(predictions)}
    if "heads" not in measured:
        return {"val_top1": measured["top1"], "val_top5": measured["top5"], **loss}
    heads = {f"val_{name}_top1": head["top1"] for name, head in measured["heads"].items()}
    return {"val_top1": measured["action_top1"], **heads, **loss}  # videos with all heads right


def _warn_at_chance(training: Training, settings: FinetuneSettings, step: int) -> None:
    """Warn after a real budget, or at the end of a shorter run, if nothing has been learned."""
    model, plan = training.state.trained_model, training.plan
    assert isinstance(model, VideoClassifier)
    budget = min(plan.steps, plan.warmup_steps + FEWEST_STEPS)
    if step == budget and not settings.mixup and not settings.cutmix:
        training.warn_once("chance", stays_at_chance(list(training.step_log.losses.finite), model.head_sizes))


def _summary(training: Training, validations: Validations, *, videos: int) -> str:
    """The best accuracy, the weights that the next command uses, and what to try next."""
    model, plan, best = training.state.trained_model, training.plan, validations.best
    assert isinstance(model, VideoClassifier)
    if best is None:
        return (
            f"finished after step {training.steps_done}; name a list of videos in data.val to keep the best "
            "weights instead of the last"
        )
    chance = chance_top1(model.head_sizes)
    text = (
        f"best validation top-1 {best['val_top1']:.1f} % of {videos} videos (chance {chance:.1f} %) after "
        f"step {best['step']} of {plan.steps}; eval, predict, extract and export use these weights, "
        f"{training.run.best}"
    )
    advice = validations.advice(model.head_sizes, chance=chance, steps=plan.steps)
    return f"{text}. {advice}" if advice else text
