"""Small image models of timm with random weights, of each family that everest reads."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from everest.checkpoints.timm_parts import ImageModel
from everest.checkpoints.timm_tensors import image_weights
from everest.system.weights import Weights

MEAN, STD = (0.5, 0.4, 0.6), (0.5, 0.3, 0.2)


def image_model(*, kind: type[ImageModel] = VisionTransformer, **options: Any) -> ImageModel:
    """A small image model of timm on 4 x 4 patches, with all its parameters random."""
    torch.manual_seed(0)
    values = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    model = kind(**values | options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def weights_of(model: ImageModel) -> Weights:
    return image_weights(model, mean=MEAN, std=STD, source="timm:small")


def images(count: int = 2) -> Tensor:
    """(B, 3, 32, 32) uint8"""
    return torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(1)).byte()


def as_timm(frames: Tensor) -> Tensor:
    """Normalize (B, 3, H, W) as the model was trained."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (frames / 255 - mean) / std
