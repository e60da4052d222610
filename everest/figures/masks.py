"""Apply strategies and models to a clip: which tokens they keep, see and predict.

C channels, T frames, H W pixels, N tokens, K selected tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from everest.checkpoints.load import AnyModel
from everest.config.values import Input
from everest.errors import RecipeError
from everest.methods.grid import TokenGrid, TokenSelection, patchify, unpatchify
from everest.methods.importance import NO_CHANGE, Embedding, RawPixels
from everest.methods.selection import Strategy
from everest.methods.targets import FeatureTargets
from everest.models.embedding import frame_differences
from everest.models.mae import MaskedAutoencoder
from everest.models.video_model import VideoModel
from everest.tokenizer.frozen_tokenizer import FrozenTokenizer
from everest.tokenizer.network import AdaptiveTokenizer
from everest.video.facts import VideoInfo

TUBELET: Final = (2, 16, 16)  # of raw pixels, without a model
GRAY: Final = 0.55  # of tokens that are not shown: neither black nor white, which videos contain


@dataclass(frozen=True, kw_only=True)
class ClipMask:
    """One strategy on one clip."""

    title: str
    strategy: Strategy
    grid: TokenGrid
    kept: Tensor  # (K,) ids of the encoded or predicted tokens, ascending
    visible: Tensor  # (K_vis,) ids of the encoded tokens, ascending
    importance: Tensor | None  # (N,) float32; None for strategies that measure nothing
    frames: Tensor  # (T, H, W, 3) float32 in [0, 1]
    predicted: Tensor | None = None  # like frames: visible tokens unchanged, targets as a model predicts them

    @property
    def hides_some(self) -> bool:
        """Whether the encoder sees some of the kept tokens and the decoder predicts the others."""
        return 0 < len(self.visible) < len(self.kept)

    @property
    def no_change(self) -> float:
        """The importance of a token that did not change."""
        return NO_CHANGE.get(getattr(self.strategy, "distance", ""), 0.0)

    def pixels_of(self, tokens: Tensor) -> Tensor:
        """The frames (T, H, W, 3) with `tokens` (K,) as they are and all others gray."""
        is_shown = torch.zeros(self.grid.num_tokens)
        is_shown[tokens] = 1
        return gray_but(self.frames, is_shown.view(self.grid.t, self.grid.h, self.grid.w))

    def to_dict(self) -> dict[str, Any]:
        """Return the values of --json: ids and counts."""
        kept_per_slice = torch.bincount(self.kept // self.grid.per_slice, minlength=self.grid.t)
        return {
            "grid": [self.grid.t, self.grid.h, self.grid.w],
            "strategy": self.strategy.strategy,
            "keep": round(len(self.kept) / self.grid.num_tokens, 4),
            "kept_per_slice": kept_per_slice.tolist(),
            "kept": self.kept.tolist(),
            "visible": self.visible.tolist(),
        }


@torch.inference_mode()
def apply_strategies(
    clip: Tensor,
    strategies: Sequence[tuple[str, Strategy]],
    *,
    model: AnyModel | None,
    embed: Embedding,
    input_kind: Input = "frames",
    seed: int,
) -> list[ClipMask]:
    """Apply strategies, given with their titles, to a clip (C, T, H, W) uint8.

    Args:
        model: an autoencoder also predicts; None: raw pixels measure change.
        input_kind: without a model, which has its own.
    """
    grid = TokenGrid.of_clip(frames=clip.size(1), size=(clip.size(2), clip.size(3)), tubelet=embed.tubelet)
    x = embed.pixels.normalize(clip)[None]  # (1, C, T, H, W)
    if isinstance(model, VideoModel):
        seen = model.to_input(x)
    else:
        seen = x if input_kind == "frames" else frame_differences(x, embed.pixels)
    noise = torch.from_numpy(np.random.default_rng(seed).random((1, grid.num_tokens), dtype=np.float32))
    # Features have no pixels.
    predicts = isinstance(model, MaskedAutoencoder) and not isinstance(model.targets, FeatureTargets)
    masks: list[ClipMask] = []
    for title, strategy in strategies:
        importance = strategy.measure(seen, embed) if strategy.uses_importance else None
        selection = strategy(grid, importance=importance, noise=noise)
        num_visible, num_targets = selection.visible.size(1), selection.target.size(1)
        if not num_visible and (not num_targets or isinstance(model, MaskedAutoencoder)):
            name = strategy.strategy
            raise RecipeError(f"--keep: {name} keeps none of the tokens that are seen; keep more")
        predicted = None
        if isinstance(model, MaskedAutoencoder) and predicts and num_targets:
            predicted = _predicted(model, x, selection, model(x, selection=selection).prediction)
        masks.append(_clip_mask(title, strategy, x, selection, importance, embed, predicted))
    return masks


@torch.inference_mode()
def apply_model(model: MaskedAutoencoder, clip: Tensor, *, noise: Tensor) -> ClipMask:
    """Apply an autoencoder with its own strategy: the tokens that it keeps, sees and predicts.

    Args:
        clip: (C, T, H, W) uint8, or the candidate frames that the model draws a clip from.
        noise: (model.noise_layout.total,) uniform in [0, 1).
    """
    strategy = model.strategy
    device = model.mask_token.device
    out = model(model.pixels.normalize(clip.to(device))[None], noise=noise[None].to(device))
    importance = None
    if strategy.uses_importance:
        importance = strategy.measure(model.to_input(out.frames), model.embedding)
    predicted = _predicted(model, out.frames, out.selection, out.prediction)
    return _clip_mask(
        strategy.strategy, strategy, out.frames, out.selection, importance, model.embedding, predicted
    )


def embedding_of(model: VideoModel | AdaptiveTokenizer | None) -> Embedding:
    """What measures the change of tokens: a model, a tokenizer with its scores, or raw pixels."""
    if isinstance(model, AdaptiveTokenizer):
        return RawPixels(model.tubelet, scores=FrozenTokenizer.wrap(model).scores)
    return RawPixels(TUBELET) if model is None else model.embedding


def scaled_size(
    model: AnyModel | None, size: int | tuple[int, int], video: VideoInfo, *, multiples: tuple[int, int]
) -> tuple[int, int]:
    """Height and width of the frames: a transformer's, else `size`, a side in whole `multiples`."""
    if isinstance(model, VideoModel):
        encoder = model.encoder
        _, p, q = encoder.patch_embed.tubelet
        return encoder.grid.h * p, encoder.grid.w * q
    if not isinstance(size, int):
        return size
    scale = size / min(video.height, video.width)
    height, width = (
        max(round(side * scale / multiple), 1) * multiple
        for side, multiple in zip((video.height, video.width), multiples, strict=True)
    )
    return height, width


