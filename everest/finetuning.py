"""Supervised fine-tuning of a pre-trained encoder on the informative tokens of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import torch
from torch import Tensor

from everest.checkpoints.frozen import FROZEN_KEYS
from everest.config.heads import Heads
from everest.config.settings import Recipe
from everest.config.stage_settings import FinetuneSettings
from everest.data.augment import mix
from everest.data.class_balance import class_weights
from everest.data.clip_dataset import Batch
from everest.data.crops import erase
from everest.data.recipe_clips import finetune_dataset, validation_dataset
from everest.engine.context import RunContext
from everest.engine.folder_check import FolderRules
from everest.engine.health import chance_warning, has_diverged
from everest.engine.schedule import MIN_STEPS
from everest.engine.setup import StageInputs, make_training
from everest.engine.step import MicroBatchLosses
from everest.engine.training import Step, Training
from everest.errors import RecipeError
from everest.evaluation.validation import Validator
from everest.lists.classes import empty_classes_notice
from everest.lists.labels import label_values
from everest.lists.sample import Sample, choose_evenly
from everest.models.classifier import VideoClassifier, soft_targets, supervised_loss
from everest.models.spec import classifier_spec

FINETUNING_FOLDER: Final = FolderRules(frozen=FROZEN_KEYS)
GUESSED_SAMPLES: Final = 10_000  # whose labels give the loss of guessing; more would fill the memory


def set_up_finetuning(recipe: Recipe, context: RunContext) -> Finetuning:
    """Prepare everything up to the first step."""
    settings = recipe.finetune
    init_weights = context.read_init_weights()  # first: reading the data may take minutes
    if init_weights is None and settings.needs_init is not None:
        setting, other = settings.needs_init
        raise RecipeError(
            f"{setting} needs trained weights, but the encoder starts from new ones; name a checkpoint with "
            f"--init, or set {other}"
        )
    dataset, classes = finetune_dataset(recipe)
    validation = validation_dataset(recipe, classes)
    context.notice(empty_classes_notice("train", dataset.samples, classes))
    if validation is not None:
        context.notice(empty_classes_notice("val", validation.samples, classes))
    else:
        context.notice("no best checkpoint and no overfitting check without data.val")
        idle = [name for name in ("best", "patience") if getattr(settings, name) is not None]
        context.warn(*(f"finetune.{name}: no effect without data.val" for name in idle))
    weights_by_head = class_weights(dataset.samples, classes.heads, settings.class_weights, classes.names)
    weights = [None if x is None else torch.from_numpy(x) for x in weights_by_head]
    guessing_loss = loss_of_guessing(
        dataset.samples, classes.heads, weights, smoothing=settings.label_smoothing
    )
    spec = classifier_spec(recipe, classes.heads)
    if init_weights is not None:
        spec = init_weights.adapt_spec(spec)
    inputs = StageInputs(
        recipe=recipe,
        section=settings,
        spec=spec,
        dataset=dataset,
        classes=classes.names,
        init_weights=init_weights,
    )
    training, validator = make_training(inputs, context), None
    if validation is not None:
        validator = Validator(training, validation, classes.names, guessing_loss=guessing_loss)
    return Finetuning(
        training=training,
        settings=settings,
        validator=validator,
        class_weights=[w if w is None else w.to(context.accelerator.device) for w in weights],
        guessing_loss=guessing_loss,
    )


def loss_of_guessing(
    samples: Sequence[Sample], heads: Heads, weights: Sequence[Tensor | None], *, smoothing: float
) -> float:
    """The mean loss of outputs that are all 0: equal probabilities, and the mean of the numbers."""
    chosen = choose_evenly(samples, GUESSED_SAMPLES)
    labels = torch.tensor([label_values(sample.labels, heads) for sample in chosen])  # (N, L)
    targets = soft_targets(labels, heads, smoothing=smoothing)
    return supervised_loss(torch.zeros_like(targets), targets, heads, weights).item()


@dataclass(frozen=True, kw_only=True, eq=False)
class Finetuning:
    """A fine-tuning run that is ready for its first step."""

    training: Training
    settings: FinetuneSettings
    validator: Validator | None  # None: no data.val
    class_weights: list[Tensor | None]  # weights (classes,) for each head, on the device
    guessing_loss: float  # the mean training loss of equal probabilities, and of the mean of numbers

    @property
    def model(self) -> VideoClassifier:
        """The module that is evaluated."""
        model = self.training.trained_model
        assert isinstance(model, VideoClassifier)
        return model

    def losses(self, batch: Batch, step: Step) -> MicroBatchLosses:
        """The loss of clips on the device, after erasing, mixup and cutmix."""
        settings, model, rng = self.settings, self.model, step.rng()
        generator = torch.Generator(batch.frames.device).manual_seed(int(rng.integers(2**63)))
        frames = model.pixels.normalize(batch.frames.flatten(0, 1))  # (B, C, T, H, W)
        frames = erase(frames, batch.erase_boxes.flatten(0, 1), generator=generator)
        targets = soft_targets(batch.label, model.heads, smoothing=settings.label_smoothing)  # (B, outputs)
        frames, targets = mix(frames, targets, mixup=settings.mixup, cutmix=settings.cutmix, rng=rng)
        logits = self.training.model(frames, noise=batch.noise.flatten(0, 1)).float()  # (B, outputs)
        return MicroBatchLosses(supervised_loss(logits, targets, model.heads, self.class_weights))

    def train(self) -> None:
        """Train to the end of the plan, or until `finetune.patience` ends the run."""
        training, validator = self.training, self.validator
        if validator is not None:
            validator.resume()
        with closing(training.remaining_steps()) as steps:
            for step in steps:
                for batch in step.batches():
                    step.backward(self.losses(batch, step))
                is_validated = validator is not None and training.plan.is_validated(step.index + 1)
                rows = step.update(save_now=is_validated)
                # After enough steps, by the losses up to this one, and at the end.
                if any(row["step"] == training.plan.warmup_steps + MIN_STEPS for row in rows):
                    self._warn_of_chance(ends=False)
                if validator is not None:
                    validator.validate_if_due(rows)
        self._warn_of_chance(ends=True)
        best = None if validator is None else validator.summary()
        fix = "name a list of videos in data.val to keep the best weights instead of the last"
        training.context.notice(best or f"finished after step {training.steps_done}; {fix}")

    def _warn_of_chance(self, *, ends: bool) -> None:
        """Show, each once, that the last losses are above that of guessing, or near it."""
        context, losses, guess = self.training.context, self.training.step_log.losses, self.guessing_loss
        if not losses:
            return
        mean = fmean(losses)
        logged = [row["loss"] for row in context.run_folder.rows() if row.get("loss") is not None]
        warning = chance_warning(
            self.training.plan,
            mean,
            self.settings,
            self.model.heads,
            guessing_loss=guess,
            highest=max(logged, default=mean),
            ends=ends,
        )
        # A run may be near guessing at first, and diverge later.
        context.warn_once("diverged" if has_diverged(mean, guess) else "chance", warning)
