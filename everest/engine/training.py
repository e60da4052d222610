"""The training loop of all stages: steps, passes, saving and stopping (see everest.pretraining).

for step in training.remaining_steps():
    for batch in step.batches():
        step.backward(PassLosses(loss))
    rows = step.update()

A step is one update of the weights. In a pass, a process computes the forward and the backward pass of one
micro-batch; the passes of a step accumulate their gradients. `steps` is a count, an `index` begins at 0. A
network is a module that learns, with its optimizer; the model is the first network of a run.
"""

from __future__ import annotations

import time
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
from everest.engine.saving import SaveSchedule
from everest.engine.stage_plan import StagePlan
from everest.engine.state import TrainState
from everest.engine.step import (
    NumbersInFlight,
    PassLosses,
    StepRecord,
    TrainedNetwork,
    UpdateGuard,
    set_lr,
    update_networks,
)
from everest.engine.step_log import StepLog, WaitWatch
from everest.models.block import DroppedPaths
from everest.system.run_folder import Row
from everest.system.signals import Stopped

# Heuristic: how long a process waits for a batch after a stop signal, so that a step of several processes
# can end, and be saved.
SHARED_STEP_SECONDS: Final = 10.0


@dataclass(kw_only=True, eq=False)
class Training:
    """A stage in progress: networks that learn from clips by a plan, and the number of updates done."""

    context: RunContext
    recipe: Recipe
    plan: StagePlan
    dataset: ClipDataset  # as workers read them: the device may resize their crops
    model: nn.Module  # as the loop calls it (everest.engine.network.prepare_model)
    networks: Sequence[TrainedNetwork]  # first the model, then others that learn in the same steps
    state: TrainState  # saves and restores the networks
    steps_done: int = 0  # updates done, over all resumes
    last_step: int = field(init=False)  # below `plan.steps` in a run that ends early
    has_weights: bool = field(init=False, default=True)  # False: a finished run whose states were removed
    workers: int = field(init=False)  # processes that read videos for each training process
    saves: SaveSchedule = field(init=False)
    guard: UpdateGuard = field(init=False)
    bad_videos: BadVideos = field(init=False)
    waits: WaitWatch = field(init=False)
    step_log: StepLog = field(init=False)

    def __post_init__(self) -> None:
        self.last_step = self.plan.steps
        self.workers = choose_workers(self.dataset, self.order(), self.recipe.train.workers)
        self.saves = SaveSchedule(self.recipe.train, self.plan.steps)
        is_scaled = self.context.accelerator.scaler is not None
        self.guard = UpdateGuard(self.recipe.train.nonfinite, scaled=is_scaled)
        self.bad_videos = BadVideos(self.recipe.data.max_bad)
        self.waits = WaitWatch(self.workers)
        self.step_log = StepLog(self.context, self.plan)

    def resume(self) -> None:
        """Restore the newest state of the run, if it has one. Every process reads it."""
        self.steps_done, notes = self.state.restore(self.plan.steps)
        self.last_step = self.context.run_folder.read_environment().plan.finished or self.plan.steps
        self.has_weights = notes is not None or self.steps_done == 0
        if notes is not None:
            self.guard.skipped = notes["skipped"]
            self.bad_videos.restore(notes["videos"], self.context.run_folder.read_bad_videos())

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
        signal, waits = self.saves.own_signal, 0.0 if self.plan.processes == 1 else SHARED_STEP_SECONDS
        return ClipLoader(
            self.dataset,
            self.order(step),
            workers=self.workers,
            timeout=self.recipe.train.data_timeout,
            should_stop=lambda: signal.received > 0 and signal.seconds >= waits,
        )

    def remaining_steps(self) -> Generator[Step]:
        """Yield each step that is left; the caller computes its gradients and updates the weights.

        When the next step is requested, the run is saved if that is due (`train.save_every`, the last step, a
        signal), and Stopped is raised after a signal to any process. `close` ends the workers and waits until
        all files are written, also after an error in the loop.
        """
        self.model.train()
        with ExitStack() as ending:
            ending.enter_context(self.saves.own_signal)
            ending.callback(self.state.finish)
            if not self.has_steps:
                return
            loader = ending.enter_context(closing(self.loader(self.steps_done)))
            batches = map(DeviceCopy(self.context.accelerator.device), loader)
            while self.has_steps:
                yield Step(self, batches)
                if self.saves.is_due:
                    self.save()
                if self.saves.agreed_signal and self.has_steps:
                    self.raise_stopped(self.saves.agreed_signal, saved=True)

    @property
    def has_steps(self) -> bool:
        """Whether the run has steps left."""
        return self.steps_done < self.last_step

    def raise_stopped(self, signal: int, *, saved: bool) -> Never:
        """Raise Stopped; if `saved`, save first, which all processes must do together."""
        text, start = "timed out waiting for a batch, so this step is not saved", "the last saved step"
        if saved:
            self.save()
            self.state.finish()
            self.context.accelerator.wait_for_everyone()  # a process that has ended would end the others
            text, start = f"saved after step {self.steps_done} of {self.plan.steps}", "there"
        resume = f"the same command with --output {self.context.run_folder.path} resumes from {start}"
        raise Stopped(signal, f"{Signals(signal).name}: {text}; {resume}")

    def save(self) -> None:
        """Log all steps, and write the newest weights and a state; all processes must call it."""
        self.log_steps()
        self.saves.restart()
        notes = {"videos": self.bad_videos.counts(), "skipped": self.guard.skipped}
        self.state.save(self.steps_done, notes)

    def log_steps(self, *, but: int = 0) -> None:
        """Log the steps that are done, except the last `but`, and act on their numbers.

        All processes read the same numbers at the same step, so they act alike: they save or stop when one
        requests it, and the run ends if it diverged (`UpdateGuard`) or if too many videos are unreadable.
        """
        context = self.context
        for record, (figures, any_failed, request) in self.step_log.finished(but=but):
            self.saves.add(request)
            self.guard.check(record, figures, context, steps=self.plan.steps)
            self.step_log.log(record, figures)
            failed = list(gather_object(record.failed)) if any_failed else []
            num_samples = self.plan.videos_per_step
            context.notice(*self.bad_videos.add(num_samples=num_samples, failed_reads=failed))
            if failed and context.accelerator.is_main_process:
                context.run_folder.write_bad_videos(self.bad_videos.reasons)
            self.bad_videos.check(any_failed=any_failed)

    def end(self, reason: str) -> None:
        """End the run after the steps done so far, which are fewer than planned."""
        if self.has_steps:
            self.last_step = self.steps_done
            self.save()  # if the process was killed before the last weights were written
            self.context.notice(reason)


