"""everest: efficient masked video autoencoders, from unlabeled video to an evaluated classifier.

This is the whole public API. The names are loaded when they are first used, so importing everest is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everest.api import create_model, read_clip, select_tokens
    from everest.checkpoints.describe import load_model
    from everest.config.recipe import load_recipe
    from everest.data import augment, crops
    from everest.engine.network import parameter_groups
    from everest.functions import evaluate, extract, predict, predict_timeline
    from everest.methods import strategies, targets
    from everest.methods.grid import TokenSelection
    from everest.stages import finetune, pretrain
    from everest.video.pixels import normalize
    from everest.video.reader import read_frames

__all__ = [
    "TokenSelection",
    "augment",
    "create_model",
    "crops",
    "evaluate",
    "extract",
    "finetune",
    "load_model",
    "load_recipe",
    "normalize",
    "parameter_groups",
    "predict",
    "predict_timeline",
    "pretrain",
    "read_clip",
    "read_frames",
    "select_tokens",
    "strategies",
    "targets",
]

_HOMES = {
    "TokenSelection": "everest.methods.grid",
    "create_model": "everest.api",
    "evaluate": "everest.functions",
    "extract": "everest.functions",
    "finetune": "everest.stages",
    "load_model": "everest.checkpoints.describe",
    "load_recipe": "everest.config.recipe",
    "normalize": "everest.video.pixels",
    "parameter_groups": "everest.engine.network",
    "predict": "everest.functions",
    "predict_timeline": "everest.functions",
    "pretrain": "everest.stages",
    "read_clip": "everest.api",
    "read_frames": "everest.video.reader",
    "select_tokens": "everest.api",
}
_MODULES = {
    "augment": "everest.data.augment",
    "crops": "everest.data.crops",
    "strategies": "everest.methods.strategies",
    "targets": "everest.methods.targets",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("everest-video")
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name not in _HOMES:
        raise AttributeError(f"module 'everest' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_MODULES, "__version__"])
