"""The bytes that are alive in a pass, measured without numbers."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made in its context: `most` of those alive at the same time.

    Those from before, such as weights, are not counted, nor is what is computed from them alone, such as
    copies of lower precision.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._sizes: dict[int, int] = {}  # of the storages alive now; 0: not counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        for tensor in inputs:
            self._add(tensor, counts=False)
        counts = not inputs or any(self._sizes[x.untyped_storage()._cdata] for x in inputs)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor, counts=counts)
        self.most = max(self.most, sum(self._sizes.values()))
        return out

    def _add(self, tensor: Tensor, *, counts: bool) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes() if counts else 0
            weakref.finalize(storage, self._sizes.pop, storage._cdata)


def peak_bytes(model: nn.Module, run: Callable[[], object], *, bytes_per_value: int, trains: bool) -> int:
    """The most bytes that are alive in a forward pass, without the weights of the model.

    Args:
        model: on the meta device; its weights become tensors without numbers.
        run: makes its inputs; the tensors that it returns are alive until the end.
        bytes_per_value: 4: float32; 2: autocast, which keeps float32 where it needs it.
        trains: what the backward pass needs is kept.
    """
    half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=bytes_per_value == 2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        with LiveBytes() as live, half, torch.set_grad_enabled(trains):
            _alive = run()
    return live.most
