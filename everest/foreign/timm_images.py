"""Image models of timm as encoders: `timm:NAME`. Their embedding is inflated when a run starts from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import timm
import torch
from pydantic import ConfigDict, TypeAdapter

from everest.config.yaml import read_yaml
from everest.errors import CheckpointError, RecipeError, did_you_mean
from everest.foreign.timm_tensors import image_weights, require_plain
from everest.system.hub import PREFIX as HUB
from everest.system.hub import fetch, warn_on_main
from everest.system.weights import Weights, require_finite

PREFIX: Final = "timm:"
WEIGHTS: Final = "model.safetensors"
TABLE: Final = Path(__file__).with_name("timm_families.yaml")
NOT_VIT: Final = "all others"


def is_timm_name(name: str | Path) -> bool:
    """Whether `name` is the name of an image model of timm."""
    return str(name).startswith(PREFIX)


def open_image_weights(name: str, *, notify: Callable[[str], None] = warn_on_main) -> Weights:
    """Read the weights of `timm:NAME`, from the hub or its cache, as weights of an encoder of single frames.

    Raises:
        RecipeError: timm has no such model, or no weights for it.
        CheckpointError: the model has parts that an encoder of everest does not have.
        Unreachable: neither the hub nor the cache can provide the weights.
    """
    model_name = name.removeprefix(PREFIX)
    if not timm.is_model(model_name):
        raise RecipeError(f"{name}: timm has no such model{did_you_mean(model_name, timm.list_models())}")
    architecture, _, tag = model_name.partition(".")
    listed = timm.list_pretrained(f"{architecture}.*")
    known = model_name in listed or (listed and not tag)
    config = timm.get_pretrained_cfg(model_name) if known else None
    if config is None or not config.hf_hub_id:
        similar = did_you_mean(model_name, listed)
        raise RecipeError(f"{name}: timm has no weights of this name on the hub{similar}")
    with torch.device("meta"):
        require_plain(timm.create_model(model_name, num_classes=0), source=name)  # before a download
    file = fetch(f"{HUB}{config.hf_hub_id}", notify=notify) / (config.hf_hub_filename or WEIGHTS)
    if not file.is_file():
        raise CheckpointError(f"{name}: no {file.name} in hf:{config.hf_hub_id}; take another model")
    # timm below 1.0.31 keeps custom_load of its own entry, and reads the file as .npz.
    overlay = {"file": str(file), "custom_load": False}
    model = timm.create_model(model_name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0)
    require_finite(model.state_dict(), source=file)
    return image_weights(model, mean=config.mean, std=config.std, source=name)


@dataclass(frozen=True, kw_only=True)
class TimmFamily:
    """Names of timm with weights; the table itself explains its keys."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    family: str
    pattern: str
    names: int
    because: str | None = None

    @property
    def loads(self) -> bool:
        """Whether `--init timm:NAME` reads its names."""
        return self.because is None


def timm_families() -> list[TimmFamily]:
    """The whole table, which docs/timm_table.py makes."""
    return TypeAdapter(list[TimmFamily]).validate_python(read_yaml(TABLE.read_text("utf-8"), str(TABLE)))


def is_of(name: str, patterns: str) -> bool:
    """Whether one of the patterns, ARCHITECTURE or ARCHITECTURE.TAG, is of a name."""
    architecture, _, tag = name.partition(".")
    for pattern in patterns.split():
        of_architecture, _, of_tag = pattern.partition(".")
        if fnmatchcase(architecture, of_architecture) and fnmatchcase(tag, of_tag or "*"):
            return True
    return False
