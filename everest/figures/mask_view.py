"""The view of one strategy on one clip: the tokens, their importance and their pixels.

C channels, T frames, H W pixels, N tokens, K selected tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from everest.figures.camera import CameraView
from everest.methods.grid import TokenGrid, patchify, unpatchify
from everest.methods.importance import NO_CHANGE
from everest.methods.ranked import ByEmbedding, Drawn
from everest.methods.selector import Selector

RED = (0.9, 0.15, 0.1)
TINT = 0.55  # how far a predicted token is faded to red
GRAY = 0.55  # of omitted tokens: neither black nor white, which videos contain


def draws_evenly(selector: Selector) -> bool:
    """Whether a strategy draws all tokens with the same probability, whatever their importance."""
    return isinstance(selector, Drawn) and selector.uniform == 1


@dataclass(frozen=True, kw_only=True)
class MaskView:
    """One strategy on one clip."""

    title: str
    selector: Selector
    grid: TokenGrid
    kept: Tensor  # (K,) ids of the encoded or predicted tokens, ascending
    visible: Tensor  # (K_vis,) ids of the encoded tokens, ascending
    importance: Tensor | None  # (N,) float32; None for strategies that measure nothing
    frames: Tensor  # (T, H, W, 3) float32 in [0, 1]
    predicted: Tensor | None  # like frames: visible tokens unchanged, targets as a model predicts them
    with_truth: bool = False  # whether `predicted` has the mean and std of the true tubelets
    camera: CameraView | None = None  # of a strategy that looks at the camera
    rebuilt: Tensor | None = None  # like frames: the clip that a tokenizer rebuilds from the kept tokens

    def pixels_of(self, tokens: Tensor, *, tinted: Tensor | None = None) -> Tensor:
        """The frames with `tokens` (K,) unchanged, `tinted` ones reddish, and all others gray."""
        patches = to_patches(self.frames, self.grid)
        shown = torch.full_like(patches, GRAY)
        if tinted is not None:
            shown[tinted] = (1 - TINT) * patches[tinted] + TINT * torch.tensor(RED).view(3, 1, 1, 1)
        shown[tokens] = patches[tokens]
        return to_frames(shown, self.grid)

    @property
    def tubelet(self) -> tuple[int, int, int]:
        """Frames, rows and columns of pixels of a token."""
        length, height, width = self.frames.shape[:3]
        return length // self.grid.t, height // self.grid.h, width // self.grid.w

    @property
    def order(self) -> Tensor | None:
        """(N,) token ids, the first to keep in front; None if the strategy measures nothing."""
        if self.importance is None:
            return None
        return self.selector.ranked(self.importance[None])[0]

    @property
    def no_change(self) -> float:
        """The importance of a token that did not change."""
        return NO_CHANGE[self.selector.distance] if isinstance(self.selector, ByEmbedding) else 0.0

    def heat(self) -> Tensor:
        """Return the importance of each pixel's token, (T, H, W) float32."""
        assert self.importance is not None
        by_token = self.importance.view(self.grid.t, self.grid.h, self.grid.w)
        return over_pixels(by_token, self.frames.shape[:3])

    def kept_per_slice(self) -> list[int]:
        return torch.bincount(self.kept // self.grid.per_slice, minlength=self.grid.t).tolist()

    def to_dict(self) -> dict[str, Any]:
        """Return the values of --json: ids and counts."""
        return {
            "grid": [self.grid.t, self.grid.h, self.grid.w],
            "strategy": self.selector.strategy,
            "keep": round(len(self.kept) / self.grid.num_tokens, 4),
            "kept_per_slice": self.kept_per_slice(),
            "kept": self.kept.tolist(),
            "visible": self.visible.tolist(),
            **({} if self.camera is None else {"camera": self.camera.to_dict()}),
        }


def over_pixels(by_token: Tensor, shape: Sequence[int]) -> Tensor:
    """Spread values of tokens (t, h, w) over the pixels (T, H, W) of `shape` that they cover."""
    for dim, (length, tokens) in enumerate(zip(shape, by_token.shape, strict=True)):
        by_token = by_token.repeat_interleave(length // tokens, dim=dim)
    return by_token


def in_colors(frames: Tensor) -> Tensor:
    """Frames (..., 3) as they are; gray ones (..., 1) with three equal channels."""
    return frames if frames.size(-1) == 3 else frames.expand(*frames.shape[:-1], 3)


def to_patches(frames: Tensor, grid: TokenGrid) -> Tensor:
    """(T, H, W, C) to (N, C, t, p, q)."""
    length, height, width = frames.shape[:3]
    tubelet = (length // grid.t, height // grid.h, width // grid.w)
    return patchify(frames.movedim(-1, 0)[None], tubelet)[0]


def to_frames(patches: Tensor, grid: TokenGrid) -> Tensor:
    """The inverse of `to_patches`."""
    return unpatchify(patches[None], grid)[0].movedim(0, -1).clamp(0, 1).cpu()
