"""Measures of the importance of a token: the change of its embedding or of its pixels, or a learned score.

B batch, C channels, T frames, H W pixels, N tokens, D embedding width, t p q a tubelet's sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from everest.methods.grid import patchify
from everest.system.compute import computes_bf16, full_precision, fusable, in_parts
from everest.video.pixels import IMAGENET, PixelStatistics

DistanceName = Literal["l2", "l1", "neg-cosine", "neg-cka"]
FirstTimeIndex = Literal["copy", "zero"]
# Maps clips (B, C, T, H, W), bytes or normalized, to a tokenizer's scores (B, N) float32: importance.
Scorer = Callable[[Tensor], Tensor]


class Embedding(Protocol):
    """A linear tubelet embedding: patches (B, K, C, t, p, q) to (B, K, D)."""

    tubelet: tuple[int, int, int]
    pixels: PixelStatistics  # the mean and std by which clips of bytes are normalized

    def __call__(self, patches: Tensor, *, biased: bool = True) -> Tensor:
        """Embed patches or, if not `biased`, a difference of patches, whose bias cancels: (B, K, D)."""
        ...

    def of_byte_changes(self, change: Tensor) -> Tensor:
        """Embed differences of bytes (B, K, C, t, p, q) as if they were normalized: (B, K, D) float32."""
        ...


@dataclass(slots=True)
class RawPixels:
    """The embedding without a model: the pixels of the tubelet themselves."""

    tubelet: tuple[int, int, int]
    pixels: PixelStatistics = IMAGENET

    def __call__(self, patches: Tensor, *, biased: bool = True) -> Tensor:
        return patches.flatten(2)

    def of_byte_changes(self, change: Tensor) -> Tensor:
        return self.pixels.byte_changes_weight(change.float()).flatten(2)


def _neg_cka(now: Tensor, before: Tensor) -> Tensor:
    """Minus CKA (B, K) of embeddings (B, K, D): with channels as samples, the squared Pearson correlation."""
    centered = (x - x.mean(dim=-1, keepdim=True) for x in (now, before))
    return -F.cosine_similarity(*centered, dim=-1).square()


# EVEREST Table 9. The norms take the difference of the embeddings, the other distances take both embeddings.
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda change: change.norm(dim=-1),
    "l1": lambda change: change.abs().sum(dim=-1),
}
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "neg-cosine": lambda now, before: -F.cosine_similarity(now, before, dim=-1),
    "neg-cka": _neg_cka,
}
# The lowest value of each distance: the embedding is equal to the one before.
NO_CHANGE: dict[str, float] = {"l2": 0.0, "l1": 0.0, "neg-cosine": -1.0, "neg-cka": -1.0}


@torch.no_grad()
def embedding_change(
    frames: Tensor, embed: Embedding, distance: DistanceName = "l2", first_slice: FirstTimeIndex = "copy"
) -> Tensor:
    """The change of each token since the time index before: I(i+1, j) = S(k(i+1, j), k(i, j)), EVEREST eq. 2.

    Measured in float32 even under autocast: rounding to bfloat16 changes which tokens are kept. For a norm
    the frames are subtracted first, so that one time index fewer is embedded and no bias has to cancel.
    Bytes are subtracted as they are: the differences are exact in any type, and normalized by the weight.

    Tokens with the same pixels as in the time index before have exactly the importance `NO_CHANGE`.
    Otherwise, rounding errors would rank them differently in compiled and in exported models.

    Args:
        frames: (B, C, T, H, W) uint8, or float: normalized.
        first_slice: `copy` gives it the importance of the second time index, like the official code; `zero`
            gives it no change.
    Returns:
        (B, N) float32. No change for a clip of one time index.
    """
    t, p, q = embed.tubelet
    num_positions, no_change = frames.size(3) // p * (frames.size(4) // q), NO_CHANGE[distance]
    if frames.size(2) == t:
        return frames.new_full((frames.size(0), num_positions), no_change, dtype=torch.float32)
    now, before = frames[:, :, t:], frames[:, :, :-t]
    with full_precision(frames.device):
        if distance in DISTANCES:
            patches = (patchify(embed.pixels.normalized(x).float(), embed.tubelet) for x in (now, before))
            now, before = patches  # (B, N - h*w, C, t, p, q) each
            # Rounding can raise a similarity above 1.
            later = DISTANCES[distance](embed(now), embed(before)).clamp(min=no_change)  # (B, N - h*w)
            later = later.masked_fill((now == before).flatten(2).all(dim=-1), no_change)
        elif frames.dtype == torch.uint8:
            later = in_parts(partial(_norms_of_bytes, embed=embed, norm=NORMS[distance]), frames)
        else:
            change = patchify(now.float() - before.float(), embed.tubelet)
            later = NORMS[distance](embed(change, biased=False))
    first = later[:, :num_positions]  # (B, h*w)
    return torch.cat([first if first_slice == "copy" else torch.full_like(first, no_change), later], dim=1)


@fusable
def _norms_of_bytes(frames: Tensor, *, embed: Embedding, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """The norms (B, N - h*w) of the embedded changes of bytes, which are exact from -255 to 255."""
    t, dtype = embed.tubelet[0], torch.bfloat16 if computes_bf16(frames.device) else torch.float32
    now, before = (patchify(x, embed.tubelet) for x in (frames[:, :, t:], frames[:, :, :-t]))
    return norm(embed.of_byte_changes(now.to(dtype).sub_(before)))


@torch.no_grad()
def pixel_change(frames: Tensor, tubelet: tuple[int, int, int], pixels: PixelStatistics = IMAGENET) -> Tensor:
    """The difference between the pixels of each token and the frame before: motion without optical flow.

    The mean absolute difference over the tubelet's frames, channels and pixels. The first frame takes the
    difference of the second. Our choice, modeled on the motion-guided masking in the related work of the
    EVEREST paper, which needs optical flow.

    Args:
        frames: (B, C, T, H, W) uint8, or float: normalized.
        pixels: normalize bytes.
    Returns:
        (B, N) float32. Zeros for a clip of one frame.
    """
    x = pixels.normalized(frames).float()
    change = torch.zeros_like(x)
    if x.size(2) > 1:
        later = x.diff(dim=2).abs()  # (B, C, T - 1, H, W)
        change = torch.cat([later[:, :, :1], later], dim=2)
    return patchify(change, tubelet).flatten(2).mean(dim=-1)
