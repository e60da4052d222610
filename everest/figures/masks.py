"""Kept, visible and predicted tokens of a clip as images.

T frames, H W pixels, N tokens, K chosen tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from everest.errors import RecipeError
from everest.methods.grid import TokenGrid, TokenSelection, patchify, unpatchify
from everest.methods.importance import Embedding, RawPixels, ScoredEmbedding
from everest.methods.ranked import LearnedImportance
from everest.methods.selector import Selector
from everest.methods.targets import PixelTargets
from everest.models.classifier import VideoClassifier
from everest.models.mae import MaskedAutoencoder
from everest.tokenizer.network import AdaptiveTokenizer
from everest.tokenizer.targets import FrozenTokenizer
from everest.video.pixels import normalize, unnormalize

RED = (0.9, 0.15, 0.1)
GRAY = 0.55  # of what is left out: neither black nor white, which videos have


@dataclass(frozen=True, kw_only=True)
class MaskView:
    """One strategy on one clip."""

    title: str
    selector: Selector
    grid: TokenGrid
    kept: Tensor  # (K,) ids, ascending: encoded or predicted
    visible: Tensor  # (K_vis,) ids, ascending
    importance: Tensor | None  # (N,) float32; None for strategies that do not measure
    frames: Tensor  # (T, H, W, 3) float32 in [0, 1]
    predicted: Tensor | None  # as frames: visible tokens as they are, targets as a model predicts them
    with_truth: bool = False  # `predicted` has the mean and std of the true tubelets
    rebuilt: Tensor | None = None  # as frames: the clip as a tokenizer makes it from the kept tokens

    @property
    def kept_frames(self) -> Tensor:
        """The frames; tokens that are not kept are gray."""
        return self._only(self.kept)

    @property
    def visible_frames(self) -> Tensor:
        """The frames; tokens that are not visible are gray."""
        return self._only(self.visible)

    @property
    def tinted_frames(self) -> Tensor:
        """Visible tokens unchanged, predicted tokens reddish, all others gray."""
        patches = _cut(self.frames, self.grid)
        shown = torch.full_like(patches, GRAY)
        shown[self.kept] = 0.45 * patches[self.kept] + 0.55 * torch.tensor(RED).view(3, 1, 1, 1)
        shown[self.visible] = patches[self.visible]
        return _joined(shown, self.grid)

    @property
    def order(self) -> Tensor | None:
        """(N,) token ids by importance, kept first in front; None if the strategy measures nothing."""
        if self.importance is None:
            return None
        return self.selector.ranked(self.importance[None])[0]

    def heat(self) -> Tensor:
        """(T, H, W) float32: the importance of each pixel's token."""
        assert self.importance is not None
        by_token = self.importance.view(self.grid.t, self.grid.h, self.grid.w)
        return spread(by_token, self.frames.shape[:3])

    def to_dict(self) -> dict[str, Any]:
        """The values of --json: ids and counts."""
        per_slice = torch.bincount(self.kept // self.grid.per_slice, minlength=self.grid.t)
        return {
            "grid": [self.grid.t, self.grid.h, self.grid.w],
            "strategy": self.selector.strategy,
            "keep": round(len(self.kept) / self.grid.num_tokens, 4),
            "kept_per_slice": per_slice.tolist(),
            "kept": self.kept.tolist(),
            "visible": self.visible.tolist(),
        }

    def _only(self, ids: Tensor) -> Tensor:
        patches = _cut(self.frames, self.grid)
        shown = torch.full_like(patches, GRAY)
        shown[ids] = patches[ids]
        return _joined(shown, self.grid)


def spread(by_token: Tensor, shape: Sequence[int]) -> Tensor:
    """Spread values of tokens (t, h, w) over the pixels (T, H, W) of `shape` that they cover."""
    for dim, (length, tokens) in enumerate(zip(shape, by_token.shape, strict=True)):
        by_token = by_token.repeat_interleave(length // tokens, dim=dim)
    return by_token


def _cut(frames: Tensor, grid: TokenGrid) -> Tensor:
    """(T, H, W, 3) to (N, 3, t, p, q)."""
    length, height, width = frames.shape[:3]
    tubelet = (length // grid.t, height // grid.h, width // grid.w)
    return patchify(frames.movedim(-1, 0)[None], tubelet)[0]


def _joined(patches: Tensor, grid: TokenGrid) -> Tensor:
    """The inverse of `_cut`."""
    return unpatchify(patches[None], grid)[0].movedim(0, -1).clamp(0, 1).cpu()


Transformer = MaskedAutoencoder | VideoClassifier
AnyModel = Transformer | AdaptiveTokenizer


def _measure(model: AnyModel | None, tubelet: tuple[int, int, int]) -> Embedding:
    """The embedding that strategies measure change with."""
    if model is None:
        return RawPixels(tubelet)
    if isinstance(model, AdaptiveTokenizer):
        return ScoredEmbedding(RawPixels(model.tubelet), FrozenTokenizer.wrap(model))
    return model.measure


@torch.inference_mode()
def view_masks(
    clip: Tensor,
    selectors: Sequence[tuple[str, Selector]],
    *,
    model: AnyModel | None,
    tubelet: tuple[int, int, int],
    seed: int,
) -> list[MaskView]:
    """Apply strategies, given with their titles, to a clip (3, T, H, W) uint8.

    Args:
        model: its embedding measures change; an autoencoder also predicts. A tokenizer scores, and rebuilds
            the clip from the kept tokens and the first slice of each window. None: raw pixels measure change.
        tubelet: of the raw pixels; a model has its own.
    Raises:
        RecipeError: the clip does not divide into tubelets, a strategy does not fit its grid, or no token is
            visible to the model.
    """
    embed = _measure(model, tubelet)
    grid = TokenGrid.of_clip(frames=clip.size(1), size=(clip.size(2), clip.size(3)), tubelet=embed.tubelet)
    x = normalize(clip)[None]  # (1, 3, T, H, W)
    noise = torch.from_numpy(np.random.default_rng(seed).random((1, grid.num_tokens), dtype=np.float32))
    views = []
    for title, selector in selectors:
        importance = selector.importance(x, embed)
        chosen = selector(grid, importance=importance, noise=noise)
        _refuse_nothing(selector, chosen, predicts=isinstance(model, MaskedAutoencoder))
        prediction = None
        if isinstance(model, MaskedAutoencoder) and chosen.target.size(1) and chosen.visible.size(1):
            prediction = model(x, selection=chosen).prediction
        view = _view(title, selector, x, chosen, importance, prediction, model, grid)
        if isinstance(model, AdaptiveTokenizer):
            view = replace(view, rebuilt=_rebuilt(model, x, view.kept))
        views.append(view)
    return views


def _refuse_nothing(selector: Selector, chosen: TokenSelection, *, predicts: bool) -> None:
    """Raise RecipeError if a small ratio of few tokens keeps none."""
    kept = chosen.visible.size(1) + chosen.target.size(1)
    scores_only = isinstance(selector, LearnedImportance) and selector.mask_ratio == 1
    if not kept or (predicts and not chosen.visible.size(1) and not scores_only):
        effect = "lets the model see none" if kept else "keeps none"
        raise RecipeError(f"--keep: {selector.strategy} {effect} of the tokens; keep more")


def _rebuilt(tokenizer: AdaptiveTokenizer, x: Tensor, kept: Tensor) -> Tensor:
    """(T, H, W, 3) in [0, 1] from the tokens `kept` (K,) of a normalized clip (1, 3, T, H, W).

    As in training, the first slice of each window is kept completely.
    """
    clip = unnormalize(x)
    grid = tokenizer.grid(clip)
    mask = torch.zeros(grid.num_tokens).index_fill_(0, kept, 1.0).view(1, grid.t, grid.h, grid.w)
    mask[:, :: tokenizer.window // tokenizer.tubelet[0]] = 1.0
    rebuilt = F.interpolate(tokenizer.reconstruct(clip, mask=mask), clip.shape[-3:])  # of a smaller size
    return rebuilt[0].movedim(0, -1).clamp(0, 1)


@torch.inference_mode()
def view_model(model: MaskedAutoencoder, clip: Tensor, *, noise: Tensor) -> MaskView:
    """The tokens that a model keeps, sees and predicts with its own strategy.

    Args:
        clip: (3, T, H, W) uint8, or the candidates that the model draws a clip from.
        noise: (N,) uniform in [0, 1), and a number more for each candidate slice.
    """
    device = model.mask_token.device
    out = model(normalize(clip.to(device))[None], noise=noise[None].to(device))
    importance = model.selector.importance(out.frames, model.measure)
    grid, title = model.encoder.grid, model.selector.strategy
    return _view(title, model.selector, out.frames, out.selection, importance, out.prediction, model, grid)


def _view(
    title: str,
    selector: Selector,
    x: Tensor,
    chosen: TokenSelection,
    importance: Tensor | None,
    prediction: Tensor | None,
    model: AnyModel | None,
    grid: TokenGrid,
) -> MaskView:
    frames = unnormalize(x)[0].movedim(0, -1)  # (T, H, W, 3)
    visible, target = chosen.visible[0], chosen.target[0]
    predicted, with_truth = None, False
    if isinstance(model, MaskedAutoencoder) and prediction is not None:
        with_truth = isinstance(model.targets, PixelTargets) and bool(model.targets.normalize)
        patches = _cut(frames, grid)
        shown = torch.full_like(patches, GRAY)
        shown[target] = model.targets.pixels(prediction, x, chosen.target)[0]
        shown[visible] = patches[visible]
        predicted = _joined(shown, grid)
    return MaskView(
        title=title,
        selector=selector,
        grid=grid,
        kept=torch.cat([visible, target]).unique().cpu(),
        visible=visible.cpu(),
        importance=None if importance is None else importance[0].cpu(),
        frames=frames.clamp(0, 1).cpu(),
        predicted=predicted,
        with_truth=with_truth,
    )
