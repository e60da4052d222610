"""What one process notes of a step until the step is logged."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from everest.devices import peak_memory
from everest.plan import StagePlan


class StepRecord:
    """Loss, times and videos of one step of one process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.loss: Tensor = torch.zeros((), device=device)  # mean over the passes
        self.failed: list[list[tuple[str, str]]] = []  # of each bad sample the tries: path and reason
        self.videos: list[str] = []
        self._began = time.monotonic()
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a batch."""
        asked_at = time.monotonic()
        yield
        self._waited += time.monotonic() - asked_at

    def row(self, plan: StagePlan, *, step: int, loss: float, norm: float) -> dict[str, Any]:
        """The row of metrics.jsonl after `step` updates; `loss` and `norm` are of all processes."""
        seconds = time.monotonic() - self._began
        return {
            "step": step,
            "epoch": plan.epoch(step - 1),
            "loss": loss if math.isfinite(loss) else None,
            "lr": plan.lr(step - 1),
            "grad_norm": norm if math.isfinite(norm) else None,
            "clips_per_second": round(plan.batch_size / seconds, 2),
            "data_wait": round(self._waited / seconds, 4),
            "memory_bytes": peak_memory(self.device),
        }
