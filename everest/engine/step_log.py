"""Logs steps in metrics.jsonl, each when its numbers have left the device."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from accelerate.tracking import GeneralTracker
from accelerate.utils import gather_object

from everest.config.settings import Recipe
from everest.data.bad_videos import BadVideos
from everest.engine.context import RunContext
from everest.engine.saving import SaveSchedule
from everest.engine.stage_plan import StagePlan
from everest.engine.step import NumbersInFlight, StepRecord, UpdateGuard
from everest.system.accelerator import peak_memory
from everest.system.run_folder import Row

RECENT_LOSSES: Final = 50  # heuristic: their mean shows whether a run learns
# All our choice.
MOST_WAITING: Final = 0.3  # the share of the time of the first steps, above which a warning is shown
WATCHED_SECONDS: Final = 60.0  # how long a run is watched; the first files take longer
WATCHED_STEPS: Final = 20  # steps that are watched, at least


class StepLog:
    """Logs the steps of a run, with the checks that need their numbers.

    All processes read the same numbers at the same step, so they act alike.

    Args:
        saves: collects the requests of all processes.
        guard: judges the updates that it has skipped on the device.
        workers: how many processes read videos for each training process.
    Attributes:
        losses: the last finite losses.
    """

    def __init__(
        self,
        context: RunContext,
        recipe: Recipe,
        plan: StagePlan,
        saves: SaveSchedule,
        guard: UpdateGuard,
        *,
        workers: int,
    ) -> None:
        self.losses: deque[float] = deque(maxlen=RECENT_LOSSES)
        self.bad_videos = BadVideos(recipe.data.max_bad)
        self._tracker: GeneralTracker | None = None  # in the main process
        self._context = context
        self._plan = plan
        self._saves = saves
        self._guard = guard
        self._workers = workers
        self._waits = WaitWatch()
        self._unread: deque[tuple[StepRecord, NumbersInFlight]] = deque()
        self._new_rows: list[Row] = []  # logged, and not yet returned to the loop

    def attach(self, tracker: GeneralTracker) -> None:
        """Send the numbers of all further rows to a tracker; the main process calls it."""
        self._tracker = tracker

    def notes(self) -> dict[str, Any]:
        """The counters that a resumed run continues, as plain values."""
        return {"videos": self.bad_videos.counts(), "skipped": self._guard.skipped}

    def restore(self, notes: Mapping[str, Any]) -> None:
        """The inverse of `notes`."""
        self._guard.skipped = notes["skipped"]
        self.bad_videos.restore(notes["videos"], self._context.run_folder.read_bad_videos())

    def write(self, row: Row) -> None:
        """Append a row to metrics.jsonl in the main process, and send its numbers to the tracker."""
        if self._context.accelerator.is_main_process:
            self._context.run_folder.log_row(row)
        if self._tracker is not None:
            numbers = {k: v for k, v in row.items() if k != "step" and isinstance(v, int | float)}
            self._tracker.log(numbers, step=row["step"])

    def add(self, record: StepRecord, numbers: NumbersInFlight, *, all_now: bool) -> list[Row]:
        """Add a step, and log the steps whose numbers have arrived, or with `all_now` all steps.

        Returns the rows logged since the last call, also by a save.
        """
        self._unread.append((record, numbers))
        self.read(but=1 if self._context.overlaps and not all_now else 0)
        if self._saves.is_due:
            self.read()
        record.seconds = time.monotonic() - record.started  # its row may be written later
        share = self._waits.add(record.waited, record.seconds)
        if share is not None:
            self._context.warn(
                f"the first steps spent {share:.0%} of their time waiting for videos: raise "
                f"train.workers (now {self._workers}), or encode the videos (`everest prepare encode --codec "
                "mjpeg`); `everest profile --data` states what helps most"
            )
        rows, self._new_rows = self._new_rows, []
        return rows

    def read(self, *, but: int = 0) -> None:
        """Log the steps that are done, except the last `but`. Numbers that are not finite become null."""
        context, plan = self._context, self._plan
        while len(self._unread) > but:
            record, numbers = self._unread.popleft()
            figures, any_failed, request = numbers.read()
            self._saves.add(request)
            self._guard.check(record, figures, context, steps=plan.steps)
            finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
            seconds = record.seconds or time.monotonic() - record.started
            row: Row = {
                "step": record.index + 1,
                "epoch": plan.epoch(record.index),
                "loss": finite.pop("loss"),
                "lr": plan.lr(record.index),
                **finite,
                "clips_per_second": round(plan.batch_size / seconds, 2),
                "data_wait": round(record.waited / seconds, 4),
                "memory_bytes": peak_memory(context.accelerator.device),
            }
            self.write(row)
            context.report({"event": "step", "steps": plan.steps, "epochs": plan.epochs, **row})
            if row["loss"] is not None:
                self.losses.append(row["loss"])
            failed = list(gather_object(record.failed)) if any_failed else []
            context.notice(*self.bad_videos.add(num_samples=plan.videos_per_step, failed_reads=failed))
            if failed and context.accelerator.is_main_process:
                context.run_folder.write_bad_videos(self.bad_videos.reasons)
            self.bad_videos.check(any_failed=any_failed)
            self._new_rows.append(row)


@dataclass
class WaitWatch:
    """Sums up how long the first steps wait for videos, except the very first, which starts the workers."""

    steps: int = -1
    waited: float = 0.0  # seconds of waiting
    seconds: float = 0.0  # duration of the steps

    def add(self, waited: float, seconds: float) -> float | None:
        """Add a step; after the last watched step, return the share of time spent waiting if it is large."""
        self.steps += 1
        if self.steps == 0 or (self.steps > WATCHED_STEPS and self.seconds >= WATCHED_SECONDS):
            return None
        self.waited += waited
        self.seconds += seconds
        share = self.waited / self.seconds
        is_over = self.steps >= WATCHED_STEPS and self.seconds >= WATCHED_SECONDS
        return share if is_over and share > MOST_WAITING else None
