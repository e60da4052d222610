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

from everest.methods.alignment import Align, previous_frames
from everest.methods.grid import patchify
from everest.system.compute import computes_bf16, full_precision, fusable, in_parts
from everest.video.pixels import IMAGENET, PixelStatistics

DistanceName = Literal["l2", "l1", "neg-cosine", "neg-cka"]
FirstSlice = Literal["copy", "zero"]
Cuts = Literal["ignore", "detect"]
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
    frames: Tensor,
    embed: Embedding,
    distance: DistanceName = "l2",
    first_slice: FirstSlice = "copy",
    align: Align = "none",
    cuts: Cuts = "ignore",
) -> Tensor:
    """The distance of each token from the slice before: I(i+1, j) = S(k(i+1, j), k(i, j)), EVEREST eq. 2.

    Measured in float32 even under autocast: rounding to bfloat16 changes which tokens are kept. For a norm
    the frames are subtracted first, so that only slices - 1 are embedded and no bias has to cancel. Bytes are
    subtracted as they are: their differences are exact in any type, and are normalized by the weight.

    Tokens with the same pixels as in the slice before have exactly the importance `NO_CHANGE`. Otherwise,
    rounding errors would rank them differently in compiled and in exported models.

    Args:
        frames: (B, C, T, H, W) uint8, or float: normalized.
        first_slice: `copy` gives it the importance of the second slice, like the released program; `zero`
            gives it no change.
        align: the motion of the camera that is removed first (everest.methods.alignment).
        cuts: `detect` lets the first slice of a scene take the importance of the next one.
    Returns:
        (B, N) float32. No change for a clip of one slice.
    """
    t, p, q = embed.tubelet
    per_slice, no_change = frames.size(3) // p * (frames.size(4) // q), NO_CHANGE[distance]
    if frames.size(2) == t:
        return frames.new_full((frames.size(0), per_slice), no_change, dtype=torch.float32)
    before, begins = earlier_frames(frames, lag=t, align=align, cuts=cuts, pixels=embed.pixels)
    with full_precision(frames.device):
        if distance in DISTANCES:
            now, earlier = (
                patchify(embed.pixels.normalized(x).float(), embed.tubelet)
                for x in (frames[:, :, t:], before)
            )  # (B, N - h*w, C, t, p, q) each
            # Rounding can raise a similarity above 1.
            later = DISTANCES[distance](embed(now), embed(earlier)).clamp(min=no_change)  # (B, N - h*w)
            later = later.masked_fill((now == earlier).flatten(2).all(dim=-1), no_change)
        elif frames.dtype == torch.uint8:
            later = in_parts(partial(_norms_of_bytes, embed=embed, norm=NORMS[distance]), frames, before)
        else:
            change = patchify(frames[:, :, t:].float() - before.float(), embed.tubelet)
            later = NORMS[distance](embed(change, biased=False))
    later = later.unflatten(1, (-1, per_slice))  # (B, slices - 1, h*w)
    return with_scene_starts(later, begins, no_change=no_change, copy=first_slice == "copy").flatten(1)


@fusable
def _norms_of_bytes(
    frames: Tensor, before: Tensor, *, embed: Embedding, norm: Callable[[Tensor], Tensor]
) -> Tensor:
    """The norms (B, N - h*w) of the embedded changes of bytes, which are exact from -255 to 255."""
    exact = torch.bfloat16 if computes_bf16(frames.device) else torch.float32
    now, earlier = (patchify(x, embed.tubelet) for x in (frames[:, :, embed.tubelet[0] :], before))
    return norm(embed.of_byte_changes(now.to(exact).sub_(earlier)))


