"""Boxes for training, evaluation and erasing, and the operations that crop, resize and erase pixels.

Sizes are (height, width). The official code handles square targets only. For other targets, boxes have the
target's aspect ratio, and distortions are relative to it. Clips are cropped and resized as uint8 while
loading, and erased on the device after normalization.

The training device can also resize and flip: then worker processes copy the box of a crop as it was decoded,
a region. Boxes, flips and random numbers are the same as in a worker. The bytes are equal up to rounding:
both resize the width first, and round it to bytes.

B batch, V views, C channels, T frames, H W pixels, R S pixels of a region in memory. A decoded clip
is (T, H, W, C), the input of a model (C, T, H, W).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from everest.data.frames import truncated_fraction

__all__ = [  # the public names of everest.crops
    "Box",
    "center_box",
    "crop",
    "erase",
    "erasing_box",
    "multi_scale_crop",
    "random_resized_crop",
    "resize",
    "view_boxes",
]

Size = tuple[int, int]

CROP_SCALES = (1.0, 0.875, 0.75, 0.66)  # pre-training crop side / short side of the frame; VideoMAE, EVEREST
MAX_SCALE_STEPS = 1  # steps between the scales of the two sides
SNAP_PIXELS = 3  # a side that differs less from the target's becomes the target's: no tiny resize
CROP_AREA = (0.08, 1.0)  # fine-tuning crop, fraction of the frame; Szegedy et al. 2015
CROP_RATIO = (0.75, 1.3333)  # fine-tuning crop, width / height
ERASED_AREA = (0.02, 1 / 3)  # random erasing, Zhong et al. 2017, with timm's bounds
ERASED_RATIO = (0.3, 1 / 0.3)
MAX_ATTEMPTS = 10  # attempts to draw a random box that fits
CLIPS_AT_ONCE: Final = 32  # clips resized at once, our choice: 0.6 GB of values for 16 frames at 224 pixels
REGION_RATIO: Final = (8, 7)  # largest region side / clip side: 256 pixels for 224


class Box(NamedTuple):
    """A part of a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """The rows and columns of frames (…, H, W)."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


NO_BOX = Box(0, 0, 0, 0)


def multi_scale_crop(frame: Size, target: Size, rng: np.random.Generator) -> Box:
    """Draw a box of one of several sizes at one of 13 positions (Wang et al. 2015, two-stream ConvNets)."""
    sizes = multi_scale_sizes(frame, target)
    size = sizes[rng.integers(len(sizes))]
    down, right = ((side - part) // 4 for side, part in zip(frame, size, strict=True))
    corners = [(0, 0), (0, 4), (4, 0), (4, 4)]
    center_and_edges = [(2, 2), (2, 0), (2, 4), (4, 2), (0, 2)]
    quarters = [(1, 1), (1, 3), (3, 1), (3, 3)]
    positions = corners + center_and_edges + quarters
    y, x = positions[rng.integers(len(positions))]
    return Box(y * down, x * right, *size)


def multi_scale_sizes(frame: Size, target: Size) -> list[Size]:
    """The sizes of the largest box of the target's shape at all scales, and slightly distorted versions."""
    if target[0] * frame[1] >= target[1] * frame[0]:  # the frame is wider
        largest = frame[0], max(frame[0] * target[1] // target[0], 1)
    else:
        largest = max(frame[1] * target[0] // target[1], 1), frame[1]
    scaled = ([max(int(side * scale), 1) for scale in CROP_SCALES] for side in largest)
    # Sides only shrink: the official code leaves a frame that is a little smaller than the target.
    heights, widths = (
        [wanted if abs(length - wanted) < SNAP_PIXELS and wanted <= side else length for length in lengths]
        for lengths, side, wanted in zip(scaled, largest, target, strict=True)
    )
    return [
        (height, width)
        for i, height in enumerate(heights)
        for j, width in enumerate(widths)
        if abs(i - j) <= MAX_SCALE_STEPS
    ]


def random_resized_crop(
    frame: Size, target: Size, rng: np.random.Generator, *, areas: tuple[float, float] = CROP_AREA
) -> Box:
    """Draw a box of random area (a fraction of the frame), shape and position; centered if none fits."""
    height, width = frame
    target_ratio = target[1] / target[0]  # 1 for a square target
    for _ in range(MAX_ATTEMPTS):
        area = rng.uniform(*areas) * height * width
        ratio = _log_uniform(CROP_RATIO, rng) * target_ratio
        size = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < size[0] <= height and 0 < size[1] <= width:
            return _random_box(frame, size, rng)
    ratio = min(max(width / height, CROP_RATIO[0] * target_ratio), CROP_RATIO[1] * target_ratio)
    size = min(height, round(width / ratio)), min(width, round(height * ratio))
    return center_box(frame, (max(size[0], 1), max(size[1], 1)))


def erasing_box(frame: Size, probability: float, rng: np.random.Generator) -> Box:
    """Draw the box that random erasing (Zhong et al. 2017) fills in all frames of a clip, or `NO_BOX`."""
    if rng.random() > probability:
        return NO_BOX
    height, width = frame
    for _ in range(MAX_ATTEMPTS):
        area = rng.uniform(*ERASED_AREA) * height * width
        ratio = _log_uniform(ERASED_RATIO, rng)
        size = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if size[0] < height and size[1] < width:
            return _random_box(frame, size, rng)
    return NO_BOX


def covering_size(frame: Size, target: Size) -> Size:
    """The smallest size of the frame's shape that is not smaller than the target on either side."""
    if target[0] * frame[1] >= target[1] * frame[0]:  # the frame is wider
        return target[0], target[0] * frame[1] // frame[0]
    return target[1] * frame[0] // frame[1], target[1]


def view_boxes(frame: Size, target: Size, crops: int) -> list[Box]:
    """`crops` boxes of the target's size, evenly spaced along the longer side; a single one is centered."""
    if crops == 1:
        return [center_box(frame, target)]
    down, right = frame[0] - target[0], frame[1] - target[1]
    tops, lefts = ([truncated_fraction(x, k, crops - 1) for k in range(crops)] for x in (down, right))
    return [Box(top, left, *target) for top, left in zip(tops, lefts, strict=True)]


def center_box(frame: Size, target: Size) -> Box:
    """The box in the middle of a frame; half pixels are rounded to even, as in the official code."""
    return Box(round((frame[0] - target[0]) / 2), round((frame[1] - target[1]) / 2), *target)


def _log_uniform(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    return math.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1])))


