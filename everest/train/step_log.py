"""Logs the steps of a run when their numbers have arrived from the device, and acts on the numbers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from accelerate.utils import gather_object

from everest.data.bad_videos import BadVideos
from everest.errors import DivergedError
from everest.system.events import notice
from everest.system.run_folder import NONFINITE
from everest.train.context import RunContext
from everest.train.health import LossWatch, Nonfinite, StepMetrics
from everest.train.plan import StagePlan
from everest.train.step_record import StepNumbers, StepRecord, StepTotals

Row = dict[str, Any]  # of metrics.jsonl


class StepLog:
    """The steps that are done but not yet logged, and the numbers of those that are.

    All processes read the same numbers at the same step, so they act alike.

    Args:
        log: appends a row to metrics.jsonl.
    Attributes:
        stop_signal: received by any process, else 0.
        is_save_due: by the clock of any process, since the last save.
    """

    def __init__(
        self,
        context: RunContext,
        plan: StagePlan,
        *,
        nonfinite: Nonfinite,
        bad_videos: BadVideos,
        log: Callable[[Row], None],
    ) -> None:
        self.losses = LossWatch()
        self.nonfinite = nonfinite
        self.stop_signal = 0
        self.is_save_due = False
        self._context = context
        self._plan = plan
        self._bad_videos = bad_videos
        self._log = log
        self._unread: deque[tuple[int, StepRecord, StepNumbers]] = deque()

    def add(self, step: int, record: StepRecord, numbers: StepNumbers, *, all_now: bool) -> list[Row]:
        """Add a step, and log the steps whose numbers have arrived.

        Args:
            all_now: wait for the numbers of all steps.
        Returns:
            The new rows.
        Raises:
            DivergedError: the numbers are not finite.
            DataError: too many videos are unreadable.
        """
        self._unread.append((step, record, numbers))
        rows = self.read(but=1 if self._context.overlaps and not all_now else 0)
        return rows + self.read() if self.stop_signal or self.is_save_due else rows

    def read(self, *, but: int = 0) -> list[Row]:
        """Log all steps `but` the last ones, as `add` does."""
        rows = []
        while len(self._unread) > but:
            step, record, numbers = self._unread.popleft()
            rows.append(self._log_step(step, record, numbers.read()))
        return rows

    def watch_losses_anew(self) -> None:
        """Forget the losses so far, with which later ones are not comparable."""
        self.read()
        self.losses = LossWatch()

    def _log_step(self, step: int, record: StepRecord, totals: StepTotals) -> Row:
        metrics, plan, report = totals.metrics, self._plan, self._context.report
        self.stop_signal = self.stop_signal or totals.signal
        self.is_save_due = self.is_save_due or totals.is_save_due
        try:
            skipped = self.nonfinite.should_skip(metrics)
        except DivergedError as error:
            problem = f"step {step}: {error}; {self._write_videos(step, record, metrics)}"
            raise DivergedError(f"{problem}; lower base_lr or set train.clip_grad") from error
        if skipped and not self.nonfinite.overflow:
            report(notice(f"step {step} skipped: {metrics}; {self._write_videos(step, record, metrics)}"))
        row = record.row(plan, metrics, step=step)
        self._log(row)
        report({"event": "step", "steps": plan.steps, "epochs": plan.epochs, **row})
        jump = self.losses.spike(metrics.loss)
        if jump:
            report(notice(f"step {step}: {jump}"))
        self._count_bad_videos(record, totals)
        return row

    def _count_bad_videos(self, record: StepRecord, totals: StepTotals) -> None:
        failed = list(gather_object(record.failed)) if totals.any_failed else []
        for text in self._bad_videos.add(requested=self._plan.videos_per_step, failed=failed):
            self._context.report(notice(text))
        if failed and self._context.accelerator.is_main_process:
            self._context.run.write_bad_videos(self._bad_videos.reasons)
        self._bad_videos.check(any_failed=totals.any_failed)

    def _write_videos(self, step: int, record: StepRecord, metrics: StepMetrics) -> str:
        """Write the videos of a step, gathered over all processes; returns where they are."""
        run, videos = self._context.run, gather_object(record.videos)
        if self._context.accelerator.is_main_process:
            run.write_nonfinite(step=step, figures=metrics.by_name, videos=videos)
        return f"its videos are in {run.path / NONFINITE}"
