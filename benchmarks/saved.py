"""Computation and saved activations of a step, counted on shapes without computing numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def without_numbers(model: nn.Module) -> Iterator[None]:
    """Give weights and all new tensors shapes but no numbers, so that 128 frames need no memory.

    The model cannot be used afterwards.
    """
    mode = FakeTensorMode()
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = mode.from_tensor(tensor)
    with mode:
        yield


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor], *, left_out: tuple[Tensor, ...] = ()) -> int:
    """Bytes of all storages that `forward` saves, each once, without weights and `left_out`."""

    def key(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata

    known = {key(tensor) for tensor in (*model.parameters(), *model.buffers(), *left_out)}
    found: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        if key(tensor) not in known:
            # The tensor as well: its storage may not be freed and given out again while we count.
            found[key(tensor)] = (tensor.untyped_storage().nbytes(), tensor)
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


def gflop(forward: Callable[[Tensor], Tensor], clips: Tensor) -> float:
    """Of forward and backward pass of the first clip; two FLOPs a multiply-add."""
    with FlopCounterMode(display=False) as counter:
        forward(clips[:1]).backward()
    return counter.get_total_flops() / 1e9
