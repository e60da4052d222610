"""LVMAE's first stage: train a tokenizer whose scorer learns which tokens reconstruct a clip best."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import nn

from everest.config.settings import Recipe
from everest.converters.foreign_checkpoint import locate_checkpoint, read_foreign
from everest.data.clip_dataset import Batch
from everest.data.randomness import Purpose, generator_at
from everest.engine.context import RunContext
from everest.engine.folder_check import FolderRules
from everest.engine.network import make_optimizer
from everest.engine.setup import StageInputs, make_training
from everest.engine.step import MicroBatchLosses, TrainedNetwork
from everest.engine.training import Step, Training
from everest.errors import CheckpointError, EnvironmentProblem, RecipeError
from everest.evaluation.tokenizer_validation import TokenizerValidator
from everest.system.hub import HubUnreachable
from everest.system.processes import warn_on_main
from everest.system.weights import load_tensors, require_finite
from everest.tokenizer.clips import tokenizer_dataset, tokenizer_depends_on
from everest.tokenizer.loss import (
    ADVERSARY_BETAS,
    ADVERSARY_START,
    TokenizerObjective,
    tokenizer_objective,
)
from everest.tokenizer.spec import tokenizer_settings, tokenizer_spec
from everest.video.pixels import in_unit_range

PERCEPTUAL_NETWORK: Final = "resnet50"  # of timm, trained on ImageNet
# Heuristic: timm's weights with plain training, as MAGVIT uses.
PERCEPTUAL_WEIGHTS: Final = "hf:timm/resnet50.tv_in1k"


def tokenizer_folder(recipe: Recipe) -> FolderRules:
    """A resume may change all settings on which the tokenizer does not depend."""
    return FolderRules(may_change=lambda key: not tokenizer_depends_on(key, recipe))


def set_up_tokenizer_training(recipe: Recipe, context: RunContext) -> TokenizerTraining:
    """Prepare everything up to the first step."""
    settings, spec = tokenizer_settings(recipe), tokenizer_spec(recipe)
    if settings.checkpoint is not None:
        raise RecipeError(
            f"tokenizer.checkpoint: {settings.checkpoint} is trained already; set it to null to train another"
        )
    device = context.accelerator.device
    objective = tokenizer_objective(recipe, spec, device, load=load_perceptual_network)  # may read weights
    others = []
    if (adversary := objective.adversary) is not None:
        optimizer, module = make_optimizer([adversary.group], betas=ADVERSARY_BETAS), adversary.discriminator
        others.append(TrainedNetwork(module=module, optimizer=optimizer, name="discriminator"))
    dataset = tokenizer_dataset(recipe)
    inputs = StageInputs(
        recipe=replace(recipe, train=replace(recipe.train, ema=settings.ema)),
        section=settings,
        spec=spec,
        dataset=dataset,
        other_networks=others,
        other_clip_bytes=objective.bytes_per_clip(spec, context.bytes_per_value),
    )
    training = make_training(inputs, context)
    validator = TokenizerValidator(training, recipe, dataset)
    return TokenizerTraining(training=training, objective=objective, validator=validator)


def load_perceptual_network(weights: str | None) -> nn.Module:
    """Load the network whose logits the perceptual loss compares.

    Args:
        weights: a file, or `hf:OWNER/NAME` on the hub or in its local cache; None is timm's.
    """
    import timm  # here: it takes seconds

    network = timm.create_model(PERCEPTUAL_NETWORK)
    try:
        path = locate_checkpoint(PERCEPTUAL_WEIGHTS if weights is None else weights, notify=warn_on_main)
        initial, tensors = network.state_dict(), read_foreign(path).tensors
        # Counters of batch norms are missing in some files of weights.
        counters = {name: x for name, x in initial.items() if name.endswith("num_batches_tracked")}
        load_tensors(network, counters | dict(tensors), source=str(path))
        require_finite(tensors, source=path)
    except CheckpointError as error:
        error_type = EnvironmentProblem if isinstance(error, HubUnreachable) else CheckpointError
        text = f"tokenizer.loss.perceptual_weights: {error}; or set it to a local file of weights"
        raise error_type(text) from error
    return network


@dataclass(frozen=True, kw_only=True)
class TokenizerTraining:
    """The training of a tokenizer that is ready for its first step."""

    training: Training
    objective: TokenizerObjective
    validator: TokenizerValidator

    def losses(self, batch: Batch, step: Step, *, adversarial: bool | None = None) -> MicroBatchLosses:
        """The losses of clips on the device, reconstructed from the tokens that the step allows.

        Args:
            adversarial: whether the adversary is active; None: as in late steps, if there is one.
        """
        training, settings = self.training, tokenizer_settings(self.training.recipe)
        if adversarial is None:
            adversarial = self.objective.adversary is not None
        rng = step.rng()
        # Some steps reconstruct from all tokens: tokens that are rarely kept would be trained poorly.
        chance = generator_at(training.recipe.train.seed, Purpose.ALL_TOKENS, step.index).random()
        warms_up = step.index < settings.warmup * training.plan.steps
        frames = in_unit_range(batch.frames.flatten(0, 1))  # (B, 3, T, H, W)
        generator = torch.Generator(frames.device).manual_seed(int(rng.integers(2**63)))
        all_tokens = warms_up or bool(chance < settings.full_batches)
        reconstructed = training.model(frames, generator=generator, all_tokens=all_tokens)
        with training.context.accelerator.autocast():
            loss, discriminator_loss, parts = self.objective(reconstructed, adversarial=adversarial, rng=rng)
        return MicroBatchLosses(loss, () if discriminator_loss is None else (discriminator_loss,), parts)

    def train(self) -> None:
        """Train to the end of the plan, measure the targets and validate."""
        training, validator = self.training, self.validator
        adversary_start = int(ADVERSARY_START * training.plan.steps)
        validator.resume()
        with closing(training.remaining_steps()) as steps:
            for step in steps:
                adversarial = self.objective.adversary is not None and step.index >= adversary_start
                if adversarial and step.index == adversary_start:
                    training.context.notice(
                        f"the discriminator starts after step {adversary_start}: its term joins the loss"
                    )
                for batch in step.batches():
                    step.backward(self.losses(batch, step, adversarial=adversarial))
                is_validated = validator.is_due(step.index + 1)
                step.update(save_now=is_validated)
                if is_validated:
                    validator.validate()
        validator.finish()
