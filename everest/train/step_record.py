"""What one process notes of a step until the step is logged."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from everest.system.accelerator import peak_memory
from everest.train.health import Figures
from everest.train.plan import StagePlan


class StepTotals(NamedTuple):
    """What all processes say of a step."""

    loss: float  # the mean
    parts: dict[str, float]  # the means
    any_failed: bool  # whether any met a bad video
    signal: int  # that any of them got, else 0


class StepRecord:
    """Losses, times and videos of one step of one process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.loss: Tensor = torch.zeros((), device=device)  # mean over the passes
        self.parts: dict[str, Tensor] = {}  # of the loss, by name: the same of each
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

    def add(self, loss: Tensor, parts: Mapping[str, Tensor], *, passes: int) -> None:
        """Count one of so many passes."""
        self.loss += loss.detach() / passes
        for name, value in parts.items():
            self.parts[name] = self.parts.get(name, 0) + value.detach() / passes

    def reduce_over_processes(self, accelerator: Accelerator, signal: int) -> StepTotals:
        """What the processes note of the step, put together. All must ask.

        Args:
            signal: what this process got.
        """
        losses = torch.stack([self.loss, *self.parts.values()])
        mine = torch.cat([losses, torch.tensor([len(self.failed), signal], device=self.device)])
        of_all = accelerator.gather(mine)
        assert isinstance(of_all, Tensor)
        *losses_of_all, failed, signals = of_all.view(-1, len(mine)).double().T.tolist()
        loss, *parts = (sum(values) / len(values) for values in losses_of_all)
        return StepTotals(loss, dict(zip(self.parts, parts, strict=True)), any(failed), int(max(signals)))

    def row(self, plan: StagePlan, figures: Figures, *, step: int) -> dict[str, Any]:
        """The row of metrics.jsonl after `step` updates."""
        seconds = time.monotonic() - self._began
        return {
            "step": step,
            "epoch": plan.epoch(step - 1),
            "loss": _finite(figures.loss),
            "lr": plan.lr(step - 1),
            "grad_norm": _finite(figures.norm),
            **{name: _finite(value) for name, value in figures.parts.items()},
            "clips_per_second": round(plan.batch_size / seconds, 2),
            "data_wait": round(self._waited / seconds, 4),
            "memory_bytes": peak_memory(self.device),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
