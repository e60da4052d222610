"""The motion of the camera: estimated between two frames, or put on still frames as a task.

It is estimated from small gray images. A coarse search finds a shift, and robust Gauss-Newton steps refine it
to a fraction of a pixel and, on request, to an affine map (zoom, rotation, shear). If most pixels
do not confirm a motion, it is set to zero. The values below are our choice, made on composites of real clips.

Places are measured from the middle of a frame, in units of half of its longer side, after cropping to
whole pixels of the smallest image. A motion maps a place in a frame to the place in an earlier frame that
shows the same.

In the task, a known motion is put on a still frame, and predicted from the clip (`moving_clips`).

B batch, C channels, T frames, M pairs of frames, H W pixels, h w pixels of a small image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from everest.system.compute import in_parts

CameraModel = Literal["shift", "affine"]

SMALL_SIDE: Final = 56  # about the pixels of the shorter side of a small image
MIN_SIDE: Final = 24  # fewest pixels of the shorter side: with fewer, noise looks like a motion
LEAST_LEVEL_SIDE: Final = 8  # fewest pixels of the shorter side of the smallest level
LEVELS: Final = 3
SEARCH_RADIUS: Final = 3  # pixels of the smallest level: a fifth of a frame of 14 pixels
REFINE_STEPS: Final = 2  # Gauss-Newton steps on each level
ERROR_SPREAD: Final = 2.0  # the error at which a pixel's weight is a quarter / the mean error
GRAY_NOISE: Final = 0.05  # a change that means nothing, in standard deviations of the gray values
LEAST_LEAD: Final = 0.05  # the lead that votes for a motion need over those against it
LEAST_OVERLAP: Final = 0.4  # the least share of a frame that the earlier frame must show
LEAST_STD: Final = 2.0  # gray levels of 255; a lower standard deviation is not content
MOST_CHANGE: Final = 0.4  # the most change that a motion may leave, in standard deviations
RIDGE: Final = 1e-3  # keeps flat images solvable


@dataclass(frozen=True, slots=True)
class Plane:
    """Where places are in images of one size: the pixel of the middle, and the pixels of a unit."""

    center: tuple[float, float]  # x, y
    unit: float

    @classmethod
    def of(cls, height: int, width: int) -> Plane:
        return cls(center=((width - 1) / 2, (height - 1) / 2), unit=max(height, width) / 2)

    def places(self, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The places of the columns (w,) and of the rows (h,)."""
        x = torch.arange(width, device=device, dtype=torch.float32).sub_(self.center[0]).div_(self.unit)
        y = torch.arange(height, device=device, dtype=torch.float32).sub_(self.center[1]).div_(self.unit)
        return x, y


def gray_pairs(frames: Tensor, lag: int) -> tuple[list[tuple[Tensor, Tensor]], Plane]:
    """Small gray images of clips and those `lag` frames earlier, and the places of the frames.

    Args:
        frames: (B, C, T, H, W) bytes, or floats from 0 to 255.
    Returns:
        Pairs of images (M, 1, h, w) float32, M = B * (T - lag), each pair half as large as the one before.
        Over a clip, images have mean 0 and standard deviation 1.
    """
    height, width = frames.shape[3:]
    pool = max(1, round(min(height, width) / SMALL_SIDE))
    count = 1
    while count < LEVELS and min(height, width) // pool >= LEAST_LEVEL_SIDE << count:
        count += 1
    whole = pool << (count - 1)  # a pixel of the smallest level; the rest of a side is left out
    height, width = max(height // whole, 1) * whole, max(width // whole, 1) * whole

    def reduced(clips: Tensor) -> Tensor:
        """The mean gray values (B, T, h, w) of windows of `pool` x `pool` pixels."""
        if not frames.is_cuda:
            return F.avg_pool2d(clips.mean(dim=1, dtype=torch.float32), pool)
        # A single operation reads the clips once and writes nothing else; a CPU takes four times as long.
        windows = clips.unflatten(4, (-1, pool)).unflatten(3, (-1, pool))  # (B, C, T, h, pool, w, pool)
        return windows.mean(dim=(1, 4, 6), dtype=torch.float32)

    gray = in_parts(reduced, frames[..., :height, :width])
    gray = gray - gray.mean(dim=(1, 2, 3), keepdim=True)
    levels = [gray / gray.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=LEAST_STD)]
    for _ in range(count - 1):
        levels.append(F.avg_pool2d(levels[-1], 2))
    pairs = [
        (level[:, lag:].flatten(0, 1).unsqueeze(1), level[:, :-lag].flatten(0, 1).unsqueeze(1))
        for level in levels
    ]
    return pairs, Plane.of(height, width)


