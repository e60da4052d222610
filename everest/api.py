"""Shortcuts for notebooks: create a model, read a clip, select tokens.

B batch, C channels, T frames, H W pixels, N tokens, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from everest.checkpoints.frozen import find_frozen
from everest.config.heads import Head, Heads, HeadSetting, Task, named_heads
from everest.config.recipe import make_strategy, recipe_of_sections
from everest.config.stage_settings import STAGES
from everest.data.views import ClipFormat
from everest.errors import unknown_name
from everest.methods.grid import TokenGrid, TokenSelection
from everest.methods.importance import RawPixels
from everest.methods.selection import Strategy, measure_importance
from everest.methods.strategies import AllTokens
from everest.models.base import TokenModel
from everest.models.spec import Transformer, classifier_spec, encoder_spec, pretrain_spec
from everest.video.pixels import IMAGENET, STATISTICS_OF_CHANNELS

Size = int | tuple[int, int]

# The stage whose section of a recipe has the settings of a kind.
_STAGE_OF_KIND = {"pretrain": "pretrain", "classifier": "finetune", "encoder": "finetune"}


def create_model(
    backbone: str,
    *,
    kind: Literal["pretrain", "classifier", "encoder"],
    num_classes: int | Mapping[str, HeadSetting] | None = None,
    task: Task = "single-label",
    frames: int = 16,
    stride: int = 4,
    size: Size = 224,
    fps: float | None = None,
    channels: Literal[1, 3] = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    selection: Strategy | None = None,
    drop_path: float = 0.0,
    **model: Any,
) -> Transformer:
    """Build a model with new random weights, from torch's global generator.

    Args:
        backbone: vit-tiny, vit-s, vit-b, vit-l, vit-h or vit-g.
        num_classes: of a classifier; a mapping such as {"verb": 97, "tags": {"multi-label": 5}, "speed":
            "regression"} gives it a head for each.
        task: of a classifier with one head: single-label, multi-label or regression.
        frames, stride, size: of the clips; pixels as one number or (height, width).
        fps: frames per second that `stride` counts; None: of the file.
        channels: 3 colors, or 1 for clips of luma.
        mean, std: of each channel, of values in [0, 1]; None: ImageNet's.
        selection: of everest.strategies; default: EVEREST's (Tables 7, 8), of an encoder all tokens.
        drop_path: of a classifier in training mode, in [0, 1): the rate of stochastic depth in the last
            block; it grows linearly from 0 in the first one (Huang et al. 2016).
        model: further keys of a recipe's `model` section, such as `tubelet` or `decoder_depth`.
    Raises:
        RecipeError: an unknown backbone or key, or invalid values, named as in a recipe.
        ValueError: a classifier without at least two classes, or its arguments for another kind.
    """
    if kind not in _STAGE_OF_KIND:
        raise unknown_name("kind", kind, _STAGE_OF_KIND)
    stage = _STAGE_OF_KIND[kind]
    sections: dict[str, Any] = {
        "data": {"frames": frames, "size": size, "fps": fps, "channels": channels, "mean": mean, "std": std},
        "model": {"backbone": backbone, **model},
        **{each: {"stride": stride} for each in STAGES},
    }
    if selection is not None or kind == "encoder":
        sections[stage]["selection"] = asdict(selection or AllTokens())
    if kind == "classifier":
        sections[stage]["drop_path"] = drop_path
    elif drop_path != 0:
        raise ValueError(f"drop_path={drop_path}: only a classifier has stochastic depth")
    elif num_classes is not None or task != "single-label":
        raise ValueError(f"num_classes={num_classes}, task={task!r}: only a classifier predicts labels")
    recipe = recipe_of_sections(sections, checked=("data", "model", stage))
    if kind == "pretrain":
        spec = pretrain_spec(recipe, find_frozen(recipe))
    elif kind == "encoder":
        spec = encoder_spec(recipe)
    else:
        spec = classifier_spec(recipe, _heads_of(num_classes, task))
    built = spec.build()
    built.recipe = recipe
    return built


def _heads_of(num_classes: int | Mapping[str, HeadSetting] | None, task: Task) -> Heads:
    """The heads of a new classifier; ValueError if one of them has too few outputs."""
    if isinstance(num_classes, Mapping):
        heads = named_heads(num_classes)
    else:
        heads = (Head(task=task, outputs=1 if task == "regression" else num_classes or 0),)
    if not heads or any(head.outputs < (2 if head.task == "single-label" else 1) for head in heads):
        raise ValueError(f"a classifier needs num_classes of at least 2, not {num_classes}")
    return heads


def read_clip(
    path: str | Path,
    *,
    frames: int | None = None,
    stride: int | None = None,
    size: Size | None = None,
    fps: float | None = None,
    like: TokenModel | None = None,
) -> Tensor:
    """Read the middle `frames` frames of a video, `stride` apart, center-cropped: (C, T, H, W) uint8.

    Args:
        frames, stride, size: None: as the clips of `like`, else 16, 4 and 224.
        fps: frames per second that `stride` counts; None: as the clips of `like`, else of the file.
        like: a model whose clips are read; see its `clip`.
    Raises:
        ValueError: a number below 1, or `fps` is not above 0.
        VideoError: the file is unreadable.
    """
    clip = ClipFormat(frames=16, stride=4, size=(224, 224)) if like is None else like.clip
    sides = (size, size) if isinstance(size, int) else size
    given = {"frames": frames, "stride": stride, "size": sides, "fps": fps}
    return replace(clip, **{name: value for name, value in given.items() if value is not None}).read(path)


def select_tokens(
    x: Tensor,
    *,
    strategy: str = "redundancy-robust",
    keep: float | None = None,
    model: Transformer | None = None,
    tubelet: tuple[int, int, int] = (2, 16, 16),
    seed: int = 0,
    **settings: Any,
) -> TokenSelection:
    """Select tokens of normalized clips (B, C, T, H, W).

    Args:
        keep: the fraction of the tokens that is visible; None: as the strategy is set in a recipe.
        model: its embedding measures the change, or its tokenizer scores; None: raw pixels.
        tubelet: for raw pixels; a model has its own.
        settings: of the strategy, by their names in a recipe; they take precedence over `keep`.
    Raises:
        RecipeError: an unknown strategy or setting, or invalid values.
        ValueError: `x` is not a batch of clips, or `keep` leaves no token visible.
    """
    chosen = make_strategy(strategy, settings, keep=keep)
    if x.dim() != 5:
        raise ValueError(
            f"expected clips (B, C, T, H, W), got {tuple(x.shape)}; clip[None] is a batch of one"
        )
    pixels = STATISTICS_OF_CHANNELS.get(x.size(1), IMAGENET)
    embed = RawPixels(tubelet, pixels) if model is None else model.embedding
    grid = TokenGrid.of_clip(frames=x.size(2), size=(x.size(3), x.size(4)), tubelet=embed.tubelet)
    noise = np.random.default_rng(seed).random((x.size(0), grid.num_tokens), dtype=np.float32)
    x = x if model is None else model.to_input(x)
    scorer = None if model is None else model.scorer
    importance = measure_importance(chosen, x, embed, scorer) if chosen.uses_importance else None
    selection = chosen(grid, importance=importance, noise=torch.from_numpy(noise).to(x.device))
    if selection.visible.size(1) == 0:
        raise ValueError(f"{chosen} leaves none of {grid.num_tokens} tokens visible")
    return selection
