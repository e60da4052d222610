"""A straightforward input pipeline: decord, one PIL image per frame, floats created in the worker.

It does the same as the released loaders of this family, in our own code: a clip is decoded for every item,
each frame is cropped and resized as a PIL image, and the result is stacked, divided by 255 and normalized.
"""

from __future__ import annotations

from pathlib import Path

import decord
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from everest.data.crops import Box, multi_scale_crop

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1)


def decode(path: Path, ids: list[int]) -> np.ndarray:
    """(F, H, W, 3) by decord, the file opened again."""
    return decord.VideoReader(str(path), num_threads=1).get_batch(ids).asnumpy()


def training_item(path: Path, ids: list[int], size: int, rng: np.random.Generator) -> Tensor:
    """(3, T, size, size) float32, multi-scale cropped and perhaps flipped."""
    images = [Image.fromarray(frame) for frame in decode(path, ids)]
    box = multi_scale_crop((images[0].height, images[0].width), (size, size), rng)
    images = [_cut(image, box).resize((size, size), Image.Resampling.BILINEAR) for image in images]
    if rng.random() < 0.5:
        images = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
    return _normalized(images)


def _cut(image: Image.Image, box: Box) -> Image.Image:
    return image.crop((box.left, box.top, box.left + box.width, box.top + box.height))


def _normalized(images: list[Image.Image]) -> Tensor:
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images]))  # (T, H, W, 3)
    clip = stacked.permute(3, 0, 1, 2).contiguous().float() / 255
    return (clip - MEAN) / STD
