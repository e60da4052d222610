"""The settings that reconstruct a tokenizer, and the tokenizer that a recipe or a model names.

Gundavarapu et al., Extending Video Masked Autoencoders to 128 frames, 2024, §3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ConfigDict, TypeAdapter

from everest.config.tokenizer_settings import TokenizerArchitecture, TokenizerSettings
from everest.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from everest.config.settings import Recipe
    from everest.tokenizer.adaptive_tokenizer import AdaptiveTokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec(TokenizerArchitecture):
    """All that is needed to reconstruct a tokenizer: the `settings` of its safetensors file."""

    def dump(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return _SPEC.dump_python(self, mode="json")

    @staticmethod
    def from_settings(settings: dict[str, Any], *, source: Path) -> TokenizerSpec:
        """Read the values that `dump` returns, from the file `source`."""
        from everest.system.weights import read_spec  # a model alone reads no files

        spec = read_spec(_SPEC, settings, source=source)
        problem = next(spec.config.problems(spec.chunk), None)
        if problem is not None:
            raise CheckpointError(f"{source}: its settings do not describe a tokenizer: {': '.join(problem)}")
        return spec

    def build(self) -> AdaptiveTokenizer:
        """Make the module with new weights, sampled from torch's default generator."""
        from everest.tokenizer.adaptive_tokenizer import AdaptiveTokenizer  # only LVMAE's models have one

        return AdaptiveTokenizer(self)


_SPEC = TypeAdapter(TokenizerSpec)


@dataclass(frozen=True, kw_only=True)
class TokenizerUse:
    """The tokenizer that a model is trained with, in a file that the model's file refers to."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    settings: TokenizerSpec
    path: str | None = None  # None: an untrained tokenizer, which is enough to compute costs
    sha256: str | None = None  # hash of the tokenizer's weights

    def load(self) -> AdaptiveTokenizer:
        """Load the tokenizer in eval mode, with new weights if `path` is None."""
        with torch.random.fork_rng(devices=[]):  # the model's initial weights must not depend on it
            tokenizer = self.settings.build().eval()
        if self.path is None:
            return tokenizer
        from everest.system.weights import load_tensors, read_weights, state_hash

        path = Path(self.path)
        weights = read_weights(path) if path.is_file() else None
        if weights is None or state_hash(weights.tensors) != self.sha256:
            problem = "missing" if weights is None else "another one"
            raise CheckpointError(f"{path}: the tokenizer of this model is {problem}; put it back")
        load_tensors(tokenizer, weights.tensors, source=self.path)
        return tokenizer


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
        chunk=settings.frames,
        size=recipe.data.frame_size,
        keep=settings.keep,
        checkpointing=recipe.train.checkpointing,
    )


def tokenizer_use(recipe: Recipe) -> TokenizerUse:
    """The tokenizer `tokenizer.checkpoint` of a recipe, or an untrained tokenizer."""
    settings = tokenizer_settings(recipe)
    if settings.checkpoint is None:
        return TokenizerUse(settings=tokenizer_spec(recipe))
    from everest.system.weights import read_weights, state_hash

    path = Path(settings.checkpoint)
    weights = read_weights(path)
    if weights.kind != "tokenizer":
        raise CheckpointError(
            f"{path}: a {weights.kind} checkpoint where a tokenizer is needed; make one with train-tokenizer"
        )
    spec = TokenizerSpec.from_settings(weights.settings, source=path)
    if spec.config.tubelet != recipe.model.tubelet or recipe.data.frames % spec.chunk:
        raise CheckpointError(
            f"{path}: its tokens are of {spec.config.tubelet} in chunks of {spec.chunk} frames; the recipe "
            f"has model.tubelet {recipe.model.tubelet} and clips of {recipe.data.frames} frames"
        )
    return TokenizerUse(settings=spec, path=str(path.resolve()), sha256=state_hash(weights.tensors))
