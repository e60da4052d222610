"""The steps of a run: noted by every process, logged when their numbers have left the device."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from everest.data.bad_videos import BadVideos
from everest.engine.context import RunContext
from everest.engine.health import Nonfinite, Row, StepMetrics
from everest.engine.network import GRAD_NORM
from everest.engine.plan import StagePlan
from everest.errors import DivergedError
from everest.system.accelerator import peak_memory
from everest.system.compute import HostCopy
from everest.system.events import notice
from everest.system.run_folder import NONFINITE

RECENT: Final = 50  # our choice: losses whose mean shows whether a run learns


class StepRecord:
    """The record of one process about one step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.loss: Tensor = torch.zeros((), device=device)  # mean over the passes
        self.parts: dict[str, Tensor] = {}  # further means over the passes, by name
        self.failed: list[list[tuple[str, str]]] = []  # for each unreadable sample its tries: path and reason
        self.videos: list[str] = []
        self.waited = 0.0  # seconds, for batches
        self.signal = 0  # that this process received, else 0
        self.is_save_due = False  # by this process's clock
        self.seconds: float | None = None  # of the whole step; None: it is not over
        self.started = time.monotonic()

    def add(self, loss: Tensor, parts: Mapping[str, Tensor], *, passes: int) -> None:
        """Add one of the step's `passes` passes."""
        self.loss += loss.detach() / passes
        for name, value in parts.items():
            self.parts[name] = self.parts.get(name, 0) + value.detach() / passes

    def close(self) -> None:
        """Note the duration of the step now; its row may be written later."""
        self.seconds = time.monotonic() - self.started


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
        loss, *means = (sum(by_process) / len(by_process) for by_process in figures)
        by_name = dict(zip((*self._parts, *self._norms), means, strict=True))
        metrics = StepMetrics(loss, by_name.pop(GRAD_NORM), by_name)
        return StepTotals(metrics, any(failed), int(max(signals)), any(due))


class StepLog:
    """The steps that are done but not yet logged, and what is known of those that are.

    All processes read the same numbers at the same step, so they act alike.

    Args:
        log: appends a row to metrics.jsonl.
    Attributes:
        losses: the last finite losses.
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
        self.losses: deque[float] = deque(maxlen=RECENT)
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
        """Log the steps that are done, except the last `but`."""
        rows = []
        while len(self._unread) > but:
            step, record, numbers = self._unread.popleft()
            rows.append(self._log_step(step, record, numbers.read()))
        return rows

    def _log_step(self, step: int, record: StepRecord, totals: StepTotals) -> Row:
        metrics, plan, report = totals.metrics, self._plan, self._context.report
        self.stop_signal = self.stop_signal or totals.signal
        self.is_save_due = self.is_save_due or totals.is_save_due
        self._check_finite(step, record, metrics)
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.by_name.items()}
        seconds = record.seconds or time.monotonic() - record.started
        row: Row = {
            "step": step,
            "epoch": plan.epoch(step - 1),
            "loss": finite.pop("loss"),
            "lr": plan.lr(step - 1),
            **finite,
            "clips_per_second": round(plan.batch_size / seconds, 2),
            "data_wait": round(record.waited / seconds, 4),
            "memory_bytes": peak_memory(record.device),
        }
        self._log(row)
        report({"event": "step", "steps": plan.steps, "epochs": plan.epochs, **row})
        if math.isfinite(metrics.loss):
            self.losses.append(metrics.loss)
        failed = list(gather_object(record.failed)) if totals.any_failed else []
        for text in self._bad_videos.add(requested=plan.videos_per_step, failed=failed):
            report(notice(text))
        if failed and self._context.accelerator.is_main_process:
            self._context.run.write_bad_videos(self._bad_videos.reasons)
        self._bad_videos.check(any_failed=totals.any_failed)
        return row

    def _check_finite(self, step: int, record: StepRecord, metrics: StepMetrics) -> None:
        """Report an update that was skipped, with its videos; DivergedError if it ends the run."""
        try:
            skipped = self.nonfinite.should_skip(metrics)
            if self.nonfinite.skipped == self._plan.steps:
                raise DivergedError(f"{metrics}; no update of the run was applied")
        except DivergedError as error:
            problem = f"step {step}: {error}; {self._write_videos(step, record, metrics)}"
            raise DivergedError(f"{problem}; lower base_lr or set train.clip_grad") from error
        if skipped and not self.nonfinite.overflow:
            videos = self._write_videos(step, record, metrics)
            self._context.notice(f"step {step} skipped: {metrics}; {videos}")

    def _write_videos(self, step: int, record: StepRecord, metrics: StepMetrics) -> str:
        """Write the videos of a step, gathered over all processes; returns where they are."""
        run, videos = self._context.run, gather_object(record.videos)
        if self._context.accelerator.is_main_process:
            run.write_nonfinite(step=step, figures=metrics.by_name, videos=videos)
        return f"its videos are in {run.path / NONFINITE}"
