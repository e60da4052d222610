"""Functions of many small operations, which a run on a GPU may compile to a few kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_fusable: list[Callable[..., Any]] = []
_fused: dict[Callable[..., Any], Callable[..., Any]] = {}


def fusable(function: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """Let `fuse_functions` compile a function whose first argument is a tensor."""
    _fusable.append(function)

    @wraps(function)
    def chosen(tensor: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        if not tensor.is_cuda or torch.compiler.is_compiling():  # or part of a larger graph
            return function(tensor, *args, **kwargs)
        return _fused.get(function, function)(tensor, *args, **kwargs)

    return chosen


def fuse_functions() -> None:
    """Compile all fusable functions when they are next called with a tensor on a GPU, in this process.

    There is a graph for each shape of the arguments, as for the blocks of a model.
    """
    for function in _fusable:
        _fused.setdefault(function, torch.compile(function, dynamic=False))
