"""The settings that a tokenizer depends on: runs that differ in others can use the same tokenizer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from everest.config.settings import Recipe

# Sections and keys that everest.train_tokenizer and everest.tokenizer.clips read, and the keys in them that
# they do not read: clips have the tokenizer's number of frames, values in [0, 1], and no labels.
_READS: Final = ("data", "train", "tokenizer", "pretrain.stride", "pretrain.flip")
_IGNORES: Final = (
    *("data.frames", "data.mean", "data.std", "data.classes", "data.num_classes", "data.task", "data.heads"),
    *("train.ema", "train.shard"),
)


def tokenizer_depends_on(key: str, recipe: Recipe) -> bool:
    """Whether the tokenizer of a recipe depends on a setting, section.key."""
    ignored = list(_IGNORES)
    if recipe.data.pretrain:  # instead of data.train
        ignored.append("data.train")
    if recipe.data.val is not None:  # instead of data.test
        ignored.append("data.test")
    if recipe.pretrain.flip is not None:  # instead of data.flip
        ignored.append("data.flip")
    return _is_under(key, _READS) and not _is_under(key, ignored)


def _is_under(key: str, sections: Collection[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)
