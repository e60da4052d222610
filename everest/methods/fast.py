"""Fast functions of tensors: compiled for a GPU, or computed in parts that fit the cache of a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_fused: dict[Callable[..., Any], Callable[..., Any]] = {}  # what runs on a GPU for each fusable function


def fusable(function: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """Let `fuse_functions` compile a function whose first argument is a tensor."""
    _fused[function] = function

    @wraps(function)
    def chosen(tensor: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        is_alone = tensor.is_cuda and not torch.compiler.is_compiling()  # not part of a larger graph
        return (_fused[function] if is_alone else function)(tensor, *args, **kwargs)

    return chosen


def fuse_functions() -> None:
    """Compile all fusable functions when they are next called with a tensor on a GPU, in this process.

    There is a graph for each shape of the arguments, as for the blocks of a model.
    """
    for function, current in _fused.items():
        if current is function:
            _fused[function] = torch.compile(function, dynamic=False)


PART_VALUES: Final = 2**21  # one clip of 16 x 224 x 224 pixels, whose floats fit the cache of a CPU


def is_eager_on_cpu(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be looked at without a wait and without a break in a graph.

    A subclass may have no values, as a fake tensor.
    """
    return tensor.device.type == "cpu" and type(tensor) is Tensor and not torch.compiler.is_compiling()


def in_parts(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function(*tensors)`, which treats each row of the first dimension (B, ...) on its own.

    On a CPU it gets few rows at a time, so that what it writes in between stays in the cache, and its memory
    is not new for each operation. Other devices and graphs, which fuse operations, get all rows at once.
    """
    first = tensors[0]
    if not is_eager_on_cpu(first):
        return function(*tensors)
    rows = max(1, PART_VALUES // first[0].numel())
    parts = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    results = [function(*part) for part in parts]
    return results[0] if len(results) == 1 else torch.cat(results)
