"""The losses, times and videos of one step, noted by every process until the step is logged.

All numbers of a step leave the device in one copy. On a GPU they are read while it computes the next step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from everest.system.accelerator import peak_memory
from everest.system.host_copy import HostCopy
from everest.train.health import StepMetrics
from everest.train.network import GRAD_NORM
from everest.train.plan import StagePlan


class StepTotals(NamedTuple):
    """The numbers of one step over all processes."""

    metrics: StepMetrics
    any_failed: bool  # whether any process met an unreadable video
    signal: int  # a signal that any process received, else 0
    is_save_due: bool  # by the clock of any process


class StepNumbers:
    """The numbers of one step on their way from the device: copied without waiting, read later.

    Attributes:
        losses_finite: () bool on the device, whether the loss and its parts are finite in all processes.
        finite: the same of these and of the gradient norms.
    """

    def __init__(self, accelerator: Accelerator, record: StepRecord, norms: Mapping[str, Tensor]) -> None:
        self._parts, self._norms = list(record.parts), list(norms)
        flags = (len(record.failed), record.signal, record.is_save_due)
        # Filled on the device: a copy of host memory would wait for it.
        filled = (torch.full((), float(flag), device=record.device) for flag in flags)
        values = torch.stack([record.loss, *record.parts.values(), *norms.values(), *filled])
        gathered = accelerator.gather(values)
        assert isinstance(gathered, Tensor)
        by_process = gathered.view(-1, len(values))  # (processes, values)
        losses = 1 + len(self._parts)
        self.losses_finite = by_process[:, :losses].isfinite().all()
        self.finite = self.losses_finite & by_process[:, losses : -len(flags)].isfinite().all()
        self._copy = HostCopy({"numbers": by_process})

    def read(self) -> StepTotals:
        """Wait for the numbers; losses are means over the processes."""
        *figures, failed, signals, due = self._copy.read()["numbers"].double().T.tolist()
        loss, *others = (sum(by_process) / len(by_process) for by_process in figures)
        parts = dict(zip(self._parts, others[: len(self._parts)], strict=True))
        norms = dict(zip(self._norms, others[len(self._parts) :], strict=True))
        metrics = StepMetrics(loss, norms.pop(GRAD_NORM), {**parts, **norms})
        return StepTotals(metrics, any(failed), int(max(signals)), any(due))


class StepRecord:
    """The record of one process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.loss: Tensor = torch.zeros((), device=device)  # mean over the passes
        self.parts: dict[str, Tensor] = {}  # further means over the passes, by name
        self.failed: list[list[tuple[str, str]]] = []  # for each unreadable sample its tries: path and reason
        self.videos: list[str] = []
        self.waited = 0.0  # seconds, for batches
        self.signal = 0  # that this process received, else 0
        self.is_save_due = False  # by this process's clock
        self._started = time.monotonic()
        self._seconds: float | None = None

    def add(self, loss: Tensor, parts: Mapping[str, Tensor], *, passes: int) -> None:
        """Add one of the step's `passes` passes."""
        self.loss += loss.detach() / passes
        for name, value in parts.items():
            self.parts[name] = self.parts.get(name, 0) + value.detach() / passes

    def close(self) -> None:
        """End the step's time, if its numbers are read later."""
        self._seconds = time.monotonic() - self._started

    def row(self, plan: StagePlan, metrics: StepMetrics, *, step: int) -> dict[str, Any]:
        """The row of metrics.jsonl after `step` updates."""
        seconds = self._seconds or time.monotonic() - self._started
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
