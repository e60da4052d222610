"""Checks that a GPU computes the numbers of the CPU, and compiled steps the numbers of uncompiled ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from gpu_cases import EVEREST, VIEWS, StepCase, gradients
from gpu_rows import Row
from torch import Tensor

import everest
from everest.config.recipe import load_recipe
from everest.models.views import sigreg
from everest.profiling.profile import stage_spec


def same_as_the_cpu() -> Iterator[Row]:
    """Loss and gradients in float32 on both devices: a wrong kernel shows here."""
    for kind, options in (("pretrain", {}), ("views", {}), ("classifier", {"num_classes": 5})):
        losses, found = [], []
        for device in ("cpu", "cuda"):
            loss, grad = _loss_and_gradients(kind, options, device)
            losses.append(loss)
            found.append(grad)
        yield {"what": kind, "losses": losses, "gradient_error": _error(*found)}
    losses, found = zip(*(_sigreg(device) for device in ("cpu", "cuda")), strict=True)
    yield {"what": "sigreg", "losses": losses, "gradient_error": _error(*found)}


def _sigreg(device: str) -> tuple[float, Tensor]:
    """The value and the gradient for 256 projections to 64 channels."""
    generator = torch.Generator().manual_seed(2)
    projections = torch.randn(256, 64, generator=generator).to(device).requires_grad_()
    directions = torch.nn.functional.normalize(torch.randn(64, 256, generator=generator), dim=0).to(device)
    value = sigreg(projections, directions)
    value.backward()
    assert projections.grad is not None
    return value.item(), projections.grad.cpu()


def _model(kind: str, options: dict[str, int]) -> torch.nn.Module:
    if kind != "views":
        return everest.create_model("vit-tiny", frames=8, size=64, kind=kind, **options)
    small = ["model.backbone=vit-tiny", "data.frames=8", "data.size=64"]
    return stage_spec(load_recipe(VIEWS, overrides=small), "pretrain").build()


def _loss_and_gradients(kind: str, options: dict[str, int], device: str) -> tuple[float, Tensor]:
    torch.manual_seed(0)
    model = _model(kind, options).to(device).train()
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(4, 3, 8, 64, 64, generator=generator).to(device)
    noise = torch.rand(4, model.encoder.grid.num_tokens, generator=generator).to(device)
    loss = model(frames).square().mean() if kind == "classifier" else model(frames, noise=noise).loss
    loss.backward()
    grads = [p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(grads)


def same_as_not_compiled() -> Iterator[Row]:
    """Loss and gradients of ViT-B with compiled blocks, in bf16."""
    losses, found = [], []
    clips = None
    for compiled in ("no", "blocks"):
        case = StepCase(name="", recipe=EVEREST, backbone="vit-b", batches=(16,), compiled=compiled)
        step = case.build()
        clips = clips or step.clips(16, random=True)
        loss, grad = gradients(step, clips)
        losses.append(loss)
        found.append(grad)
    yield {"what": "compiled blocks", "losses": losses, "gradient_error": _error(*found)}


def _error(expected: Tensor, found: Tensor) -> float:
    """The relative difference, by the norm."""
    return ((expected - found).norm() / expected.norm()).item()