def no_motion(count: int, device: torch.device) -> Tensor:
    """(count, 2, 3) float32 motions that map each place to itself."""
    return torch.eye(2, 3, device=device).expand(count, 2, 3)


def estimate_motion(pairs: list[tuple[Tensor, Tensor]], model: CameraModel) -> Tensor:
    """The motion of the camera for each pair of images, (M, 2, 3) float32.

    Exactly no motion where it is not confirmed: for a camera at rest, for scenes in which no motion fits most
    of the frame, and for two different scenes.

    Args:
        pairs: of `gray_pairs`; the shorter side of the first must be `MIN_SIDE`, at least.
    """
    affine_levels = pairs[:-1] if model == "affine" else []  # the smallest has few pixels for six unknowns
    shift_levels = pairs[1:] if affine_levels else pairs  # an affine map refines the finest level itself
    motion = _search(*pairs[-1])
    for now, before in reversed(shift_levels):
        for _ in range(REFINE_STEPS):
            motion = _refined(motion, now, before, "shift")
    for now, before in reversed(affine_levels):
        for _ in range(REFINE_STEPS):
            motion = _refined(motion, now, before, "affine")

    # Confirmed if most pixels change less with the motion than otherwise. Each pixel has one vote, however
    # much it changes, so an object that moves does not decide. Interpolation removes noise, so a motion by
    # less than a pixel looks better than none even if the camera rests. The opposite motion is interpolated
    # alike, so the votes for one of the two are noise then.
    now, before = pairs[0]
    still = no_motion(motion.size(0), motion.device)
    warped, inside = moved(before, motion)
    back, inside_back = moved(before, 2 * still - motion)
    error = (now - warped).abs()
    confirmed = (
        (inside.float().mean(dim=(1, 2, 3)) >= LEAST_OVERLAP)
        & (mean_change(now, warped, inside) < MOST_CHANGE)
        & (_votes(error, (now - before).abs(), inside) > LEAST_LEAD)
        & (_votes(error, (now - back).abs(), inside & inside_back) > LEAST_LEAD)
    )  # (M,)
    return torch.where(confirmed[:, None, None], motion, still)


def moved(images: Tensor, motion: Tensor, plane: Plane | None = None) -> tuple[Tensor, Tensor]:
    """Sample images (M, C, h, w) at the places of motions (M, 2, 3).

    Args:
        plane: where the places are; None: measured from the middle of these images.
    Returns:
        The images, interpolated linearly, and whether their places are inside: (M, 1, h, w) bool.
    """
    height, width = images.shape[2:]
    plane = plane or Plane.of(height, width)
    x, y = plane.places(height, width, images.device)
    rows = []  # motions to the coordinates of grid_sample, -1 to 1 from edge to edge
    for row, center, side in zip(motion.unbind(1), plane.center, (width, height), strict=True):
        middle = (2 * center + 1) / side - 1  # the coordinate of the middle
        scaled = row * (2 * plane.unit / side)  # (M, 3)
        rows.append(torch.cat([scaled[:, :2], scaled[:, 2:] + middle], dim=1))
    # No matrix product: on a GPU it may be computed in TF32, which is too coarse for places.
    by_x, by_y, start = torch.stack(rows, dim=1).unsqueeze(3).unbind(2)  # (M, 2, 1) each
    grid = (by_x * x + start).unsqueeze(2) + (by_y * y).unsqueeze(3)  # (M, 2, h, w)
    edge = 1e-4  # tolerates rounding
    inside = (grid[:, 0].abs() <= 1 - 1 / width + edge) & (grid[:, 1].abs() <= 1 - 1 / height + edge)
    sampled = F.grid_sample(images, grid.movedim(1, -1), padding_mode="border", align_corners=False)
    return sampled, inside.unsqueeze(1)