def over_pixels(by_token: Tensor, shape: Sequence[int]) -> Tensor:
    """Spread values of tokens (t, h, w) over the pixels (T, H, W) of `shape` that they cover."""
    for dim, (length, tokens) in enumerate(zip(shape, by_token.shape, strict=True)):
        by_token = by_token.repeat_interleave(length // tokens, dim=dim)
    return by_token


def gray_but(frames: Tensor, mask: Tensor) -> Tensor:
    """Frames (T, H, W, 3) with the tokens of a mask (t, h, w) of 0 and 1 as they are, and all others gray."""
    shown = over_pixels(mask, frames.shape[:3]).unsqueeze(-1)  # (T, H, W, 1)
    return frames * shown + GRAY * (1 - shown)


def to_rgb(frames: Tensor) -> Tensor:
    """Frames (..., 3) as they are; gray ones (..., 1) with three equal channels."""
    return frames.expand(*frames.shape[:-1], 3)


def to_frames(clip: Tensor) -> Tensor:
    """A clip (1, C, T, H, W) as frames (T, H, W, 3) in [0, 1] on the CPU."""
    return to_rgb(clip[0].movedim(0, -1).clamp(0, 1).cpu())


def _clip_mask(
    title: str,
    strategy: Strategy,
    x: Tensor,
    selection: TokenSelection,
    importance: Tensor | None,
    embed: Embedding,
    predicted: Tensor | None,
) -> ClipMask:
    """The tokens of a normalized clip (1, C, T, H, W) in a selection."""
    return ClipMask(
        title=title,
        strategy=strategy,
        grid=TokenGrid.of_clip(frames=x.size(2), size=(x.size(3), x.size(4)), tubelet=embed.tubelet),
        kept=torch.cat([selection.visible[0], selection.target[0]]).unique().cpu(),
        visible=selection.visible[0].cpu(),
        importance=None if importance is None else importance[0].cpu(),
        frames=to_frames(embed.pixels.unnormalize(x)),
        predicted=predicted,
    )


def _predicted(model: MaskedAutoencoder, x: Tensor, selection: TokenSelection, prediction: Tensor) -> Tensor:
    """The frames (T, H, W, 3) with the visible tokens as they are and the target as a model predicts it."""
    seen = model.to_input(x)
    patches = patchify(model.pixels.unnormalize(seen), model.embedding.tubelet)[0]  # (N, C, t, p, q)
    shown = torch.full_like(patches, GRAY)
    shown[selection.target[0]] = model.targets.pixels(
        prediction, seen, selection.target, model.embedding.tubelet
    )[0]
    shown[selection.visible[0]] = patches[selection.visible[0]]
    return to_frames(unpatchify(shown[None], model.encoder.grid))