def _random_box(frame: Size, size: Size, rng: np.random.Generator) -> Box:
    top, left = (int(rng.integers(0, side - part + 1)) for side, part in zip(frame, size, strict=True))
    return Box(top, left, *size)


def crop(clip: Tensor, box: Box) -> Tensor:
    """Crop all frames of (T, H, W, C), without a copy."""
    return clip[:, *box.slices]


def resize(clip: Tensor, size: Size, *, antialias: bool) -> Tensor:
    """Resize (T, H, W, C) uint8 to (C, T, h, w) uint8, bilinear; the memory order of the frames is kept.

    Args:
        antialias: True resizes like PIL, as in the released pre-training; False like OpenCV and
            `interpolate`, as in the released fine-tuning and evaluation.
    """
    frames = clip.permute(0, 3, 1, 2)  # (T, C, H, W), channels last in memory: torch's fast path for uint8
    if frames.shape[-2:] != size:
        frames = F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=antialias)
    return frames.transpose(0, 1)


def erase(frames: Tensor, boxes: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill one box of every clip with noise, drawn for every frame and value (Zhong et al. 2017).

    Args:
        frames: (B, C, T, H, W) float, normalized: the noise is standard normal.
        boxes: (B, 4) int64 top, left, height, width; a height of 0 erases nothing.
        generator: a generator on the device of the frames.
    """
    top, left, height, width = (side.view(-1, 1) for side in boxes.unbind(1))  # (B, 1) each
    y = torch.arange(frames.size(-2), device=frames.device)
    x = torch.arange(frames.size(-1), device=frames.device)
    rows, columns = (y >= top) & (y < top + height), (x >= left) & (x < left + width)  # (B, H), (B, W)
    is_erased = (rows[:, :, None] & columns[:, None, :])[:, None, None]  # (B, 1, 1, H, W)
    noise = torch.empty_like(frames).normal_(generator=generator)
    return torch.where(is_erased, noise, frames)


class Regions(NamedTuple):
    """How the device turns the regions of a batch into clips."""

    boxes: Tensor  # (B, V, 3) int64: height and width of the region, and 1 if its clip is flipped
    size: Size  # (H, W) of the clips
    antialias: bool  # see `resize`


def largest_region(size: Size) -> Size:
    """The memory (R, S) for the regions of clips of a size; larger boxes are resized while loading."""
    height, width = (-(-side * REGION_RATIO[0] // REGION_RATIO[1]) for side in size)
    return height, width


def resize_regions(frames: Tensor, regions: Regions, *, precise: bool = True) -> Tensor:
    """Resize and flip regions, the upper left parts of frames.

    Args:
        frames: (B, V, T, R, S, C) uint8.
        precise: compute in float32, not in float16, which is fast on a GPU.
    Returns:
        (B, V, C, T, H, W) uint8.
    """
    dtype = torch.float32 if precise else torch.float16
    height, width, flipped = regions.boxes.flatten(0, 1).unbind(1)  # (B * V) each
    rows = _resize_weights(height, regions.size[0], frames.size(3), antialias=regions.antialias)
    columns = _resize_weights(width, regions.size[1], frames.size(4), antialias=regions.antialias)
    columns = torch.where(flipped.bool()[:, None, None], columns.flip(1), columns)
    clips = []
    for chunk, down, across in zip(
        frames.flatten(0, 1).split(CLIPS_AT_ONCE),
        rows.to(dtype).split(CLIPS_AT_ONCE),
        columns.to(dtype).split(CLIPS_AT_ONCE),
        strict=True,
    ):
        values = chunk.permute(0, 4, 1, 2, 3).to(dtype)  # (b, C, T, R, S)
        values = (values @ across.mT[:, None, None]).round()  # (b, C, T, R, W), as bytes
        clips.append((down[:, None, None] @ values).round().to(torch.uint8))  # (b, C, T, H, W)
    return torch.cat(clips).unflatten(0, frames.shape[:2])


def _resize_weights(lengths: Tensor, target_length: int, region_length: int, *, antialias: bool) -> Tensor:
    """The weight of each pixel of a region's side in each pixel of the clip's side: (N, T, R) float32.

    T is `target_length`, R `region_length`; the first `lengths` (N,) pixels of the side belong to the region.
    """
    scale = lengths[:, None, None] / target_length
    support = scale.clamp(min=1) if antialias else torch.ones_like(scale)
    centers = (torch.arange(target_length, device=lengths.device)[:, None] + 0.5) * scale
    pixels = torch.arange(region_length, device=lengths.device)
    fractions = (1 - (pixels + 0.5 - centers).abs() / support).clamp(min=0)
    fractions = fractions * (pixels < lengths[:, None, None])
    return fractions / fractions.sum(2, keepdim=True)
