"""Logs steps in metrics.jsonl, each when its numbers have left the device."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from accelerate.tracking import GeneralTracker

from everest.engine.context import RunContext
from everest.engine.schedule import Schedule
from everest.engine.step import StepRecord
from everest.system.accelerator import peak_memory
from everest.system.run_folder import Row

RECENT_LOSSES: Final = 50  # heuristic: their mean shows whether a run learns
# All our choice.
MAX_WAITING: Final = 0.3  # the fraction of the time of the first steps, above which a warning is shown
WATCHED_SECONDS: Final = 60.0  # how long a run is watched; the first files take longer
WATCHED_STEPS: Final = 20  # steps that are watched, at least


class StepLog:
    """Logs the steps of a run, and sends their numbers to its tracker.

    Attributes:
        losses: the last finite losses.
        tracker: receives the numbers of all further rows; set in the main process.
    """

    def __init__(self, context: RunContext, plan: Schedule) -> None:
        self.losses: deque[float] = deque(maxlen=RECENT_LOSSES)
        self.tracker: GeneralTracker | None = None
        self._context = context
        self._plan = plan

    def write(self, row: Row) -> None:
        """Append a row to metrics.jsonl in the main process, and send its numbers to the tracker."""
        if self._context.accelerator.is_main_process:
            self._context.run_folder.log_row(row)
        if self.tracker is not None:
            numbers = {k: v for k, v in row.items() if k != "step" and isinstance(v, int | float)}
            self.tracker.log(numbers, step=row["step"])

    def log(self, record: StepRecord, metrics: Mapping[str, float]) -> Row:
        """Write, report and return the row of a step. Numbers that are not finite become null."""
        plan, seconds = self._plan, record.seconds or time.monotonic() - record.started
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        row: Row = {
            "step": record.index + 1,
            "epoch": plan.epoch(record.index),
            "loss": finite.pop("loss"),
            "lr": plan.lr(record.index),
            **finite,
            "clips_per_second": round(plan.batch_size / seconds, 2),
            "data_wait": round(record.waited / seconds, 4),
            "memory_bytes": peak_memory(self._context.accelerator.device),
        }
        self.write(row)
        self._context.emit({"event": "step", "steps": plan.steps, "epochs": plan.epochs, **row})
        if row["loss"] is not None:
            self.losses.append(row["loss"])
        return row


@dataclass
class WaitWatch:
    """Sums up how long the first steps wait for videos, except the very first, which starts the workers."""

    workers: int  # processes that read videos for each training process
    steps: int = -1
    waited: float = 0.0  # seconds of waiting
    seconds: float = 0.0  # duration of the steps

    def add(self, waited: float, seconds: float) -> str | None:
        """Add a step; after the last watched step, return a warning if much of the time was waiting."""
        self.steps += 1
        if self.steps == 0 or (self.steps > WATCHED_STEPS and self.seconds >= WATCHED_SECONDS):
            return None
        self.waited += waited
        self.seconds += seconds
        fraction = self.waited / self.seconds
        if self.steps < WATCHED_STEPS or self.seconds < WATCHED_SECONDS or fraction <= MAX_WAITING:
            return None
        return (
            f"the first steps spent {fraction:.0%} of their time waiting for videos: raise train.workers "
            f"(now {self.workers}), or encode the videos (`everest prepare encode --codec mjpeg`); "
            "`everest profile --data` states what helps most"
        )
