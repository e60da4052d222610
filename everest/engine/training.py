"""The training loop of all stages (see everest.pretraining); `Training.finish_step` logs, saves and stops.

for step in training.remaining_steps():
    for batch in step.batches():
        step.backward(MicroBatchLosses(loss))
    rows = step.update()

A step is one update of the weights. In a micro-batch, a process computes the forward and the backward pass of
one micro-batch; the micro-batches of a step accumulate their gradients. `steps` is a count, an `index` begins
at 0. A network is a module that learns, with its optimizer; the model is the first network of a run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from signal import Signals
from typing import Final, Never, Protocol

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn

from everest.config.settings import Recipe
from everest.data.bad_videos import BadVideos
from everest.data.clip_dataset import Batch, ClipDataset, StepSampler
from everest.data.loader import ClipLoader, DeviceCopy, StoppedWaiting, choose_workers
from everest.data.randomness import Purpose, generator_at, seed_at
from everest.engine.context import RunContext
from everest.engine.schedule import Schedule
from everest.engine.state import TrainState
from everest.engine.step import (
    MicroBatchLosses,
    StepRecord,
    TrainedNetwork,
    UpdateGuard,
    set_lr,
    update_networks,
)
from everest.engine.step_log import StepLog, WaitWatch
from everest.models.block import DroppedPaths
from everest.system.run_folder import Row
from everest.system.signals import Stopped, StopSignal

# Heuristic: how long a process waits for a batch after a stop signal, so that a step of several processes
# can end, and be saved.
SHARED_STEP_SECONDS: Final = 10.0


@dataclass(kw_only=True, eq=False)
class Training:
    """A stage in progress: networks that learn from clips by a plan, and the number of updates done."""

    context: RunContext
    recipe: Recipe
    plan: Schedule
    dataset: ClipDataset  # as workers read them: the device may resize their crops
    model: nn.Module  # as the loop calls it (everest.engine.network.prepare_model)
    networks: Sequence[TrainedNetwork]  # first the model, then others that learn in the same steps
    state: TrainState  # saves and restores the networks
    steps_done: int = 0  # updates done, over all resumes
    last_step: int = field(init=False)  # below `plan.steps` in a run that ends early
    has_weights: bool = field(init=False, default=True)  # False: a finished run whose states were removed
    workers: int = field(init=False)  # processes that read videos for each training process
    guard: UpdateGuard = field(init=False)
    bad_videos: BadVideos = field(init=False)
    waits: WaitWatch = field(init=False)
    step_log: StepLog = field(init=False)
    stop_signal: StopSignal = field(init=False, default_factory=StopSignal)  # that this process received
    saved_at: float = field(init=False, default_factory=time.monotonic)  # or when the training was made
    _agreed_signal: int = field(init=False, default=0)  # that any process received, and all know; 0: none
    _is_save_due: bool = field(init=False, default=False)  # by the clock or a signal, in any process
    _unread: deque[StepRecord] = field(init=False, default_factory=deque)  # steps that are not logged yet

    def __post_init__(self) -> None:
        self.last_step = self.plan.steps
        self.workers = choose_workers(self.dataset, self.order(), self.recipe.train.workers)
        self.guard = UpdateGuard(scaled=self.context.accelerator.scaler is not None)
        self.bad_videos = BadVideos(self.recipe.data.max_bad)
        self.waits = WaitWatch(self.workers)
        self.step_log = StepLog(self.context, self.plan)

    def resume(self) -> None:
        """Restore the newest state of the run, if it has one. Every process reads it."""
        self.steps_done, extra = self.state.restore(self.plan.steps)
        self.last_step = self.context.run_folder.read_environment().plan.finished or self.plan.steps
        self.has_weights = extra is not None or self.steps_done == 0
        if extra is not None:
            self.guard.skipped = extra["skipped"]
            self.bad_videos.restore(extra["videos"], self.context.run_folder.read_bad_videos())

    @property
    def trained_model(self) -> nn.Module:
        """The module that is evaluated and written to `model.safetensors`: with `train.ema` the average."""
        return self.networks[0].evaluated

    def order(self, step: int = 0) -> StepSampler:
        """The samples from `step` to the last step; they follow from the seed and the step."""
        return StepSampler(
            num_samples=len(self.dataset),
            samples_per_step=self.plan.videos_per_step,
            num_steps=self.plan.steps,
            samples_per_epoch=self.plan.videos_per_epoch,
            accumulation=self.plan.accumulation,
            rank=self.context.accelerator.process_index,
            num_processes=self.plan.processes,
            seed=self.recipe.train.seed,
            start_step=step,
            repeat_first=self.context.options.one_batch,
            odds=self.dataset.sampling_odds,
        )

    def loader(self, step: int = 0) -> ClipLoader:
        """Start workers that read the clips of `order`; several training processes stop at a common step."""
        signal, grace_seconds = self.stop_signal, 0.0 if self.plan.processes == 1 else SHARED_STEP_SECONDS
        return ClipLoader(
            self.dataset,
            self.order(step),
            workers=self.workers,
            timeout=self.recipe.train.data_timeout,
            should_stop=lambda: signal.received > 0 and signal.seconds >= grace_seconds,
        )

    def remaining_steps(self) -> Generator[Step]:
        """Yield each step that is left; the caller computes its gradients and updates the weights.

        `close` ends the workers and waits until all files are written, also after an error in the loop.
        """
        self.model.train()
        with ExitStack() as ending:
            ending.enter_context(self.stop_signal)
            ending.callback(self.state.finish)
            if not self.has_steps:
                return
            loader = ending.enter_context(closing(self.loader(self.steps_done)))
            batches = map(DeviceCopy(self.context.accelerator.device), loader)
            while self.has_steps:
                yield Step(self, batches)

    @property
    def has_steps(self) -> bool:
        """Whether the run has steps left."""
        return self.steps_done < self.last_step

    def finish_step(self, record: StepRecord, *, save_now: bool = False) -> list[Row]:
        """End a step whose numbers are on their way to the host: judge, log, then save or stop the run.

        On a GPU the numbers of a step are read while the next one is computed, so that it never waits for the
        host. Before the run is saved, all are read. All processes read the same numbers at the same step, so
        they act alike. The run is saved by `train.save_every`, after the last step and after a signal.

        Args:
            save_now: save the run now; a validation follows, which may take long, and may fail.
        Returns:
            The new rows of metrics.jsonl.
        Raises:
            DivergedError: the numbers are not finite (`UpdateGuard`).
            DataError: too many videos are unreadable.
            Stopped: a process received a stop signal; the run is saved.
        """
        self.steps_done += 1
        self._unread.append(record)
        rows = self._log_steps(keep_unread=1 if self.context.overlaps and not save_now else 0)
        record.seconds = time.monotonic() - record.started  # its row may be written later
        self.context.warn(self.waits.add(record.waited, record.seconds))
        every = self.recipe.train.save_every
        at_step = isinstance(every, int) and self.steps_done % every == 0
        if save_now or at_step or self._is_save_due or not self.has_steps:
            rows += self._log_steps()
            self._save()
        if self._agreed_signal and self.has_steps:
            self.stop(self._agreed_signal, save_now=True)
        return rows

    def _log_steps(self, *, keep_unread: int = 0) -> list[Row]:
        """Read, judge and log the steps that are done, except the last `keep_unread`; returns their rows."""
        context, rows = self.context, []
        while len(self._unread) > keep_unread:
            record = self._unread.popleft()
            metrics, any_failed, signal, is_save_due = record.read()
            self._agreed_signal = self._agreed_signal or signal
            self._is_save_due = self._is_save_due or is_save_due or signal > 0
            self.guard.check(record, metrics, context, steps=self.plan.steps)
            rows.append(self.step_log.log(record, metrics))
            failed = list(gather_object(record.failed)) if any_failed else []
            num_samples = self.plan.videos_per_step
            context.notice(*self.bad_videos.add(num_samples=num_samples, failed_reads=failed))
            if failed and context.accelerator.is_main_process:
                context.run_folder.write_bad_videos(self.bad_videos.reasons)
            self.bad_videos.check(any_failed=any_failed)
        return rows

    def _save(self) -> None:
        """Log all steps, and write the newest weights and a state; all processes must call it."""
        self._log_steps()
        self._is_save_due, self.saved_at = False, time.monotonic()
        notes = {"videos": self.bad_videos.counts(), "skipped": self.guard.skipped}
        self.state.save(self.steps_done, notes)

    def stop(self, signal: int, *, save_now: bool) -> Never:
        """Raise Stopped; if `save_now`, save first, which all processes must do together."""
        text, start = "timed out waiting for a batch, so this step is not saved", "the last saved step"
        if save_now:
            self._save()
            self.state.finish()
            self.context.accelerator.wait_for_everyone()  # a process that has ended would end the others
            text, start = f"saved after step {self.steps_done} of {self.plan.steps}", "there"
        resume = f"the same command with --output {self.context.run_folder.path} resumes from {start}"
        raise Stopped(signal, f"{Signals(signal).name}: {text}; {resume}")

    def end(self, reason: str) -> None:
        """End the run after the steps done so far, which are fewer than planned."""
        if self.has_steps:
            self.last_step = self.steps_done
            self._save()  # if the process was killed before the last weights were written
            self.context.notice(reason)


class Step:
    """One update of the weights, by the mean gradient of its micro-batches on all processes.

    Random choices follow from the seed, the step, the process and the micro-batch, so that a resumed run is
    identical, and no generator is saved.

    Args:
        loaded: the batch of each micro-batch of this process, on the device.
    Attributes:
        index: updates done before, over all resumes.
    """

    def __init__(self, training: Training, loaded: Iterator[Batch]) -> None:
        self.index = training.steps_done
        self._training = training
        self._accelerator = training.context.accelerator
        self._seed = training.recipe.train.seed
        self._loaded = loaded
        self._micro_batch = 0  # the index of the current micro-batch
        self._record = StepRecord(index=self.index)
        # A warm-up begins at 0: its first step fills the moments of AdamW and changes no weight.
        for network in training.networks:
            set_lr(network.optimizer, training.plan.lr(self.index))

    def batches(self) -> Iterator[Batch]:
        """Yield the clips of each micro-batch; forward and backward go inside.

        Processes exchange gradients in the last micro-batch only. Raises Stopped if a signal comes while
        clips are awaited.
        """
        training, plan, accelerator = self._training, self._training.plan, self._accelerator
        rank, module = accelerator.process_index, training.networks[0].module
        seed = seed_at(self._seed, Purpose.DROP_PATH, self.index)
        dropped_paths = DroppedPaths(module, seed, clips=plan.batch_size, device=accelerator.device)
        for index in range(plan.accumulation):
            self._micro_batch = index
            started = time.monotonic()
            try:
                batch = next(self._loaded)
            except StoppedWaiting:
                training.stop(training.stop_signal.received, save_now=plan.processes == 1)
            self._record.waited += time.monotonic() - started
            self._record.failed += filter(None, batch.failed_reads)
            self._record.videos += batch.video_ids
            # Dropout, for example, draws from torch's global generator.
            torch.manual_seed(seed_at(self._seed, Purpose.STEP, self.index, rank, index))
            start = (rank * plan.accumulation + index) * plan.micro_batch
            dropped_paths.use(slice(start, start + plan.micro_batch))
            is_last = index == plan.accumulation - 1
            with nullcontext() if is_last else accelerator.no_sync(training.model):
                yield batch
        dropped_paths.clear()

    def rng(self) -> np.random.Generator:
        """A generator to pair or perturb the clips of the current micro-batch."""
        rank = self._accelerator.process_index
        return generator_at(self._seed, Purpose.BATCH, self.index, rank, self._micro_batch)

    def backward(self, losses: MicroBatchLosses) -> None:
        """Add the gradients of one micro-batch, in float32."""
        micro_batches = self._training.plan.accumulation
        self._record.add(losses, micro_batches=micro_batches)
        self._accelerator.backward(losses.model / micro_batches)
        for loss in losses.others:
            (loss / micro_batches).backward()

    def update_weights(self) -> StepRecord:
        """Update the weights of all networks, without logging the step; returns its numbers."""
        training, record, train = self._training, self._record, self._training.recipe.train
        record.signal = training.stop_signal.received
        record.is_save_due = time.monotonic() - training.saved_at >= train.save_seconds
        networks, guard = training.networks, training.guard
        update_networks(self._accelerator, networks, record, guard, clip_grad=train.clip_grad)
        return record

    def update(self, *, save_now: bool = False) -> list[Row]:
        """Update the weights and end the step; see `Training.finish_step`."""
        return self._training.finish_step(self.update_weights(), save_now=save_now)


class Stage(Protocol):
    """A stage that is ready for its first step."""

    @property
    def training(self) -> Training: ...

    def losses(self, batch: Batch, step: Step) -> MicroBatchLosses:
        """The losses of clips on the device; random choices about the batch follow from `step`."""
        ...

    def train(self) -> None:
        """Train to the end of the plan."""
        ...
