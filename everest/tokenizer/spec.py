"""From the settings of a tokenizer to the module: the values that a checkpoint stores to rebuild it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import ConfigDict, TypeAdapter

from everest.config.settings import Recipe
from everest.config.sizes import TokenizerConfig, TopKKind
from everest.config.tokenizer import TokenizerSettings
from everest.config.values import Side
from everest.errors import CheckpointError, RecipeError
from everest.system.weights import load_tensors, read_spec, read_weights, state_hash

if TYPE_CHECKING:
    from everest.tokenizer.network import AdaptiveTokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """All that is needed to rebuild a tokenizer: the `settings` of its safetensors file."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    kind: Literal["tokenizer"] = "tokenizer"
    config: TokenizerConfig
    window: int  # frames that are encoded together
    size: tuple[Side, Side]  # height, width of the training clips; other sizes work as well
    keep: float  # ratio of the ranked tokens of a window that a clip is rebuilt from in training
    select: TopKKind = "straight-through"  # how gradients pass their selection (everest.tokenizer.scorer)
    temperature: float = 0.5  # of the selection
    checkpointing: bool = False  # recompute activations in the backward pass

    def dump(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return _SPEC.dump_python(self, mode="json")

    @staticmethod
    def from_settings(settings: dict[str, Any], *, source: Path) -> TokenizerSpec:
        """Read the values that `dump` returns, from the file `source`."""
        spec = read_spec(_SPEC, settings, source=source)
        own = {"keep": spec.keep, "select": spec.select, "temperature": spec.temperature}
        as_in_recipe = {**asdict(spec.config), "frames": spec.window, **own}
        in_range = read_spec(_SETTINGS, as_in_recipe, source=source)
        problem = next(in_range.problems(), None)
        if problem is not None:
            raise CheckpointError(f"{source}: its settings are of no tokenizer: {': '.join(problem)}")
        return spec

    def build(self) -> AdaptiveTokenizer:
        """Make the module with new weights, from torch's default generator."""
        from everest.tokenizer.network import AdaptiveTokenizer  # here: few models have a tokenizer

        return AdaptiveTokenizer(self)


_SPEC = TypeAdapter(TokenizerSpec)
_SETTINGS = TypeAdapter(TokenizerSettings)


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

    def untrained(self) -> TokenizerUse:
        """The same network without its file."""
        return replace(self, path=None, sha256=None)

    def load(self) -> AdaptiveTokenizer:
        """Load the tokenizer in eval mode, with new weights if `path` is None."""
        with torch.random.fork_rng(devices=[]):  # the model's initial weights do not depend on the tokenizer
            tokenizer = self.settings.build().eval()
        if self.path is None:
            return tokenizer
        path = Path(self.path)
        if not path.is_file():
            raise CheckpointError(f"{path}: the tokenizer of this model is missing; put it back")
        weights = read_weights(path)
        if state_hash(weights.tensors) != self.sha256:
            raise CheckpointError(f"{path}: not the tokenizer that this model was trained with")
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
