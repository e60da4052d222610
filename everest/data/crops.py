"""Which part of the frames: boxes for training, testing and erasing. Integers; no pixel is touched here.

Sizes are (height, width). Where a target is not square, what the released programs do for squares is done for
the target's shape: boxes have its aspect ratio, and distortions are relative to it.

Pixels of a clip: crop and resize on uint8 while loading, erase on the device after normalising.

B batch, T frames, H W pixels. A clip is (T, H, W, 3) as decoded and (3, T, H, W) as the model takes it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from everest.data.frames import part_of

Size = tuple[int, int]

SCALES = (1.0, 0.875, 0.75, 0.66)  # of the short side; VideoMAE and EVEREST, pre-training
MAX_DISTORTION = 1  # steps between the scales of the two sides
SNAP = 3  # a side this close to the target's (pixels) becomes the target's: no resize for so little
AREA = (0.08, 1.0)  # fine-tuning crop, share of the frame; Szegedy et al. 2015
RATIO = (0.75, 1.3333)  # its width / height
ERASED_AREA = (0.02, 1 / 3)  # random erasing, Zhong et al. 2017, with timm's bounds
ERASED_RATIO = (0.3, 1 / 0.3)
ATTEMPTS = 10  # to place a random box


class Box(NamedTuple):
    """A part of a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


NO_BOX = Box(0, 0, 0, 0)


def multi_scale_crop(frame: Size, target: Size, rng: np.random.Generator) -> Box:
    """One of a few sizes at one of 13 fixed places (Wang et al. 2015, very deep two-stream ConvNets)."""
    sizes = multi_scale_sizes(frame, target)
    size = sizes[rng.integers(len(sizes))]
    places = fixed_places(frame, size)
    return Box(*places[rng.integers(len(places))], *size)


def multi_scale_sizes(frame: Size, target: Size) -> list[Size]:
    """The largest box of the target's shape at all scales, slightly distorted versions included."""
    largest = _largest_box(frame, target)
    heights, widths = (_scaled(side, wanted) for side, wanted in zip(largest, target, strict=True))
    return [
        (height, width)
        for i, height in enumerate(heights)
        for j, width in enumerate(widths)
        if abs(i - j) <= MAX_DISTORTION
    ]


