"""Short ways for notebooks: a model by its name, a clip of a file, the tokens a strategy chooses.

B batch, C channels, T frames, H W pixels, N tokens, D embedding width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from everest.build import ModelSpec
from everest.data.crops import centre_box, covering_size
from everest.data.frames import centre_window
from everest.data.transforms import resize
from everest.data.video import probe, read_frames
from everest.errors import unknown_name
from everest.models.classifier import VideoClassifier
from everest.models.mae import MaskedAutoencoder
from everest.selection import STRATEGIES, RedundancyRobust, Strategy, change_importance
from everest.settings import ModelSettings, TargetSettings
from everest.tokens import TokenGrid, TokenSelection

Size = int | tuple[int, int]


def _both(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def create_model(
    backbone: str,
    *,
    kind: Literal["pretrain", "classifier"],
    num_classes: int | None = None,
    frames: int = 16,
    size: Size = 224,
    selection: Strategy | None = None,
    **model: Any,
) -> MaskedAutoencoder | VideoClassifier:
    """A model with fresh weights.

    Args:
        backbone: vit-tiny, vit-s, vit-b, vit-l or vit-h.
        num_classes: of a classifier.
        frames, size: of the clips; pixels as one number or (height, width).
        selection: a strategy of everest.selection; by default EVEREST's for the kind (Tables 7, 8).
        model: further keys of a recipe's `model` section, such as `tubelet` or `decoder_depth`.
    """
    settings = ModelSettings(backbone=backbone.replace("_", "-"), **model)
    if kind == "classifier" and num_classes is None:
        raise ValueError("a classifier needs num_classes")
    default = (
        RedundancyRobust() if kind == "pretrain" else RedundancyRobust(keep_ratio=0.6, visible_ratio=None)
    )
    spec = ModelSpec(
        kind=kind,
        frames=frames,
        size=_both(size),
        model=settings,
        selection=selection or default,
        target=TargetSettings() if kind == "pretrain" else None,
        num_classes=num_classes,
    )
    return ModelSpec.of(spec.dump(), source=Path("create_model")).build()


def read_clip(path: str | Path, *, frames: int = 16, stride: int = 4, size: Size = 224) -> Tensor:
    """The middle `frames` frames of a video, `stride` apart, centre-cropped: (3, T, H, W) uint8.

    Raises:
        VideoError: the file cannot be read.
    """
    ids = centre_window(probe(path).frames, frames, stride)
    clip = read_frames(path, ids.tolist())  # (T, H', W', 3)
    covering = covering_size((clip.shape[1], clip.shape[2]), _both(size))
    box = centre_box(covering, _both(size))
    cut = resize(clip, covering, antialias=False)
    return cut[..., box.top : box.top + box.height, box.left : box.left + box.width].contiguous()


class _RawPixels:
    """The embedding of those who have no model: the tubelet's pixels themselves."""

    def __call__(self, patches: Tensor) -> Tensor:
        return patches.flatten(2)

    def of_change(self, change: Tensor) -> Tensor:
        return change.flatten(2)


def select_tokens(
    x: Tensor,
    *,
    strategy: str = "redundancy-robust",
    keep: float = 0.3,
    model: MaskedAutoencoder | VideoClassifier | None = None,
    tubelet: tuple[int, int, int] = (2, 16, 16),
    seed: int = 0,
    **settings: Any,
) -> TokenSelection:
    """What a strategy chooses on normalised clips (B, C, T, H, W).

    Args:
        keep: the share that is kept, for strategies that keep; other settings of the strategy by name.
        model: whose embedding measures the change; None: the raw pixels.
    """
    name = strategy.replace("_", "-")
    if name not in STRATEGIES:
        raise unknown_name("strategy", strategy, STRATEGIES)
    if name == "redundancy-robust":
        settings = {"visible_ratio": None, "keep_ratio": keep, **settings}
    selector = STRATEGIES[name](**settings)
    embed = model.encoder.patch_embed if model is not None else _RawPixels()
    step = model.encoder.patch_embed.tubelet if model is not None else tubelet
    grid = TokenGrid.of_clip(frames=x.size(2), size=(x.size(3), x.size(4)), tubelet=step)
    noise = torch.from_numpy(
        np.random.default_rng(seed).random((x.size(0), grid.num_tokens), dtype=np.float32)
    )
    importance = None
    if isinstance(selector, RedundancyRobust):
        importance = change_importance(
            x, embed, step, distance=selector.distance, first_slice=selector.first_slice
        )
    return selector(grid, importance=importance, noise=noise.to(x.device))
