"""Checkpoints of other programs, made from the names and shapes that the released ones have."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from everest.config.model_settings import BackboneSize
from everest.converters.translation import FAMILIES
from everest.errors import CheckpointError

OFFICIAL_KEYS = Path(__file__).parents[1] / "golden" / "official_keys.json"
RELEASED: dict[str, dict] = json.loads(OFFICIAL_KEYS.read_text())
TINY = 16  # by which the tiny ones are narrower: 48 wide with 3 heads instead of 768 with 12
TINY_DEPTH = 2


# What makes the recipe of `small_runs` one for them: clips of 64 x 64 pixels in tubelets of 2 x 16 x 16.
NARROW = {
    "size: 32": "size: 64",
    "[2, 8, 8], width: 24, depth: 2, heads: 2": "[2, 16, 16], width: 48, depth: 2, heads: 3",
}


def shapes(name: str, *, depth: int | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released checkpoint; `depth` cuts its stacks."""
    told = RELEASED[name]
    told = RELEASED[told["same_as"]] if "same_as" in told else told
    found = {}
    for key, shape in told["keys"].items():
        stack, starred, _ = key.partition(".*.")
        blocks = min(told["depths"][stack], depth or 1000) if starred else 1
        found |= {key.replace("*", str(i)): tuple(shape) for i in range(blocks)}
    return found


def our_name(official: str, kind: str) -> str:
    """Our name for a parameter of the official code of EVEREST and VideoMAE."""
    beside = "encoder.norm.weight" if kind == "pretrain" else "head.weight"  # shows the kind
    sources = FAMILIES["videomae"].translate([official, beside]).sources
    return next(ours for ours, names in sources.items() if official in names)


LINE = 600  # letters of a message, with the path of a temporary folder


def problem_of(read: Callable[..., object], *given: object, **options: object) -> str:
    """The message of the CheckpointError that a function raises: a short line."""
    with pytest.raises(CheckpointError) as error:
        read(*given, **options)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < LINE
    return message


def videomae_config(size: BackboneSize, **options: Any) -> Any:
    """transformers' configuration of a VideoMAE of a size; the test is skipped without transformers."""
    return pytest.importorskip("transformers").VideoMAEConfig(
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        intermediate_size=size.mlp,
        decoder_hidden_size=size.decoder_width,
        decoder_num_attention_heads=size.decoder_heads,
        decoder_intermediate_size=4 * size.decoder_width,
        **{"num_attention_heads": size.heads, **options},
    )


def on_meta(name: str) -> dict[str, Tensor]:
    """A released checkpoint without its values."""
    return {key: torch.empty(shape, device="meta") for key, shape in shapes(name).items()}


def tiny(name: str, *, seed: int = 0) -> dict[str, Tensor]:
    """A checkpoint with the names of a released one, 48 wide and two blocks deep, with random values."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(_narrow(key, shape), generator=generator) * 0.1
        for key, shape in shapes(name, depth=TINY_DEPTH).items()
    }


def _narrow(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    outputs = ".head." in f".{key}" or key.startswith("classifier.")
    kept = 1 if outputs and not key.startswith("decoder.0.") else 0  # classes and pixels stay as many
    sides = [side if i < kept or i >= 2 or side in (1, 3) else side // TINY for i, side in enumerate(shape)]
    if "pos_embed" in key or "mask_token" in key:
        sides = [1, shape[1], shape[2] // TINY]
    return tuple(sides)


def saved(path: Path, state: dict[str, Tensor], **args: Any) -> Path:
    """As the official code save: weights, optimizer with numpy numbers, the command line."""
    beside = {
        "optimizer": {"param_groups": [{"lr": np.float64(1e-3), "betas": (0.9, 0.95)}]},
        "epoch": 799,
        "args": argparse.Namespace(**args, output_dir=Path("/out"), device=torch.device("cpu")),
    }
    torch.save({"model": state, **beside}, path)
    return path
