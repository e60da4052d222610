"""everest: efficient masked video autoencoders, from unlabelled video to a tested classifier.

The names for notebooks are loaded when they are first used, so that importing everest costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everest.api import create_model, read_clip, select_tokens
    from everest.checkpoints.load import load_model
    from everest.config.recipe import load_recipe
    from everest.methods.grid import TokenSelection
    from everest.video.pixels import normalise, normalize
    from everest.video.reader import read_frames

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
    "TokenSelection": "everest.methods.grid",
    "create_model": "everest.api",
    "load_model": "everest.checkpoints.load",
    "load_recipe": "everest.config.recipe",
    "normalise": "everest.video.pixels",  # the first spelling, which programs may use
    "normalize": "everest.video.pixels",
    "read_clip": "everest.api",
    "read_frames": "everest.video.reader",
    "select_tokens": "everest.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'everest' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