def mean_change(now: Tensor, before: Tensor, inside: Tensor) -> Tensor:
    """The mean change (M,) of images (M, 1, h, w) where `inside`, of the same shape, is true."""
    return ((now - before).abs() * inside).sum(dim=(1, 2, 3)) / inside.sum(dim=(1, 2, 3)).clamp(min=1)


def _search(now: Tensor, before: Tensor) -> Tensor:
    """The shift (M, 2, 3) of whole pixels with the smallest mean change, of images (M, 1, h, w)."""
    height, width = now.shape[2:]
    side = 2 * SEARCH_RADIUS + 1
    windows = F.unfold(F.pad(before, (SEARCH_RADIUS,) * 4), (height, width))  # (M, h*w, side * side)
    inside = F.unfold(F.pad(torch.ones_like(now[:1]), (SEARCH_RADIUS,) * 4), (height, width))
    change = ((now.flatten(1).unsqueeze(2) - windows).abs() * inside).sum(dim=1) / inside.sum(dim=1)
    offsets = torch.arange(side, device=now.device, dtype=torch.float32) - SEARCH_RADIUS
    x, y = offsets.repeat(side), offsets.repeat_interleave(side)  # (side * side,)
    best = (change + 1e-3 * (x.square() + y.square())).argmin(dim=1)  # of equal changes the shortest shift
    shift = torch.stack([x[best], y[best]], dim=1) / Plane.of(height, width).unit  # (M, 2)
    return torch.cat([no_motion(now.size(0), now.device)[:, :, :2], shift.unsqueeze(2)], dim=2)


def _refined(motion: Tensor, now: Tensor, before: Tensor, model: CameraModel) -> Tensor:
    """One weighted Gauss-Newton step on images (M, 1, h, w): the motion (M, 2, 3) with a smaller error.

    The slope is the mean of both images' (as in efficient second-order minimization, Benhimane and Malis
    2004). Of an image, the outermost pixels have none.
    """
    plane = Plane.of(now.size(2), now.size(3))
    warped, inside = moved(before, motion)  # (M, 1, h, w) each
    error, seen = (now - warped)[:, 0, 1:-1, 1:-1], inside[:, 0, 1:-1, 1:-1].float()  # (M, h - 2, w - 2) each
    # Large errors have small weights (Geman and McClure).
    scale = (error.abs() * seen).sum(dim=(1, 2)) / seen.sum(dim=(1, 2)).clamp(min=1)  # (M,)
    ratio = error / (ERROR_SPREAD * scale.clamp(min=GRAY_NOISE))[:, None, None]
    weight = seen / (1 + ratio.square()).square()  # (M, h - 2, w - 2)
    mean = (now + warped)[:, 0] * (plane.unit / 4)  # (M, h, w), with the factor of a central difference
    across = mean[:, 1:-1, 2:] - mean[:, 1:-1, :-2]  # (M, h - 2, w - 2): the slope along x
    down = mean[:, 2:, 1:-1] - mean[:, :-2, 1:-1]  # (M, h - 2, w - 2): the slope along y
    products = torch.stack([across * across, across * down, down * down, across * error, down * error], dim=1)
    products = products * weight.unsqueeze(1)  # (M, 5, h - 2, w - 2)
    if model == "affine":
        return motion + _affine_step(products, plane)
    sums = products.sum(dim=(2, 3))  # (M, 5)
    matrix = torch.stack([sums[:, :2], sums[:, 1:3]], dim=1)  # (M, 2, 2)
    step = _solved(matrix, sums[:, 3:].unsqueeze(2)).unsqueeze(2)  # (M, 2, 1)
    return torch.cat([motion[:, :, :2], motion[:, :, 2:] + step], dim=2)


