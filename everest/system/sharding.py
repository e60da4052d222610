"""Parameters cut over the processes (FSDP2), and whole tensors again where they are saved or loaded."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def set_gradient_exchange(model: nn.Module, *, on: bool) -> None:
    """Whether the next backward pass exchanges gradients; for a model that is cut."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(on)


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor of which every process has a part. All processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like_sharded(value: Tensor, like: Tensor) -> Tensor:
    """A copy of `value` that lies as `like` does: on its device, and cut if it is."""
    value = value.to(like.device, copy=True)
    if isinstance(like, DTensor) and value.dim() == like.dim():
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value
