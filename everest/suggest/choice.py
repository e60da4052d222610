"""A value of a suggested recipe, with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

# The use of a recipe: pre-training only, a classifier from a pre-trained encoder, or one from scratch.
Purpose = Literal["pretrain", "finetune", "scratch"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A value of the recipe, and why."""

    key: tuple[str, ...]
    value: Any
    reason: str

    @classmethod
    def of(cls, key: str, value: Any, reason: str) -> Choice:
        """A value for the key `section.key`."""
        return cls(key=tuple(key.split(".")), value=value, reason=reason)