def _affine_step(products: Tensor, plane: Plane) -> Tensor:
    """The change (M, 2, 3) of an affine map, by the products (M, 5, h - 2, w - 2) of images in `plane`.

    A row of the map has three unknowns, the factors of x, y and 1: the slope for each is the pixel's times
    its place. So every entry of the system is a sum of `products` times two coordinates of the place.
    """
    height, width = products.shape[2:]
    x, y = plane.places(height + 2, width + 2, products.device)  # (w,), (h,)
    one = torch.ones(height, width, device=products.device)
    place = torch.stack(torch.broadcast_tensors(x[1:-1], y[1:-1, None], one))  # (3, h - 2, w - 2)
    twice = (place.unsqueeze(1) * place).flatten(0, 1).flatten(1)  # (9, pixels): products of x, y, 1
    sums = (products.flatten(2) @ twice.T).unflatten(2, (3, 3))  # (M, 5, 3, 3)
    xx, xy, yy = sums[:, 0], sums[:, 1], sums[:, 2]  # (M, 3, 3) each
    matrix = torch.cat([torch.cat([xx, xy], dim=2), torch.cat([xy, yy], dim=2)], dim=1)  # (M, 6, 6)
    right = sums[:, 3:, :, 2].flatten(1)  # (M, 6)
    return _solved(matrix, right.unsqueeze(2)).unflatten(1, (2, 3))


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve symmetric systems (M, n, n) for (M, n, 1) by elimination, which every export can express."""
    n = matrix.size(1)
    unit = torch.eye(n, device=matrix.device)
    ridge = RIDGE * (1 + (matrix * unit).sum(dim=(1, 2)) / n)  # (M,)
    rows = torch.cat([matrix + ridge[:, None, None] * unit, right], dim=2)  # (M, n, n + 1)
    for i in range(n):
        pivot = rows[:, i : i + 1] / rows[:, i : i + 1, i : i + 1]  # (M, 1, n + 1)
        rows = rows + (unit[i][:, None] - rows[:, :, i : i + 1]) * pivot
    return rows[:, :, n]


def _votes(error: Tensor, other: Tensor, inside: Tensor) -> Tensor:
    """The votes (M,) for the first of two errors (M, 1, h, w), from -1 to 1; without errors 0."""
    total = error + other + GRAY_NOISE
    votes = (inside * (other - error) / total).sum(dim=(1, 2, 3))
    return votes / (inside * (other + error) / total).sum(dim=(1, 2, 3)).clamp(min=1e-6)


MOTIONS: Final = 4  # pan to the right, pan down, zoom, rotation
NUM_RANDOM: Final = MOTIONS + 1  # random numbers of a clip: for its frame and its motions
# Heuristic, over a whole clip: a quarter of a frame's width and height, a factor of e^0.5, half a radian.
LARGEST_MOTION: Final = 0.5
SHOWN_SHARE: Final = 0.75  # heuristic: the share of a frame's sides that a clip shows in its middle


def moving_clips(frames: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Make a clip of each still frame, as a camera with a constant motion would show it.

    Args:
        frames: (B, C, T, H, W) uint8, or float: normalized; one frame of each clip is used.
        numbers: (B, NUM_RANDOM) uniform in [0, 1): which frame, and the motions.
    Returns:
        Clips (B, C, T, H, W) of the same type, and their motions (B, MOTIONS) with mean 0 and variance 1.
    """
    batch, _, length, height, width = frames.shape
    chosen = (numbers[:, 0] * length).long()  # (B,)
    still = frames[torch.arange(batch, device=frames.device), :, chosen].float()  # (B, C, H, W)
    motions = 2 * numbers[:, 1:] - 1  # (B, MOTIONS)
    time = torch.linspace(-0.5, 0.5, length, device=frames.device)  # (T,)
    x, y, zoom, angle = (LARGEST_MOTION * motions[:, :, None] * time).unbind(1)  # (B, T) each
    scale, aspect = SHOWN_SHARE * zoom.exp(), width / height
    cos, sin = scale * angle.cos(), scale * angle.sin()  # (B, T)
    rows = torch.stack([cos, -sin / aspect, x, sin * aspect, cos, y], dim=2)  # (B, T, 6)
    grid = F.affine_grid(rows.view(-1, 2, 3), [batch * length, 1, height, width], align_corners=False)
    repeated = still.repeat_interleave(length, dim=0)  # (B * T, C, H, W)
    clips = F.grid_sample(repeated, grid, padding_mode="reflection", align_corners=False)
    clips = (clips if frames.is_floating_point() else clips.round()).to(frames.dtype)
    return clips.unflatten(0, (batch, length)).transpose(1, 2), motions * math.sqrt(3)
