"""everest: efficient masked video autoencoders, from unlabelled video to a tested classifier.

The names for notebooks are loaded when they are first used, so that importing everest costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everest.config.recipe import load_recipe
    from everest.data.video import read_frames
    from everest.load import load_model
    from everest.notebook import create_model, read_clip, select_tokens
    from everest.pixels import normalise
    from everest.pixels import normalise as normalize
    from everest.tokens import TokenSelection

__all__ = [
    "TokenSelection",
    "create_model",
    "load_model",
    "load_recipe",
    "normalise",
    "normalize",
    "read_clip",
    "read_frames",
    "select_tokens",
]

_HOMES = {
    "TokenSelection": "everest.tokens",
    "create_model": "everest.notebook",
    "load_model": "everest.load",
    "load_recipe": "everest.config.recipe",
    "normalise": "everest.pixels",
    "read_clip": "everest.notebook",
    "read_frames": "everest.data.video",
    "select_tokens": "everest.notebook",
}
_ALIASES = {"normalize": "normalise"}


def __getattr__(name: str) -> Any:
    name = _ALIASES.get(name, name)
    if name not in _HOMES:
        raise AttributeError(f"module 'everest' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_ALIASES])
