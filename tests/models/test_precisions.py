"""Models whose weights or clips are not float32: they compute, and measure importance in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny
from torch import Tensor, nn

from everest.config.stage_settings import FinetuneSettings, LoraSettings
from everest.methods.strategies import RedundancyRobust
from everest.models.mae import Reconstruction
from everest.models.partial import choose_trained

OTHERS = (torch.float16, torch.bfloat16, torch.float64)
KINDS = ("pretrain", "classifier", "encoder")
KEPT = RedundancyRobust(keep_ratio=0.5, visible_ratio=None)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "several convolutions": ("pretrain", {"embedding_layers": 2}),
    "rotary": ("pretrain", {"positions": "rotary"}),
    "learned positions": ("pretrain", {"positions": "learned-separable", "class_token": True}),
    "differences": ("classifier", {"input": "differences"}),
    "class attention": ("classifier", {"pooling": "class-attention"}),
    "cosine": ("encoder", {"selection": RedundancyRobust(distance="neg-cosine", visible_ratio=None)}),
    "camera": ("encoder", {"selection": RedundancyRobust(align="shift", visible_ratio=None)}),
}


def model(kind: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    if kind == "classifier":
        options = {"num_classes": 3, "selection": KEPT, **options}
    elif kind == "encoder":
        options = {"selection": KEPT, **options}
    return tiny(kind, **options)


def clips() -> Tensor:
    return torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))


def all_clips(dtype: torch.dtype) -> list[Tensor]:
    """Clips of that type, of float32 and of bytes."""
    generator = torch.Generator().manual_seed(2)
    coded = torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8, generator=generator)
    return [clips().to(dtype), clips(), coded]


def outputs(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The loss and the predictions, or the logits or features."""
    noise = torch.rand(2, 64, generator=torch.Generator().manual_seed(3))
    found = module(x, noise=noise)
    return [found.loss, found.prediction, found.target] if isinstance(found, Reconstruction) else [found]


def assert_learns(module: nn.Module, dtype: torch.dtype) -> None:
    for x in all_clips(dtype):
        first, *others = outputs(module, x)
        assert first.dtype == (torch.float32 if others else dtype)  # a loss is float32 in any precision
        first.sum().backward()
        gradients = [parameter.grad for parameter in module.parameters() if parameter.requires_grad]
        assert all(gradient is not None and gradient.dtype == dtype for gradient in gradients)
        assert all(torch.isfinite(tensor).all() for tensor in (first, *others))


@pytest.mark.parametrize("dtype", OTHERS)
@pytest.mark.parametrize("variant", [*KINDS, *VARIANTS, "adapters"])
def test_weights_of_other_precisions_learn_from_any_clips(variant: str, dtype: torch.dtype):
    kind, options = VARIANTS.get(variant, (variant if variant in KINDS else "classifier", {}))
    module = model(kind, **options)
    if variant == "adapters":
        choose_trained(module, FinetuneSettings(lora=LoraSettings(rank=2)))
    assert_learns(module.to(dtype), dtype)


@pytest.mark.parametrize("dtype", OTHERS)
@pytest.mark.parametrize("kind", KINDS)
def test_clips_of_other_precisions_compute_what_they_compute_as_float32(kind: str, dtype: torch.dtype):
    module, x = model(kind), clips().to(dtype)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            found, expected = outputs(module, x), outputs(module, x.float())
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
