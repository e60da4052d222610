"""Contradictions in the settings of a checkpoint; those of a recipe are in everest.config.checks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from everest.config.checks import model_problems
from everest.errors import RecipeError
from everest.methods.grid import check_num_tokens
from everest.methods.targets import Target
from everest.models.positions import INTERPOLATED
from everest.video.pixels import USUAL

if TYPE_CHECKING:
    from everest.models.spec import ModelSpec


def spec_problems(spec: ModelSpec) -> Iterator[str]:
    """Yields the contradictions of the settings, on which `ModelSpec.build` relies."""
    yield from (f"model.{'.'.join(key[1:])}: {text}" for key, text in model_problems(spec.model))
    yield from (f"selection.{key}: {text}" for key, text in spec.selection.problems())
    needs_tokenizer = spec.selection.needs_tokenizer or (spec.target and spec.target.needs_tokenizer)
    learned_colors = spec.tokenizer is not None or isinstance(spec.target, Target)
    classifies, heads = spec.kind == "classifier", spec.answered
    found = {
        f"pixels: {spec.channels} channels, neither 1 nor 3": spec.channels not in USUAL,
        "pixels: 1 channel, where tokenizer or target take 3": spec.channels == 1 and learned_colors,
        "target: missing": spec.kind == "pretrain" and spec.views is None and spec.target is None,
        "tokenizer: missing": needs_tokenizer and spec.tokenizer is None,
        "num_classes: missing": classifies and spec.num_classes is None,
        "position_grid: for interpolated positions, and only for these": (
            (spec.position_grid is None) == (spec.model.positions in INTERPOLATED)
        ),
        "heads: other classes than num_classes": (
            classifies and sum(head.outputs for head in heads) != spec.num_classes
        ),
        "task: regression has one output": any(h.task == "regression" and h.outputs != 1 for h in heads),
        "calibration: other thresholds than classes": (
            classifies and any(len(head.thresholds) != head.outputs for head in heads)
        ),
    }
    yield from (problem for problem, is_found in found.items() if is_found)
    try:
        check_num_tokens(spec.grid)
        blank = torch.empty(1, spec.grid.num_tokens, device="meta")
        if not spec.selection(spec.grid, importance=blank, noise=blank).visible.size(1):
            yield f"selection: keeps none of {spec.grid.num_tokens} tokens"
    except RecipeError as error:
        yield str(error)
