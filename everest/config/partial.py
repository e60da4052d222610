"""Checks of partial training: frozen layers and adapters."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from everest.config.layers import STAGES, KeyPath
from everest.config.settings import Recipe


def partial_problems(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """Yields the key of each setting of partial training that contradicts another setting, and the reason."""
    size, finetune = recipe.model.backbone_size, recipe.finetune
    if finetune.frozen_layers(size.depth) > 1 + size.depth:
        yield ("finetune", "freeze"), f"{finetune.freeze} is more than the encoder's {size.depth} blocks"
    if finetune.lora.rank and finetune.freeze != "none":
        text = f"is {finetune.freeze}, and finetune.lora freezes the whole encoder; leave one of them out"
        yield ("finetune", "freeze"), text
    for stage, settings in zip(STAGES, (recipe.pretrain, recipe.finetune), strict=True):
        lora = settings.lora
        if lora.rank > size.width:
            text = f"{lora.rank} is more than the encoder's width of {size.width}"
            yield (stage, "lora", "rank"), text
        twice = next((layer for layer in lora.layers if lora.layers.count(layer) > 1), None)
        if twice is not None:
            yield (stage, "lora", "layers"), f"names {twice} twice"


def partial_notices(recipe: Recipe, given: Collection[KeyPath]) -> Iterator[str]:
    """Yields a line for each key of adapters in `given` without effect."""
    for stage, settings in zip(STAGES, (recipe.pretrain, recipe.finetune), strict=True):
        for key in ("alpha", "dropout", "layers"):
            if not settings.lora.rank and (stage, "lora", key) in given:
                yield f"{stage}.lora.{key} has no effect if {stage}.lora.rank is 0"
