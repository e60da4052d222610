"""everest: efficient masked video autoencoders, from unlabeled video to an evaluated classifier.

This is the whole public API. The names are loaded when they are first used, so importing everest is cheap.
"""

from __future__ import annotations

import random
from importlib import import_module
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings

if TYPE_CHECKING:
    from everest.api import create_model as create_model
    from everest.api import read_clip as read_clip
    from everest.api import select_tokens as select_tokens
    from everest.checkpoints.describe import load_model as load_model
    from everest.config.recipe import load_recipe as load_recipe
    from everest.data import augment as augment
    from everest.data import crops as crops
    from everest.engine.network import parameter_groups as parameter_groups
    from everest.inference_api import evaluate as evaluate
    from everest.inference_api import extract as extract
    from everest.inference_api import predict as predict
    from everest.methods import strategies as strategies
    from everest.methods import targets as targets
    from everest.methods.grid import TokenSelection as TokenSelection
    from everest.stages import finetune as finetune
    from everest.stages import pretrain as pretrain
    from everest.video.pixels import normalize as normalize
    from everest.video.reader import read_frames as read_frames
    from everest_workflows.project.train import train as train
    from everest_workflows.recordings.api import timeline as timeline

_NAMES = {
    "everest.api": ("create_model", "read_clip", "select_tokens"),
    "everest.checkpoints.describe": ("load_model",),
    "everest.config.recipe": ("load_recipe",),
    "everest.data": ("augment", "crops"),
    "everest.engine.network": ("parameter_groups",),
    "everest.inference_api": ("evaluate", "extract", "predict"),
    "everest.methods": ("strategies", "targets"),
    "everest.methods.grid": ("TokenSelection",),
    "everest.stages": ("finetune", "pretrain"),
    "everest.video.pixels": ("normalize",),
    "everest.video.reader": ("read_frames",),
    "everest_workflows.project.train": ("train",),
    "everest_workflows.recordings.api": ("timeline",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll] (all imported above)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("everest-video")
    if name not in _HOMES:
        raise AttributeError(f"module 'everest' has no attribute '{name}'")
    state = random.getstate()
    with catch_warnings():  # some packages add filters when they are imported (SciPy), or draw numbers (rich)
        home = import_module(_HOMES[name])
        value = getattr(home, name) if hasattr(home, name) else import_module(f"{_HOMES[name]}.{name}")
    random.setstate(state)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
