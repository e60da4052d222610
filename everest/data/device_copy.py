"""Copies batches to the device while it computes."""

from __future__ import annotations

import torch

from everest.data.dataset import Clip
from everest.data.loader import on_device


class DeviceCopy:
    """Copies the tensors of batches by a stream of their own: the next batch is copied during a step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Clip) -> Clip:
        """The batch on the device. On a GPU the host waits for nothing; later kernels wait for the copy."""
        if self._stream is None:
            return on_device(batch, self._device)
        with torch.cuda.stream(self._stream):
            moved = on_device(batch, self._device)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        for tensor in (moved.frames, moved.label, moved.noise, moved.erase, *moved.tokens.values()):
            tensor.record_stream(computing)  # the memory is free again only when the step has used it
        return moved