def fixed_places(frame: Size, crop: Size) -> list[tuple[int, int]]:
    """(top, left) of the four corners, the center, the middles of the edges, the middles of the quarters."""
    down, right = ((whole - part) // 4 for whole, part in zip(frame, crop, strict=True))
    corners = [(0, 0), (0, 4), (4, 0), (4, 4)]
    center_and_edges = [(2, 2), (2, 0), (2, 4), (4, 2), (0, 2)]
    quarters = [(1, 1), (1, 3), (3, 1), (3, 3)]
    return [(y * down, x * right) for y, x in corners + center_and_edges + quarters]


def random_resized_crop(
    frame: Size, target: Size, rng: np.random.Generator, *, areas: tuple[float, float] = AREA
) -> Box:
    """A box of random area, shape and place; the center when none fits.

    Args:
        areas: smallest and largest share of the frame.
    """
    height, width = frame
    squareness = target[1] / target[0]  # of the target; 1 for a square
    for _ in range(ATTEMPTS):
        area = rng.uniform(*areas) * height * width
        ratio = _log_uniform(RATIO, rng) * squareness
        crop = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < crop[0] <= height and 0 < crop[1] <= width:
            return Box(*_place(frame, crop, rng), *crop)
    ratio = min(max(width / height, RATIO[0] * squareness), RATIO[1] * squareness)
    crop = min(height, round(width / ratio)), min(width, round(height * ratio))
    return center_box(frame, (max(crop[0], 1), max(crop[1], 1)))


def erasing_box(frame: Size, probability: float, rng: np.random.Generator) -> Box:
    """What random erasing (Zhong et al. 2017) covers: one box for all frames of a clip, or `NO_BOX`."""
    if rng.random() > probability:
        return NO_BOX
    height, width = frame
    for _ in range(ATTEMPTS):
        area = rng.uniform(*ERASED_AREA) * height * width
        ratio = _log_uniform(ERASED_RATIO, rng)
        box = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if box[0] < height and box[1] < width:
            return Box(*_place(frame, box, rng), *box)
    return NO_BOX


def covering_size(frame: Size, target: Size) -> Size:
    """What to resize a frame to, its shape kept: one side equals the target's, the other is not shorter."""
    (height, width), (wanted_height, wanted_width) = frame, target
    if wanted_height * width >= wanted_width * height:
        return wanted_height, wanted_height * width // height
    return wanted_width * height // width, wanted_width


def view_boxes(frame: Size, target: Size, crops: int) -> list[Box]:
    """`crops` boxes of the target's size, evenly along the longer side of a frame of the covering size.

    A single one is the center.
    """
    if crops == 1:
        return [center_box(frame, target)]
    down, right = frame[0] - target[0], frame[1] - target[1]
    steps = crops - 1
    return [Box(part_of(down, k, steps), part_of(right, k, steps), *target) for k in range(crops)]


def center_box(frame: Size, target: Size) -> Box:
    """The middle of a frame, half pixels to the even side as released."""
    return Box(round((frame[0] - target[0]) / 2), round((frame[1] - target[1]) / 2), *target)


def _scaled(side: int, wanted: int) -> list[int]:
    lengths = [max(int(side * scale), 1) for scale in SCALES]
    # Only inwards: the released program leaves a frame that is a little smaller than the target.
    return [wanted if abs(length - wanted) < SNAP and wanted <= side else length for length in lengths]


def _largest_box(frame: Size, target: Size) -> Size:
    (height, width), (wanted_height, wanted_width) = frame, target
    if wanted_height * width >= wanted_width * height:
        return height, max(height * wanted_width // wanted_height, 1)
    return max(width * wanted_height // wanted_width, 1), width


def _log_uniform(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    return math.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1])))


def _place(frame: Size, box: Size, rng: np.random.Generator) -> tuple[int, int]:
    top, left = (int(rng.integers(0, whole - part + 1)) for whole, part in zip(frame, box, strict=True))
    return top, left


def crop(clip: Tensor, box: Box) -> Tensor:
    """The same box of all frames of (T, H, W, 3), a view."""
    return clip[:, box.top : box.top + box.height, box.left : box.left + box.width]


def resize(clip: Tensor, size: Size, *, antialias: bool) -> Tensor:
    """Bilinear resize of (T, H, W, 3) uint8 to (3, T, *size) uint8, which lies in memory as the frames do.

    Args:
        antialias: True is PIL's resize, as in the released pre-training; False is that of OpenCV and of
            `interpolate`, as in the released fine-tuning and test.
    """
    frames = clip.permute(0, 3, 1, 2)  # (T, 3, H, W), channels last in memory: torch's fast path for bytes
    if frames.shape[-2:] != size:
        frames = F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=antialias)
    return frames.transpose(0, 1)


def flip(clip: Tensor) -> Tensor:
    """Mirror (..., W) left to right."""
    return clip.flip(-1)


def erase(frames: Tensor, boxes: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill one box of every clip with noise, fresh for every frame and value (Zhong et al. 2017).

    Args:
        frames: (B, 3, T, H, W) float, normalised; so the noise is standard normal.
        boxes: (B, 4) int64 top, left, height, width; a height of 0 erases nothing.
        generator: on the device of the frames.
    """
    top, left, height, width = (side.view(-1, 1) for side in boxes.unbind(1))  # (B, 1) each
    y = torch.arange(frames.size(-2), device=frames.device)
    x = torch.arange(frames.size(-1), device=frames.device)
    rows, columns = (y >= top) & (y < top + height), (x >= left) & (x < left + width)  # (B, H), (B, W)
    covered = (rows[:, :, None] & columns[:, None, :])[:, None, None]  # (B, 1, 1, H, W)
    noise = torch.empty_like(frames).normal_(generator=generator)
    return torch.where(covered, noise, frames)