class Step:
    """One update of the weights, by the mean gradient of its passes on all processes.

    Random choices follow from the seed, the step, the process and the pass, so that a resumed run is
    identical, and no generator is saved.

    Args:
        loaded: the batch of each pass of this process, on the device.
    Attributes:
        index: updates done before, over all resumes.
    """

    def __init__(self, training: Training, loaded: Iterator[Batch]) -> None:
        self.index = training.steps_done
        self._training = training
        self._accelerator = training.context.accelerator
        self._seed = training.recipe.train.seed
        self._loaded = loaded
        self._pass = 0  # the index of the current pass
        self._record = StepRecord(index=self.index)
        # A warm-up begins at 0: its first step fills the moments of AdamW and changes no weight.
        for network in training.networks:
            set_lr(network.optimizer, training.plan.lr(self.index))

    def batches(self) -> Iterator[Batch]:
        """Yield the clips of each pass; forward and backward go inside.

        Processes exchange gradients in the last pass only. Raises Stopped if a signal comes while clips are
        awaited.
        """
        training, plan, accelerator = self._training, self._training.plan, self._accelerator
        rank, module = accelerator.process_index, training.networks[0].module
        seed = seed_at(self._seed, Purpose.DROP_PATH, self.index)
        dropped_paths = DroppedPaths(module, seed, clips=plan.batch_size, device=accelerator.device)
        for index in range(plan.accumulation):
            self._pass = index
            started = time.monotonic()
            try:
                batch = next(self._loaded)
            except StoppedWaiting:
                training.raise_stopped(training.saves.own_signal.received, saved=plan.processes == 1)
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
        """A generator to pair or perturb the clips of the current pass."""
        rank = self._accelerator.process_index
        return generator_at(self._seed, Purpose.BATCH, self.index, rank, self._pass)

    def backward(self, losses: PassLosses) -> None:
        """Add the gradients of one pass, in float32."""
        passes = self._training.plan.accumulation
        self._record.add(losses, passes=passes)
        self._accelerator.backward(losses.model / passes)
        for loss in losses.others:
            (loss / passes).backward()

    def update_weights(self) -> NumbersInFlight:
        """Update the weights of all networks, without logging the step."""
        training, accelerator, record = self._training, self._accelerator, self._record
        clip_grad, request = training.recipe.train.clip_grad, training.saves.request()
        return update_networks(
            accelerator, training.networks, record, training.guard, clip_grad=clip_grad, request=request
        )

    def update(self, *, wait: bool = False) -> list[Row]:
        """Update the weights, and log the steps whose numbers have arrived; returns the new rows.

        On a GPU the numbers of a step are read while the next one is computed, so that it never waits for the
        host. Where the run is saved, or with `wait`, all are read.
        """
        training, record, numbers = self._training, self._record, self.update_weights()
        training.steps_done += 1
        training.saves.reach(training.steps_done)
        training.step_log.add(record, numbers)
        training.log_steps(but=1 if training.context.overlaps and not wait else 0)
        if training.saves.is_due:
            training.log_steps()
        record.seconds = time.monotonic() - record.started  # its row may be written later
        training.context.warn(training.waits.add(record.waited, record.seconds))
        return training.step_log.take_rows()


class Stage(Protocol):
    """A stage that is ready for its first step."""

    @property
    def training(self) -> Training: ...

    def losses(self, batch: Batch, step: Step) -> PassLosses:
        """The losses of clips on the device; random choices about the batch follow from `step`."""
        ...

    def train(self) -> None:
        """Train to the end of the plan."""
        ...
