"""RandAugment (Cubuk et al. 2019), Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of clips.

RandAugment draws operations once per clip and applies them to all frames. The operations are timm's, on PIL
images, with the arguments of its "increasing" set (timm's `rand-m9-n4-mstd0.5-inc1`); the random numbers come
from a generator.

Mixup and CutMix mix a batch with itself in reverse order, in the same way for all its clips, as timm's mode
"batch" does. timm's CutMix would cut frames and rows of a clip instead of rows and columns.

B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from everest.data.crops import Box, Size

__all__ = ["RandAugment", "cut_box", "mix"]  # the public names of everest.augment

Argument = float | int | None

OPERATION_PROBABILITY: Final = 0.5  # probability that a drawn operation is applied
FILL_COLOR: Final = (128, 128, 128)  # color of pixels from outside the frame
CUTMIX_PROBABILITY: Final = 0.5  # probability of CutMix if both are on; timm and VideoMAE


@dataclass(frozen=True, slots=True)
class Operation:
    """One of timm's operations, and how a level in [0, 1] sets its argument."""

    argument: Callable[[float], Argument]  # returns None for an operation without an argument
    signed: bool = False  # the level is negated half of the time


def _enhance(level: float) -> float:
    return max(0.1, 1 + 0.9 * level)  # 1 leaves the image unchanged


# RandAugment draws indices into this table: the order matters.
OPERATIONS: Final = {
    "AutoContrast": Operation(lambda _: None),
    "Equalize": Operation(lambda _: None),
    "Invert": Operation(lambda _: None),
    "Rotate": Operation(lambda level: 30 * level, signed=True),  # degrees
    "PosterizeIncreasing": Operation(lambda level: 4 - int(4 * level)),  # bits kept
    "SolarizeIncreasing": Operation(lambda level: 256 - int(256 * level)),  # inverted from this value on
    "SolarizeAdd": Operation(lambda level: int(110 * level)),
    "ColorIncreasing": Operation(_enhance, signed=True),
    "ContrastIncreasing": Operation(_enhance, signed=True),
    "BrightnessIncreasing": Operation(_enhance, signed=True),
    "SharpnessIncreasing": Operation(_enhance, signed=True),
    "ShearX": Operation(lambda level: 0.3 * level, signed=True),
    "ShearY": Operation(lambda level: 0.3 * level, signed=True),
    "TranslateXRel": Operation(lambda level: 0.45 * level, signed=True),  # fraction of the frame's width
    "TranslateYRel": Operation(lambda level: 0.45 * level, signed=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RandAugment:
    """RandAugment: `ops` operations, drawn with replacement, each applied with probability 0.5."""

    magnitude: float  # 0 to 10
    std: float  # standard deviation of the magnitude
    ops: int  # number of operations per clip

    def draw(self, rng: np.random.Generator) -> list[tuple[str, Argument]]:
        """Draw the names and arguments of the operations to apply."""
        names = list(OPERATIONS)
        operations = []
        for index in rng.integers(0, len(names), size=self.ops):
            if rng.random() > OPERATION_PROBABILITY:
                continue
            operation = OPERATIONS[names[index]]
            magnitude = rng.normal(self.magnitude, self.std) if self.std > 0 else self.magnitude
            level = min(max(magnitude, 0), 10) / 10
            if operation.signed and rng.random() > 0.5:
                level = -level
            operations.append((names[index], operation.argument(level)))
        return operations

    def __call__(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        """Augment (T, H, W, C) uint8 frames. Changing the saturation leaves gray frames as they are."""
        operations = self.draw(rng)
        if not operations:
            return clip
        images = clip.numpy() if clip.size(3) == 3 else clip.numpy()[..., 0]
        frames = [apply_operations(Image.fromarray(image), operations) for image in images]
        augmented = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames]))
        return augmented.view(clip.shape)


def apply_operations(frame: Image.Image, operations: list[tuple[str, Argument]]) -> Image.Image:
    """Apply drawn operations to one frame."""
    from timm.data.auto_augment import NAME_TO_OP  # imported here: timm takes seconds and 200 MB

    for name, argument in operations:
        if (name, argument) == ("PosterizeIncreasing", 0):  # black before Pillow 13, which refuses it
            frame = Image.new(frame.mode, frame.size)
            continue
        arguments = () if argument is None else (argument,)
        fill = FILL_COLOR if frame.mode == "RGB" else FILL_COLOR[0]
        frame = NAME_TO_OP[name](frame, *arguments, resample=Image.Resampling.BICUBIC, fillcolor=fill)
    return frame


def mix(
    frames: Tensor, targets: Tensor, *, mixup: float, cutmix: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mix every clip with its partner from the other end of the batch; a clip in the middle is unchanged.

    Args:
        frames: (B, C, T, H, W) float.
        targets: (B, outputs), the targets of all heads, mixed in the same way.
        mixup, cutmix: alpha of the Beta distribution of a clip's own fraction; 0 turns it off.
    Returns:
        The mixed clips and targets, of the same shapes.
    """
    if mixup <= 0 and cutmix <= 0:
        return frames, targets
    if cutmix > 0 and (mixup <= 0 or rng.random() < CUTMIX_PROBABILITY):
        height, width = frames.shape[-2:]
        box = cut_box((height, width), kept=rng.beta(cutmix, cutmix), rng=rng)
        partners = frames[..., *box.slices].flip(0)
        frames = frames.clone()
        frames[..., *box.slices] = partners
        fraction = 1 - box.height * box.width / (height * width)  # of the clip itself, not of its partner
    else:
        fraction = rng.beta(mixup, mixup)
        frames = frames * fraction + frames.flip(0) * (1 - fraction)
    return frames, targets * fraction + targets.flip(0) * (1 - fraction)


def cut_box(size: Size, *, kept: float, rng: np.random.Generator) -> Box:
    """Draw a box of the frame's shape that leaves a fraction `kept` of it, centered anywhere, then clipped.

    As in timm and the official code, an odd length is rounded down to an even one.
    """
    fraction = math.sqrt(1 - kept)
    spans = []
    for side in size:
        half = int(side * fraction) // 2
        center = int(rng.integers(0, side))
        spans.append((max(center - half, 0), min(center + half, side)))
    (top, bottom), (left, right) = spans
    return Box(top, left, bottom - top, right - left)
