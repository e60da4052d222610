"""Supervised fine-tuning of a pre-trained encoder on the informative tokens of a clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Final

import numpy as np
import torch
from torch import Tensor

from everest.config.heads import MEASURED_BY, MULTI_LABEL, best_metric
from everest.config.settings import Recipe
from everest.config.stage_settings import FinetuneSettings
from everest.data.augment import lowest_loss, mix
from everest.data.class_balance import class_weights
from everest.data.crops import erase
from everest.data.dataset import Batch, VideoClips
from everest.data.recipe_clips import finetune_clips, validation_clips
from everest.engine.context import RunContext
from everest.engine.health import Validations
from everest.engine.plan import FEWEST_STEPS
from everest.engine.setup import set_up_training
from everest.engine.training import Training
from everest.errors import DivergedError
from everest.evaluation.metric_text import as_text
from everest.evaluation.multi_view import evaluate_views
from everest.lists.classes import empty_classes_notice
from everest.lists.sample import ListSize
from everest.metrics.metrics import chance_of, choose_thresholds, mean_loss, measure
from everest.metrics.names import LOGGED, METRICS
from everest.metrics.predicted import refuse_too_many_skipped
from everest.models.classifier import VideoClassifier, soft_targets, supervised_loss
from everest.models.spec import classifier_spec
from everest.system.events import silent
from everest.system.run_folder import FIX, METRICS_FILE, Row
from everest.system.text import counted, reading_own

# Our choice: of the way from the training loss of guessing to that of a model that knows every label. After
# few steps only a loss that has hardly moved is reported, at the end also one of a model that underfits.
STILL_GUESSING: Final = 0.03
UNDERFITS: Final = 0.2
NEAR_CHANCE: Final = (
    0.1  # our choice: of the way from chance to a perfect metric, below which little is learned
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Finetuning:
    """A fine-tuning run that is ready for its first step."""

    training: Training
    settings: FinetuneSettings
    validation: VideoClips | None  # of the videos of data.val
    class_weights: list[Tensor | None]  # of each head, on the device
    class_names: Sequence[str] | None = None

    @property
    def model(self) -> VideoClassifier:
        """The classifier that is evaluated."""
        model = self.training.state.trained_model
        assert isinstance(model, VideoClassifier)
        return model

    def losses(self, batch: Batch) -> list[Tensor]:
        """The loss, a scalar, of clips on the device, after erasing, mixup and cutmix."""
        settings, model, rng = self.settings, self.model, self.training.rng()
        generator = torch.Generator(batch.frames.device).manual_seed(int(rng.integers(2**63)))
        frames = model.pixels.normalize(batch.frames.flatten(0, 1))  # (B, C, T, H, W)
        frames = erase(frames, batch.erase.flatten(0, 1), generator=generator)
        targets = soft_targets(batch.label, model.heads, smoothing=settings.label_smoothing)  # (B, outputs)
        frames, targets = mix(frames, targets, mixup=settings.mixup, cutmix=settings.cutmix, rng=rng)
        noise = batch.noise.flatten(0, 1)  # (B, N), or (B, 0) if the selection draws nothing
        logits = self.training.model(frames, noise=noise if noise.size(1) else None).float()  # (B, outputs)
        return [supervised_loss(logits, targets, model.heads, self.class_weights)]

    def train(self) -> None:
        """Train to the end of the plan, or until `finetune.patience` ends the run.

        The weights with the best metric on the validation videos (`finetune.best`) are kept.
        """
        training, clips = self.training, self.validation
        chosen_metric = best_metric(self.model.heads, self.settings.best, self.class_names)
        with reading_own(training.run.path / METRICS_FILE, fix=FIX):
            validations = Validations(training.run.rows(), chosen_metric)
        training.model.train()
        validated = {0, *(row["step"] for row in validations.rows)}
        is_missing = training.steps_done not in validated and training.is_loaded
        if clips is not None and training.at_checkpoint and is_missing:
            _validate(self, clips, validations)  # the run was stopped between save and validation
        _end_early(self, validations)
        with training.running():
            while training.has_steps:
                training.begin_step()
                for number in range(training.plan.accumulation):
                    batch = training.next_batch()
                    training.seed(number)
                    with training.accumulate(number):
                        training.backward(self.losses(batch))
                training.update()
                rows = training.log_step()
                validates = clips is not None and training.at_checkpoint
                if validates:
                    rows += training.save()  # first: a validation may take long, and may fail
                for row in rows:
                    validations.add(row)
                    _warn_at_chance(self, row["step"])
                if clips is not None and validates:
                    _validate(self, clips, validations)
                    _end_early(self, validations)
                training.save_if_due()
                training.stop_if_asked()
        training.notice(_summary(self, validations))


def set_up_finetuning(recipe: Recipe, context: RunContext) -> Finetuning:
    """Prepare everything up to the first step."""
    settings = recipe.finetune
    init = context.read_init()  # first: reading the data may take minutes
    clips, classes = finetune_clips(recipe)
    validation = validation_clips(recipe, classes)
    context.notices([empty_classes_notice("train", clips.samples, classes)])
    if validation is not None:
        context.notices([empty_classes_notice("val", validation.samples, classes)])
    else:
        context.notice("no data.val: the run cannot keep its best weights, nor notice that it overfits")
        idle = [name for name in ("best", "patience") if getattr(settings, name) is not None]
        context.notices(f"warning: finetune.{name}: no effect without data.val" for name in idle)
    weights = class_weights(clips.samples, classes.heads, settings.class_weights, classes.names)
    spec = classifier_spec(recipe, classes.heads)
    if init is not None:
        spec = init.adapted(spec)
    training = set_up_training(recipe, settings, spec, clips, context, classes=classes.names, init=init)
    tensors = [w if w is None else torch.from_numpy(w).to(training.accelerator.device) for w in weights]
    return Finetuning(
        training=training,
        settings=settings,
        validation=validation,
        class_weights=tensors,
        class_names=classes.names,
    )


def _end_early(stage: Finetuning, validations: Validations) -> None:
    """End the run, unless it has ended, if its last `finetune.patience` validations were no better."""
    training, patience = stage.training, stage.settings.patience
    if training.is_loaded and patience is not None and validations.since_best >= patience:
        reason = f"the last {patience} validations brought nothing better"
        training.end(f"step {training.steps_done}: {reason}")


def _validate(stage: Finetuning, clips: VideoClips, validations: Validations) -> None:
    """Measure one center view of every validation video, log it, and keep new best weights."""
    training, model = stage.training, stage.model
    plan, step = training.plan, training.steps_done
    predictions = evaluate_views(
        model, clips, training.accelerator, settings=training.settings, report=silent
    )
    training.model.train()
    for path, reason in predictions.skipped:
        training.notice(f"validation skips {path}: {reason}")
    refuse_too_many_skipped(predictions, training.bad_videos.max_bad)
    if not np.isfinite(predictions.outputs).all():
        raise DivergedError(
            f"step {step}: the outputs for the validation videos are not finite; lower base_lr or set "
            "train.clip_grad"
        )
    measured = measure(predictions)
    row: Row = {"step": step}
    if "heads" not in measured:
        row |= {f"val_{name}": measured[name] for name in LOGGED if measured.get(name) is not None}
    else:
        if "action_top1" in measured:
            row["val_top1"] = measured["action_top1"]  # of videos with all heads right
        for name, values in measured["heads"].items():
            row |= {f"val_{name}_{key}": values[key] for key in MEASURED_BY.values() if key in values}
    row["val_loss"] = mean_loss(predictions)
    if validations.add(row):  # before it is logged: a row without its weights could not be repaired
        heads = []
        for answered in predictions.by_head().values():
            head = answered.head
            if head.task == MULTI_LABEL:
                chosen = tuple(choose_thresholds(answered.means, answered.labels))
                head = replace(head, chosen_thresholds=chosen)
            heads.append(asdict(head))
        training.state.save_weights(training.run.best, step, {"heads": heads})
    training.log(row)
    event = {
        "event": "validation",
        "epoch": plan.epoch(step - 1),
        "epochs": plan.epochs,
        "steps": plan.steps,
        "train_loss": validations.train_loss,
        "metric": validations.metric,
        "chance": chance_of(validations.metric, model.heads, predictions.labels),
        "majority": chance_of("majority_top1", model.heads, predictions.labels),
        "best": validations.best_value,
        "best_step": (validations.best or row)["step"],
    }
    training.report({**event, **row})
    training.warn_once("overfitting", validations.overfitting_warning())


def _warn_at_chance(stage: Finetuning, step: int) -> None:
    """Warn after a real budget, and at the end of the run, if the last losses are hardly below guessing.

    The loss of equal probabilities is ln(classes) whatever the targets are, smoothed and mixed ones included.
    """
    training, settings, heads = stage.training, stage.settings, stage.model.heads
    plan, losses = training.plan, training.step_log.losses
    is_guessable = settings.class_weights == "none" and all(head.task == "single-label" for head in heads)
    budget = min(plan.steps, plan.warmup_steps + FEWEST_STEPS)
    if step not in (budget, plan.steps) or not is_guessable or not losses:
        return
    mixing = {"mixup": settings.mixup, "cutmix": settings.cutmix}
    sizes = [head.outputs for head in heads]
    chance = fmean(map(math.log, sizes))  # the loss is the mean over the heads
    lowest = fmean(lowest_loss(size, smoothing=settings.label_smoothing, **mixing) for size in sizes)
    share = UNDERFITS if step == plan.steps else STILL_GUESSING
    if fmean(losses) < chance - share * (chance - lowest):
        return
    logarithms = " and ".join(f"ln({size})" for size in sizes)
    fewer = "lower finetune.mixup and finetune.cutmix, " if any(mixing.values()) else ""
    training.warn_once(
        "chance",
        f"the loss, {fmean(losses):.2f}, is still near that of guessing, "
        f"{'the mean of ' if len(sizes) > 1 else ''}{logarithms} = {chance:.2f}. Check that the labels "
        f"belong to the videos; try {fewer}more steps or a higher base_lr",
    )


def _summary(stage: Finetuning, validations: Validations) -> str:
    """The best metric, the weights that the next command uses, and what to try next."""
    training, clips, heads = stage.training, stage.validation, stage.model.heads
    if validations.best is None or clips is None:
        return (
            f"finished after step {training.steps_done}; name a list of videos in data.val to keep the best "
            "weights instead of the last"
        )
    metric, labels = METRICS[validations.metric], [sample.labels for sample in clips.samples]
    size = ListSize.of(clips.samples)
    chance, reference = chance_of(validations.metric, heads, labels), "chance"
    majority = chance_of("majority_top1", heads, labels)
    if validations.metric == "top1" and majority is not None and chance is not None and majority > chance:
        chance, reference = majority, "most frequent class"
    shown = "" if chance is None else f"; {reference} {as_text(metric, chance)}"
    text = (
        f"best validation {metric.title} {as_text(metric, validations.best_value)} on "
        f"{counted(size.samples, size.unit)} (one center view each{shown}) after step "
        f"{validations.best['step']} of {training.plan.steps}; eval, predict, extract and export use these "
        f"weights, {training.run.best}"
    )
    best = validations.best_value
    if best is None or chance is None:
        return text
    limit = chance + NEAR_CHANCE * ((100 if metric.percent else 0) - chance)
    if (best < limit) if metric.percent else (best > limit):
        text += ". That is hardly better than chance: check the labels, or try more steps"
    return text
