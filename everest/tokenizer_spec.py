"""From the settings of a tokenizer to the module, and what is written in its checkpoint to build it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor

from everest.build import read_spec
from everest.config.settings import Recipe
from everest.config.tokenizer_settings import TokenizerSettings
from everest.errors import RecipeError
from everest.models.tokenizer import AdaptiveTokenizer
from everest.tokenizer_sizes import TokenizerConfig, TopKKind


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """All that is needed to rebuild a tokenizer: the `settings` of its safetensors file."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    kind: Literal["tokenizer"] = "tokenizer"
    config: TokenizerConfig
    window: int  # frames
    size: tuple[int, int]  # height, width of the clips it is trained on; others do as well
    keep: float
    select: TopKKind
    temperature: float
    checkpointing: bool = False

    @property
    def depth(self) -> int:
        """Blocks that a learning rate can decay over."""
        return 0

    def dump(self) -> dict[str, Any]:
        """As plain JSON values."""
        return _SPEC.dump_python(self, mode="json")

    @staticmethod
    def of(settings: dict[str, Any], *, source: Path) -> TokenizerSpec:
        """The inverse of `dump`.

        Raises:
            CheckpointError: settings that this version does not know.
        """
        return read_spec(_SPEC, settings, source=source)

    def build(self) -> AdaptiveTokenizer:
        """The module with fresh weights, from torch's default generator."""
        return AdaptiveTokenizer(
            self.config,
            window=self.window,
            keep=self.keep,
            select=self.select,
            temperature=self.temperature,
            checkpointing=self.checkpointing,
        )

    def bytes_per_clip(self, bytes_per_value: int) -> int:
        """What one window's training pass keeps in memory: counted in a pass without data, float32 scaled."""
        with torch.device("meta"):
            model, clip = self.build(), torch.empty(1, 3, self.window, *self.size)
        kept: dict[int, Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.setdefault(id(x), x), lambda x: x):
            model.decoder(model.encoder(model.scaled(clip)))
        weights = {id(parameter) for parameter in model.parameters()}
        return sum(x.numel() for key, x in kept.items() if key not in weights) * bytes_per_value


_SPEC = TypeAdapter(TokenizerSpec)


def tokenizer_settings(recipe: Recipe) -> TokenizerSettings:
    """The section of a recipe that has one.

    Raises:
        RecipeError: it has none.
    """
    if recipe.tokenizer is None:
        raise RecipeError(
            f"{recipe.name}: has no tokenizer section; take a recipe of LVMAE, such as lvmae-demo"
        )
    return recipe.tokenizer


def tokenizer_spec(recipe: Recipe) -> TokenizerSpec:
    """The tokenizer of a recipe.

    Raises:
        RecipeError: it has none.
    """
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
