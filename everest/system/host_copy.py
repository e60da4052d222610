"""Copies of tensors from a GPU to the host that the host waits for only when it reads them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class HostCopy:
    """Tensors on their way to the host; in pinned memory if they come from a GPU.

    Args:
        keep: copy tensors of the host, too, so that later changes do not reach the copy.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, keep: bool = False) -> None:
        self._copies = {
            name: tensor.to("cpu", non_blocking=True, copy=keep) for name, tensor in tensors.items()
        }
        self._arrived: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> dict[str, Tensor]:
        """Wait for the copies, and return them under the names of the tensors."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copies
