"""Parameters sharded over the processes (FSDP2), gathered for saving and sharded again on loading."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def set_gradient_exchange(model: nn.Module, *, on: bool) -> None:
    """Set whether the next backward pass exchanges gradients; only sharded models need it."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(on)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor. All processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like_sharded(value: Tensor, like: Tensor) -> Tensor:
    """A copy of `value` on the device of `like`, and sharded in the same way."""
    value = value.to(like.device, copy=True)
    if isinstance(like, DTensor) and value.dim() == like.dim():
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value
