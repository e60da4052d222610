"""Counts the operations of a step by phase: bytes moved, FLOPs, and their time at the ceilings of a GPU.

An operation takes the time of its arithmetic or of its memory traffic, whichever is longer. A tensor is read
and written once by each operation that takes or returns it; views cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Ceilings of an H200 (SXM), per second. Data sheet: 989 TFLOP/s in bf16, 67 in fp32, 4.8 TB/s.
BF16_FLOPS = 790e12  # large products in cuBLAS reach 80 % of the data sheet
FP32_FLOPS = 50e12  # cuBLAS without tensor cores reaches 75 %
ATTENTION_FLOPS = 250e12  # 156 to 470 tokens fill a part of the 128 x 128 tiles of fused attention
BYTES = 4.3e12  # a large copy reaches 90 %
ADAMW_BYTES = 28  # per parameter in fp32: read weight, gradient and two moments, write all but the gradient

# Operations that return a view, or memory that nothing has written.
VIEWS = {
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "alias", "detach", "lift_fresh", "as_strided"),
    *("t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "diagonal", "unfold"),
    *("slice", "select", "narrow", "split", "split_with_sizes", "unbind", "chunk"),
}
UNWRITTEN = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_", "resize_"}
FREE = VIEWS | UNWRITTEN


@dataclass
class Phase:
    """The sums of a part of the step."""

    kernels: int = 0
    bytes: float = 0
    flops: float = 0
    seconds: float = 0
    arithmetic: float = 0  # seconds of the arithmetic alone

    def add(self, *, moved: float, flops: float, rate: float) -> None:
        self.kernels += 1
        self.bytes += moved
        self.flops += flops
        self.arithmetic += flops / rate
        self.seconds += max(flops / rate, moved / BYTES)


class Meter(TorchDispatchMode):
    """Sums up the operations that run inside it, in the phase that `phase` names.

    Of a compiled graph it sees calls of libraries only; `fused_kernels` adds the others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.phases: dict[str, Phase] = {}
        self.phase = "?"
        self.is_counting = False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let graphs run as they were compiled."""
        return True

    @property
    def current(self) -> Phase:
        return self.phases.setdefault(self.phase, Phase())

    def __enter__(self) -> Meter:
        self.is_counting = True
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.is_counting = False
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if name not in FREE:
            given = {key: value for key, value in (kwargs or {}).items() if key != "out"}
            read = [x for x in tree_leaves((args, given)) if isinstance(x, Tensor)]
            written = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
            flops = _flops(func, args, kwargs or {}, out)
            self.current.add(moved=_moved(read, written), flops=flops, rate=_rate(name, read))
        return out

    def follow(self, model: nn.Module) -> None:
        """Name the phases of the forward pass of a MaskedAutoencoder by its modules."""

        def enters(module: nn.Module, phase: str) -> None:
            module.register_forward_pre_hook(lambda *_: setattr(self, "phase", phase))

        enters(model, "select")
        enters(model.get_submodule("encoder"), "encode")
        decoder = model.get_submodule("decoder")
        enters(decoder, "decode")
        decoder.register_forward_hook(lambda *_: setattr(self, "phase", "target, loss"))

    def add_adamw(self, model: nn.Module) -> None:
        """Count the update, which is one operation over lists of tensors."""
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        moved = parameters * ADAMW_BYTES
        self.phases.setdefault("update", Phase()).add(moved=moved, flops=0, rate=FP32_FLOPS)


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    count = flop_registry.get(func._overloadpacket)
    return 0 if count is None else count(*args, **kwargs, out_val=out)


def _moved(read: list[Tensor], written: list[Tensor]) -> float:
    """Bytes; several views of the same memory are read once."""
    sizes = {
        x.untyped_storage()._cdata: min(x.numel() * x.element_size(), x.untyped_storage().nbytes())
        for x in read
    }
    return sum(sizes.values()) + sum(x.numel() * x.element_size() for x in written)


def _rate(name: str, read: list[Tensor]) -> float:
    if "attention" in name:
        return ATTENTION_FLOPS
    return FP32_FLOPS if read and read[0].dtype == torch.float32 else BF16_FLOPS
