"""Clips without the motion of the camera and without cuts, for measuring what changes in a scene.

A camera that moves changes every token, and a cut changes all of them at once; neither shows where something
happens. So the frames before are moved to where the camera is now, and the first slice of a scene takes the
change of the next one, as the first slice of a clip does. EVEREST does neither; both are our addition.

B batch, C channels, T frames, P = T - lag pairs of frames, S steps of time, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor

from everest.methods.camera import Pyramid, estimate_motion, mean_change, moved, no_motion
from everest.video.pixels import PixelStatistics

Align = Literal["none", "shift", "affine"]
Cuts = Literal["ignore", "detect"]

# Our choice, made on real clips and on pairs of them, for a change of the whole frame that begins a scene.
CUT: Final = 0.5  # standard deviations of the clip's gray values, at least
CUT_FACTOR: Final = 2.5  # times the median change of the clip, at least


@dataclass(frozen=True, slots=True, eq=False)
class PreviousFrames:
    """For each frame the one `lag` frames earlier, as the camera would show it from its new place."""

    frames: Tensor  # (B, C, P, H, W) of the type of the clip; the frame itself where nothing corresponds
    motion: Tensor  # (B, P, 2, 3) float32, see everest.methods.camera
    change: Tensor  # (B, P) float32: the mean change of gray values that is left, in standard deviations

    @property
    def moves(self) -> Tensor:
        """(B, P) bool: whether the camera moves."""
        return (self.motion != torch.eye(2, 3, device=self.motion.device)).flatten(2).any(dim=2)

    @property
    def begins_scene(self) -> Tensor:
        """(B, P) bool: whether a cut is between: a large change that the clip does not have elsewhere.

        The median of few pairs is one of the changes themselves, so a clip of two slices has no cut.
        """
        median = self.change.sort(dim=1).values[:, self.change.size(1) // 2].unsqueeze(1)  # (B, 1)
        return (self.change > CUT) & (self.change > CUT_FACTOR * median)


@torch.no_grad()
def previous_frames(frames: Tensor, *, lag: int, align: Align, pixels: PixelStatistics) -> PreviousFrames:
    """Move the earlier frames of clips to where the camera is later.

    Estimated and interpolated on bytes, to which normalized frames are converted, so both give the same. A
    frame that the camera does not move for is returned as it is.

    Args:
        frames: (B, C, T, H, W) uint8, or float: normalized.
        lag: in frames, fewer than T.
        align: none: only the change is measured, after a shift.
        pixels: by which frames are normalized.
    """
    # Clips that were bytes become the same bytes again.
    is_bytes = frames.dtype == torch.uint8
    values = frames if is_bytes else (pixels.unnormalize(frames.float()) * 255).round()
    pyramid = Pyramid.of(values)
    pairs = pyramid.pairs(lag)
    now, before = pairs[0]
    still = no_motion(now.size(0), frames.device)  # (B * P, 2, 3)
    estimated = still
    if pyramid.is_large_enough:
        estimated = estimate_motion(pairs, "shift" if align == "none" else align)
    change = mean_change(now, *moved(before, estimated))  # (B * P,)
    motion = still if align == "none" else estimated
    shape = (frames.size(0), frames.size(2) - lag)
    found = PreviousFrames(frames[:, :, :-lag], motion.unflatten(0, shape), change.unflatten(0, shape))
    if align == "none":
        return found
    images = values.transpose(1, 2)  # (B, T, C, H, W)
    earlier, later = images[:, :-lag].flatten(0, 1), images[:, lag:].flatten(0, 1)  # (B * P, C, H, W)
    warped, inside = moved(earlier.float(), motion, pyramid.full)
    shown = warped.round_().to(values.dtype)
    if is_bytes:
        # A selection by arithmetic, exact in spite of overflow: `where` is slow on bytes.
        shown = (shown - later) * inside + later
        return replace(found, frames=shown.unflatten(0, shape).transpose(1, 2))
    moves = found.moves[:, None, :, None, None]
    shown, is_seen = (x.unflatten(0, shape).transpose(1, 2) for x in (shown, inside))  # (B, C or 1, P, H, W)
    normalized = pixels.normalize_unit_range(shown / 255).to(frames.dtype)
    seen = torch.where(is_seen, normalized, frames[:, :, lag:])
    return replace(found, frames=torch.where(moves, seen, found.frames))


def first_of_scene(begins: Tensor, length: int) -> Tensor:
    """Whether a cut is in a slice of `length` frames or right before it: pairs (B, P) to (B, P / length)."""
    return begins.unflatten(1, (-1, length)).any(dim=2)


def without_cuts(change: Tensor, begins: Tensor, nothing: float) -> Tensor:
    """Replace the change at the beginning of a scene by the next change inside of the scene.

    Args:
        change: (B, S, …) of each step of time since the one before.
        begins: (B, S) bool.
        nothing: the value of no change, where the scene has no later step.
    """
    steps = begins.size(1)
    numbers = torch.arange(steps, device=begins.device)
    can_serve = (numbers >= numbers[:, None]) & ~begins[:, None]  # (B, S, S): at or after each step
    source = torch.where(can_serve, numbers, steps).amin(dim=2)  # (B, S)
    extended = torch.cat([change, torch.full_like(change[:, :1], nothing)], dim=1)  # (B, S + 1, …)
    index = source.view(*source.shape, *(1,) * (change.dim() - 2)).expand_as(change)
    return extended.gather(1, index)
