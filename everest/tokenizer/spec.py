"""The tokenizer of a recipe: a new one, or the trained one that a model uses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ConfigDict

from everest.config.settings import Recipe
from everest.config.tokenizer import TokenizerSettings
from everest.errors import CheckpointError, RecipeError
from everest.system.weights import load_tensors, read_weights, state_hash
from everest.tokenizer.network import AdaptiveTokenizer, TokenizerSpec


def tokenizer_settings(recipe: Recipe) -> TokenizerSettings:
    """The `tokenizer` section of a recipe; raises RecipeError if it has none."""
    if recipe.tokenizer is None:
        raise RecipeError(
            f"{recipe.name}: has no tokenizer section; take a recipe of LVMAE, such as lvmae-demo"
        )
    return recipe.tokenizer


def tokenizer_spec(recipe: Recipe) -> TokenizerSpec:
    """The tokenizer of a recipe; raises RecipeError if it has none."""
    settings = tokenizer_settings(recipe)
    return TokenizerSpec(
        config=settings.config,
        window=settings.frames,
        size=recipe.data.frame_size,
        keep=settings.keep,
        select=settings.select,
        temperature=settings.temperature,
        checkpointing=recipe.train.checkpointing,
    )


@dataclass(frozen=True, kw_only=True)
class TokenizerUse:
    """The tokenizer that a model is trained with, in a file that the model's file refers to."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    settings: TokenizerSpec
    path: str | None = None  # None: an untrained tokenizer, enough to compute costs
    sha256: str | None = None  # of its weights

    def load(self) -> AdaptiveTokenizer:
        """Load the tokenizer in eval mode, with new weights if `path` is None."""
        with torch.random.fork_rng(devices=[]):  # the model's initial weights do not depend on the tokenizer
            tokenizer = self.settings.build().eval()
        if self.path is None:
            return tokenizer
        path = Path(self.path)
        weights = read_weights(path) if path.is_file() else None
        if weights is None or state_hash(weights.tensors) != self.sha256:
            problem = "missing" if weights is None else "another one"
            raise CheckpointError(f"{path}: the tokenizer of this model is {problem}; put it back")
        load_tensors(tokenizer, weights.tensors, source=self.path)
        return tokenizer


def tokenizer_use(recipe: Recipe) -> TokenizerUse:
    """The tokenizer `tokenizer.checkpoint` of a recipe, or an untrained tokenizer."""
    settings = tokenizer_settings(recipe)
    if settings.checkpoint is None:
        return TokenizerUse(settings=tokenizer_spec(recipe))
    path = Path(settings.checkpoint)
    weights = read_weights(path)
    if weights.kind != "tokenizer":
        raise CheckpointError(
            f"{path}: a {weights.kind} checkpoint where a tokenizer is needed; make one with train-tokenizer"
        )
    spec = TokenizerSpec.from_settings(weights.settings, source=path)
    if spec.config.tubelet != recipe.model.tubelet or recipe.data.frames % spec.window:
        raise CheckpointError(
            f"{path}: its tokens are of {spec.config.tubelet} in windows of {spec.window} frames; the recipe "
            f"has model.tubelet {recipe.model.tubelet} and clips of {recipe.data.frames} frames"
        )
    return TokenizerUse(settings=spec, path=str(path.resolve()), sha256=state_hash(weights.tensors))
