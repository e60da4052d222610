"""Functions over large tensors, computed a part at a time on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

PART: Final = 2**21  # values: one clip of 16 x 224 x 224 pixels, whose floats stay in the cache of a CPU


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
    rows = max(1, PART // first[0].numel())
    if first.size(0) <= rows:
        return function(*tensors)
    parts = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    return torch.cat([function(*part) for part in parts])