@torch.no_grad()
def pixel_change(
    frames: Tensor,
    tubelet: tuple[int, int, int],
    pixels: PixelStatistics = IMAGENET,
    align: Align = "none",
    cuts: Cuts = "ignore",
) -> Tensor:
    """The difference between the pixels of each token and the frame before: motion without optical flow.

    The mean absolute difference over the tubelet's frames, channels and pixels. The first frame takes the
    difference of the second. Our choice, modeled on the motion-guided masking in the related work of the
    EVEREST paper, which needs optical flow.

    Args:
        frames: (B, C, T, H, W) uint8, or float: normalized.
        pixels: normalize bytes.
        align, cuts: as in `embedding_change`, of frames instead of slices.
    Returns:
        (B, N) float32. Zeros for a clip of one frame.
    """
    x = pixels.normalized(frames).float()
    if x.size(2) == 1:
        return patchify(torch.zeros_like(x), tubelet).flatten(2).mean(dim=-1)
    before, begins = earlier_frames(frames, lag=1, align=align, cuts=cuts, pixels=pixels)
    later = (x[:, :, 1:] - pixels.normalized(before)).abs().transpose(1, 2)  # (B, T - 1, C, H, W)
    change = with_scene_starts(later, begins, no_change=0.0, copy=True).transpose(1, 2)
    return patchify(change, tubelet).flatten(2).mean(dim=-1)


def earlier_frames(
    frames: Tensor, *, lag: int, align: Align, cuts: Cuts, pixels: PixelStatistics
) -> tuple[Tensor, Tensor | None]:
    """The frame `lag` before each frame, (B, C, T - lag, H, W), and whether each frame begins a scene.

    The second result is (B, T) bool; None if cuts are ignored. For the arguments see `previous_frames`.
    """
    if align == "none" and cuts == "ignore":
        return frames[:, :, :-lag], None
    with full_precision(frames.device):
        previous = previous_frames(frames, lag=lag, align=align, pixels=pixels)
    return previous.frames, previous.begins_scene if cuts == "detect" else None


def with_scene_starts(later: Tensor, begins: Tensor | None, *, no_change: float, copy: bool) -> Tensor:
    """Fill in the changes that cannot be measured because a scene begins: (B, S, …).

    A slice that begins a scene takes the next measured change of this scene. In a scene without one, each
    spatial position takes its mean change in the clip, so that the scene is neither kept nor lost as a whole:

        begins a scene    |  .  .  |  .  .  |
        measured change   -  3  1  -  2  4  -
        filled in         3  3  1  2  2  4  2.5

    If a scene begins inside a slice, the change of the next slice cannot be measured, either.

    Args:
        later: (B, S - 1, …), the change of each slice (or frame) but the first since the one before it.
        begins: (B, T) bool, whether a frame begins a scene, T / S frames a slice; None: only the first does.
        copy: False: fill in `no_change` instead.
    """
    first = later[:, :1]
    if begins is None:
        return torch.cat([first if copy else torch.full_like(first, no_change), later], dim=1)
    change = torch.cat([first, later], dim=1)  # (B, S, …)
    slices, tail = change.size(1), (1,) * (change.dim() - 2)
    cuts = begins.unflatten(1, (slices, -1))  # (B, S, frames of a slice)
    starts = cuts.any(dim=2)  # (B, S)
    has_cut_inside = cuts[:, :, 1:].any(dim=2)  # (B, S)
    follows_cut = torch.cat([torch.ones_like(starts[:, :1]), has_cut_inside[:, :-1]], dim=1)  # (B, S)
    starts, measured = (x.view(-1, slices, *tail) for x in (starts, ~(starts | follows_cut)))  # (B, S, 1, …)
    if not copy:
        return change.where(measured, no_change)

    count = measured.sum(dim=1)  # (B, 1, …)
    mean = change.where(measured, 0.0).sum(dim=1) / count.clamp(min=1)  # (B, …)
    mean = mean.where(count > 0, no_change)
    filled, following = [], mean  # from the last slice to the first: the next measured change of the scene
    for i in reversed(range(slices)):
        following = change[:, i].where(measured[:, i], following)  # (B, …)
        filled.insert(0, following)
        following = mean.where(starts[:, i], following)
    return torch.stack(filled, dim=1)
