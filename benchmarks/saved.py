"""Bytes that a forward pass keeps for the backward pass, counted exactly."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor], *, left_out: tuple[Tensor, ...] = ()) -> int:
    """Bytes of all storages that `forward` keeps, each once; not those of weights and `left_out`."""
    known = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers(), *left_out)}
    found: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            # The tensor as well: its storage may not be freed and given out again while we count.
            found[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()
    total = sum(size for size, _ in found.values())
    del loss
    return total


def saved_bytes_per_clip(model: nn.Module, forward: Callable[[Tensor], Tensor], clips: Tensor) -> int:
    """The growth from one clip to two of (2, C, T, H, W): casts of weights drop out."""
    one, two = clips[:1].clone(), clips.clone()
    counts = [saved_bytes(model, lambda x=x: forward(x), left_out=(x,)) for x in (one, two)]
    return counts[1] - counts[0]
