"""What a tokenizer learns from: rebuilt pixels, and where their weights are not 0 a perceptual and an
adversarial term, as in MAGVIT's public code (Yu et al. 2023).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from everest.adversary import Adversary
from everest.config.settings import Recipe
from everest.config.tokenizer import TokenizerLossSettings
from everest.perceptual import PerceptualDistance, load_network
from everest.system.randomness import Purpose, seed_at
from everest.tokenizer.discriminator import Discriminator
from everest.tokenizer.network import TokenizerReconstruction
from everest.tokenizer.spec import TokenizerSpec, kept_values, tokenizer_settings

# Ours, of a clip, for its memory: one in the tokenizer's loss, one rebuilt, and R1 keeps the real one thrice.
DISCRIMINATOR_PASSES: Final = 5


class TokenizerLosses(NamedTuple):
    """Scalars of one pass."""

    loss: Tensor  # of the tokenizer
    adversary_loss: Tensor | None  # of the discriminator, where it plays
    parts: dict[str, Tensor]  # the terms without their weights, where there are several


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizerObjective:
    """The terms with their weights. What has weight 0 is not there, and costs nothing."""

    weights: TokenizerLossSettings
    perceptual: PerceptualDistance | None = None
    adversary: Adversary | None = None

    def __call__(
        self, out: TokenizerReconstruction, *, adversarial: bool, rng: np.random.Generator
    ) -> TokenizerLosses:
        """The losses of a pass.

        Args:
            adversarial: whether the adversary plays by now.
            rng: draws the frames that the perceptual term looks at.
        """
        parts = {"reconstruction": out.loss}
        loss = self.weights.reconstruction * out.loss
        if self.perceptual is not None:
            parts["perceptual"] = self.perceptual(out.frames, out.original, rng)
            loss = loss + self.weights.perceptual * parts["perceptual"]
        if self.adversary is None or not adversarial:
            several = self.perceptual is not None or self.adversary is not None
            return TokenizerLosses(loss, None, parts if several else {})
        parts["generator"] = self.adversary.generator_loss(out.frames)
        discriminator = self.adversary.discriminator_losses(out.original, out.frames)
        parts |= {"discriminator": discriminator.logistic, "r1": discriminator.r1}
        return TokenizerLosses(loss + self.weights.gan * parts["generator"], discriminator.total, parts)

    def bytes_per_clip(self, spec: TokenizerSpec, bytes_per_value: int) -> int:
        """What the terms' networks keep of a clip beside the tokenizer's own pass: an estimate."""
        total = 0
        if self.adversary is not None:
            clip = torch.empty(1, 3, spec.window, *spec.config.scaled(spec.size), device="meta")
            discriminator = deepcopy(self.adversary.discriminator).to("meta")
            kept = kept_values(lambda: discriminator(clip), discriminator.parameters())
            total += kept * 4 * DISCRIMINATOR_PASSES
        if self.perceptual is not None:
            total += self.perceptual.kept_values() * bytes_per_value
        return total


def tokenizer_objective(recipe: Recipe, spec: TokenizerSpec, device: torch.device) -> TokenizerObjective:
    """The terms of a recipe, on the device.

    Raises:
        CheckpointError: `perceptual_weights` cannot be used.
        EnvironmentProblem: the perceptual network cannot be fetched.
    """
    settings = tokenizer_settings(recipe)
    weights = settings.loss
    perceptual = adversary = None
    with torch.random.fork_rng(devices=[]):
        if weights.perceptual:
            perceptual = PerceptualDistance(load_network(weights.perceptual_weights).to(device))
        if weights.gan:
            torch.manual_seed(seed_at(recipe.train.seed, Purpose.DISCRIMINATOR))
            discriminator = Discriminator(spec.config, frames=spec.window, size=spec.size)
            lr_scale = weights.discriminator_lr / settings.lr
            adversary = Adversary(discriminator.to(device), r1_weight=weights.r1, lr_scale=lr_scale)
    return TokenizerObjective(weights=weights, perceptual=perceptual, adversary=adversary)
