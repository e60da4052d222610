"""The losses, times and videos of one step, noted by every process until the step is logged."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from everest.system.accelerator import peak_memory
from everest.train.health import StepMetrics
from everest.train.plan import StagePlan


class StepTotals(NamedTuple):
    """The records of one step, reduced over all processes."""

    loss: float  # the mean
    parts: dict[str, float]  # the means
    any_failed: bool  # whether any process met an unreadable video
    signal: int  # a signal that any process received, else 0


class StepRecord:
    """The record of one process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.loss: Tensor = torch.zeros((), device=device)  # mean over the passes
        self.parts: dict[str, Tensor] = {}  # further means over the passes, by name
        self.failed: list[list[tuple[str, str]]] = []  # for each unreadable sample its tries: path and reason
        self.videos: list[str] = []
        self.waited = 0.0  # seconds, for batches
        self._started = time.monotonic()

    def add(self, loss: Tensor, parts: Mapping[str, Tensor], *, passes: int) -> None:
        """Add one of the step's `passes` passes."""
        self.loss += loss.detach() / passes
        for name, value in parts.items():
            self.parts[name] = self.parts.get(name, 0) + value.detach() / passes

    def reduce_over_processes(self, accelerator: Accelerator, signal: int) -> StepTotals:
        """Combine the records of all processes. All processes must call it.

        Args:
            signal: received by this process, else 0.
        """
        losses = torch.stack([self.loss, *self.parts.values()])
        values = torch.cat([losses, torch.tensor([len(self.failed), signal], device=self.device)])
        gathered = accelerator.gather(values)
        assert isinstance(gathered, Tensor)
        *losses_by_name, failed, signals = gathered.view(-1, len(values)).double().T.tolist()
        loss, *parts = (sum(by_process) / len(by_process) for by_process in losses_by_name)
        return StepTotals(loss, dict(zip(self.parts, parts, strict=True)), any(failed), int(max(signals)))

    def row(self, plan: StagePlan, metrics: StepMetrics, *, step: int) -> dict[str, Any]:
        """The row of metrics.jsonl after `step` updates."""
        seconds = time.monotonic() - self._started
        finite = {name: v if math.isfinite(v) else None for name, v in metrics.by_name.items()}
        return {
            "step": step,
            "epoch": plan.epoch(step - 1),
            "loss": finite.pop("loss"),
            "lr": plan.lr(step - 1),
            **finite,
            "clips_per_second": round(plan.batch_size / seconds, 2),
            "data_wait": round(self.waited / seconds, 4),
            "memory_bytes": peak_memory(self.device),
        }
