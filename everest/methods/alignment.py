"""Clips without the motion of the camera and without cuts, for measuring what changes in a scene.

A camera that moves changes every token, and a cut changes all of them at once; neither shows where something
happens. So the frames before are moved to where the camera is now, and the first slice of a scene takes the
change of the next one, as the first slice of a clip does. EVEREST does neither; both are our addition.

B batch, C channels, T frames, P = T - lag pairs of frames, S steps of time, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import torch
from torch import Tensor

from everest.errors import RecipeError
from everest.methods.camera import MIN_SIDE, Plane, estimate_motion, gray_pairs, mean_change, moved, no_motion
from everest.system.compute import fusable, in_parts, is_eager_on_cpu
from everest.video.pixels import PixelStatistics

Align = Literal["none", "shift", "affine"]

# Heuristic, made on real clips and on pairs of them: what a new scene changes, after the camera's motion.
CUT_CHANGE: Final = 0.5  # the least mean change, in standard deviations of the clip's gray values
CUT_FACTOR: Final = 2.5  # the least mean change over the lower quartile of the clip's changes
PIXEL_CHANGE: Final = 0.25  # standard deviations by which a pixel has changed
CUT_SHARE: Final = 0.6  # the least share of changed pixels: an object changes fewer


@dataclass(frozen=True, slots=True, eq=False)
class PreviousFrames:
    """For each frame the one `lag` frames earlier, as the camera would show it from its new place."""

    frames: Tensor  # (B, C, P, H, W) of the type of the clip; the frame itself where nothing corresponds
    motion: Tensor  # (B, P, 2, 3) float32, see everest.methods.camera
    moves: Tensor  # (B, P) bool: whether the camera moves
    change: Tensor  # (B, P) float32: the mean change of gray values that is left, in standard deviations
    changed: Tensor  # (B, P) float32: the share of the pixels that have changed
    lag: int

    @property
    def begins_scene(self) -> Tensor:
        """(B, P + lag) bool: the frames right after a cut.

        Every pair of frames that a cut divides must change, in most of its pixels, and much more than other
        pairs of the clip. A cut less than `lag` frames from an end of the clip divides fewer pairs and is not
        looked for, because a large object at that end looks the same. Nor are cuts between successive frames:
        a fast motion that is not understood looks like many of them.
        """
        count = self.change.size(1)
        none = torch.zeros_like(self.change[:, :1], dtype=torch.bool)  # (B, 1)
        if count < self.lag:
            return none.expand(-1, count + self.lag)
        usual = self.change.sort(dim=1).values[:, count // 4].unsqueeze(1)  # (B, 1)
        is_new = (self.change > CUT_CHANGE) & (self.change > CUT_FACTOR * usual) & (self.changed > CUT_SHARE)
        # A cut before frame f divides the pairs f - lag to f - 1, counted by their earlier frames.
        num_starts = count - self.lag + 1  # the frames from `lag` to P
        divided = [is_new[:, i : i + num_starts] for i in range(self.lag)]
        starts = torch.stack(divided).all(dim=0)  # (B, P - lag + 1)
        follows = torch.cat([none, starts[:, :-1]], dim=1)  # another start is right before it
        precedes = torch.cat([starts[:, 1:], none], dim=1)
        alone = starts & ~(follows | precedes)
        return torch.cat([none.expand(-1, self.lag), alone, none.expand(-1, self.lag - 1)], dim=1)


@fusable
@torch.no_grad()
def previous_frames(frames: Tensor, *, lag: int, align: Align, pixels: PixelStatistics) -> PreviousFrames:
    """Move the earlier frames of clips to where the camera is later.

    Estimated and interpolated on bytes, to which normalized frames are converted, so both give the same. A
    frame that the camera does not move for is returned as it is.

    Args:
        frames: (B, C, T, H, W) uint8, or float: normalized.
        lag: in frames, from 1 to T - 1.
        align: none: only the change is measured, after a shift.
        pixels: by which frames are normalized.
    """
    assert 1 <= lag < frames.size(2), (frames.shape, lag)
    if frames.size(1) != len(pixels.mean):
        raise RecipeError(
            f"align and cuts need clips of {len(pixels.mean)} channels here; these have {frames.size(1)}"
        )
    values = frames
    if frames.dtype != torch.uint8:  # clips that were bytes become the same bytes again
        values = in_parts(lambda clips: (pixels.unnormalize(clips.float()) * 255).round_(), frames)
    pairs, plane = gray_pairs(values, lag)
    now, before = pairs[0]  # (B * P, 1, h, w)
    estimated = still = no_motion(now.size(0), frames.device)  # (B * P, 2, 3)
    if min(now.shape[2:]) >= MIN_SIDE:
        estimated = estimate_motion(pairs, "shift" if align == "none" else align)
    warped, inside = moved(before, estimated)
    change = mean_change(now, warped, inside)  # (B * P,)
    changed = ((now - warped).abs() > PIXEL_CHANGE).logical_and_(inside).float().mean(dim=(1, 2, 3))
    motion = still if align == "none" else estimated
    shape = (frames.size(0), frames.size(2) - lag)
    motion, change, changed = (x.unflatten(0, shape) for x in (motion, change, changed))
    moves = (motion != torch.eye(2, 3, device=motion.device)).flatten(-2).any(dim=-1)  # (B, P)
    shown = frames[:, :, :-lag]
    if align != "none":
        shown = in_parts(partial(_shown, lag=lag, plane=plane, pixels=pixels), frames, values, motion, moves)
    return PreviousFrames(shown, motion, moves, change, changed, lag)


def _shown(
    frames: Tensor,
    values: Tensor,
    motion: Tensor,
    moves: Tensor,
    *,
    lag: int,
    plane: Plane,
    pixels: PixelStatistics,
) -> Tensor:
    """The earlier frames (B, C, P, H, W) of clips, moved by the camera; the later ones where it shows more.

    Args:
        frames: (B, C, T, H, W) uint8, or float: normalized.
        values: the same, from 0 to 255.
        motion: (B, P, 2, 3), of places in `plane`.
        moves: (B, P) bool, whether it is a motion.
    """
    before, after = frames[:, :, :-lag], frames[:, :, lag:]  # (B, C, P, H, W)
    if is_eager_on_cpu(moves) and not moves.any():
        return before
    earlier = values[:, :, :-lag].transpose(1, 2)  # (B, P, C, H, W)
    earlier = earlier.to(torch.float32, memory_format=torch.contiguous_format).flatten(0, 1)
    sampled, inside = moved(earlier, motion.flatten(0, 1), plane)
    shown, inside = (  # (B, C or 1, P, H, W)
        x.unflatten(0, motion.shape[:2]).transpose(1, 2) for x in (sampled.round_(), inside)
    )
    if frames.dtype != torch.uint8:
        shown = pixels.normalize_unit_range(shown / 255).to(frames.dtype)
        return torch.where(moves[:, None, :, None, None], torch.where(inside, shown, after), before)
    shown = shown.to(torch.uint8)
    if frames.is_cuda:
        return torch.where(inside, shown, after)
    # The same by arithmetic, exact in spite of overflow: on a CPU, `where` is slow on bytes.
    return shown.sub_(after).mul_(inside).add_(after)
