"""Self-supervised pre-training: predict hidden tokens of a clip, or compare clips of the same video."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final

from everest.checkpoints.frozen import FROZEN_KEYS, find_frozen
from everest.config.settings import Recipe
from everest.data.clip_dataset import Batch, ClipDataset
from everest.data.recipe_clips import pretrain_dataset, pretrain_key
from everest.engine.context import RunContext
from everest.engine.folder_check import FolderRules
from everest.engine.health import CollapseWatch, closing_event
from everest.engine.setup import StageInputs, make_training
from everest.engine.step import MicroBatchLosses
from everest.engine.training import Step, Training
from everest.errors import DataError
from everest.methods.grid import NoiseLayout
from everest.models.base import PretrainingOutput
from everest.models.spec import pretrain_spec
from everest.system.run_folder import TOKENIZER_FOLDER

PRETRAINING_FOLDER: Final = FolderRules(frozen=FROZEN_KEYS, inner=(TOKENIZER_FOLDER,))


def set_up_pretraining(recipe: Recipe, context: RunContext) -> Pretraining:
    """Prepare everything up to the first step."""
    init_weights = context.read_init_weights()  # first: reading the data may take minutes
    spec = pretrain_spec(
        recipe, find_frozen(recipe, init=None if init_weights is None else init_weights.init_file.file)
    )
    if init_weights is not None:
        spec = init_weights.adapt_spec(spec)
    dataset = _make_dataset(recipe, spec.noise_layout, context)
    inputs = StageInputs(
        recipe=recipe, section=recipe.pretrain, spec=spec, dataset=dataset, init_weights=init_weights
    )
    return Pretraining(training=make_training(inputs, context))


def _make_dataset(recipe: Recipe, noise: NoiseLayout, context: RunContext) -> ClipDataset:
    """The videos of pre-training, with their tokens if the recipe has a cache of them."""
    dataset = pretrain_dataset(recipe, noise)
    if recipe.pretrain.objective == "views" and len(dataset) < 2:
        raise DataError(
            f"data.{pretrain_key(recipe.data)}: one video; pretrain.objective=views compares several: name "
            "more videos with data.pretrain"
        )
    if recipe.pretrain.cache is None:
        return dataset

    from everest.tokenizer.cache import TokenCache

    tokens = TokenCache(recipe, dataset)
    context.notice(f"reading cached tokens from {tokens.folder}, {tokens.variants} clips per video")
    return replace(dataset, tokens=tokens)


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A pre-training run that is ready for its first step."""

    training: Training

    def losses(self, batch: Batch, step: Step) -> MicroBatchLosses:
        """The loss and metrics of clips on the device. `batch` has their random numbers: `step` is unused."""
        frames = batch.frames.flatten(0, 1)  # (B * views, C, T, H, W) uint8
        inputs = {name: value.flatten(0, 1) for name, value in batch.inputs.items()}
        noise = batch.noise.flatten(0, 1)
        output: PretrainingOutput = self.training.model(frames, noise=noise, **inputs)
        return MicroBatchLosses(output.loss, metrics=output.metrics)

    def train(self) -> None:
        """Train to the end of the plan."""
        training = self.training
        collapse = CollapseWatch(training.context.run_folder.rows())
        with closing(training.remaining_steps()) as steps:
            for step in steps:
                for batch in step.batches():
                    step.backward(self.losses(batch, step))
                collapse.add(step.update())
        if training.step_log.losses:
            training.context.emit(closing_event(training))
