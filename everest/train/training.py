"""The engine that all training loops share: seeds, updates, logging, saving, resuming, stopping.

A loop reads

    for _ in training.steps():
        for clip in training.micro_batches():
            training.backward([loss of the clip])
        training.update()

and these four calls also log, save, resume, and handle signals and unreadable videos.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from everest.config.settings import Recipe
from everest.data.bad_videos import BadVideos
from everest.data.dataset import Clip, StepSampler, VideoClips, failures
from everest.data.loader import ClipLoader, batches, make_loader, on_device
from everest.errors import DivergedError, EnvironmentProblem
from everest.system.events import notice
from everest.system.randomness import Purpose, generator_at, seed_at
from everest.system.run_folder import ENDED, NONFINITE
from everest.system.run_lock import release_lock_after
from everest.system.signals import Stopped, StopSignal
from everest.system.weights import Weights
from everest.train.context import RunContext
from everest.train.health import LossWatch, Nonfinite, StepMetrics
from everest.train.plan import StagePlan
from everest.train.state import GRAD_NORM, Network, TrainState
from everest.train.step_record import StepRecord
from everest.train.tracking import Tracker
from everest.train.update import Updater
from everest.train.waiting import WaitWatch, waiting_advice


class Training:
    """A running stage: its networks, clips, plan and number of steps done.

    Args:
        networks: the model of the stage, then all other networks that learn in the same steps.
        weights: the header of `model.safetensors`; tensors and step are added when it is saved.
        videos: the number and a fingerprint of the videos, for env.json.
        memory_advice: settings to try when a pass does not fit.
    """

    def __init__(
        self,
        context: RunContext,
        recipe: Recipe,
        networks: Sequence[Network],
        clips: VideoClips,
        *,
        plan: StagePlan,
        weights: Weights,
        videos: dict[str, Any],
        memory_advice: str,
    ) -> None:
        self.context = context
        self.accelerator = context.accelerator
        self.rank = context.accelerator.process_index
        self.run = context.run
        self.report = context.report
        self.settings = recipe.train
        self.clips = clips
        self.videos = videos
        self.plan = plan
        self.bad_videos = BadVideos(recipe.data.max_bad)
        self.tracker: Tracker | None = None  # of the main process, in addition to metrics.jsonl
        self.steps_done = 0  # updates done, over all resumes
        self.losses = LossWatch()
        self._waits = WaitWatch()
        self.state = TrainState(self.accelerator, self.run, networks, weights, keep=recipe.train.keep_states)
        self.updater = Updater(self.accelerator, networks, recipe.train)
        self.model = self.updater.model
        self._memory_advice = memory_advice
        self._nonfinite = Nonfinite(recipe.train.nonfinite, scaled=self.accelerator.scaler is not None)
        self._signal = StopSignal()
        self._stop_signal = 0  # received by any process
        self._batches: Iterator[Clip] = iter(())
        self._pass = 0
        self._has_ended = False
        self._warned: set[str] = set()
        self._record = StepRecord(self.accelerator.device)

    @property
    def at_checkpoint(self) -> bool:
        """Whether the run is saved and validated after the last update: each epoch, if epochs are counted."""
        return self.steps_done % self.plan.checkpoint_steps == 0 or self.steps_done == self.plan.steps

    def resume(self) -> None:
        """Resume from the run's newest state, if it has one. Every process reads it.

        Raises:
            CheckpointError: the run cannot be resumed.
        """
        self.steps_done, notes = self.state.restore(self.plan.steps, notify=self.notice)
        self._has_ended = any(ENDED in row for row in self.run.rows())
        if notes is not None:
            self._nonfinite.skipped = notes["skipped"]
            self.bad_videos.restore(notes["videos"], self.run.bad_videos())

    @contextmanager
    def explain_out_of_memory(self) -> Iterator[None]:
        """Around a loop: turns torch's error into one line with settings to try."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise EnvironmentProblem(f"out of memory: {self._memory_advice}") from error

    def steps(self) -> Iterator[int]:
        """Yield the number of every remaining step. After each, save if due, and stop on a signal."""
        with self._signal, release_lock_after(self.run.path) if self.rank == 0 else nullcontext():
            self._batches = batches(self.loader())
            while self.steps_done < self.plan.steps and not self._has_ended:
                self.updater.set_lr(self.plan.lr(self.steps_done))
                self._record = StepRecord(self.accelerator.device)
                yield self.steps_done
                number = self._stop_signal
                if number or self._is_save_due():
                    self.save()
                if number and self.steps_done < self.plan.steps:
                    saved = f"saved after step {self.steps_done} of {self.plan.steps}"
                    resume = f"the same command with --output {self.run.path} resumes from there"
                    raise Stopped(number, f"{signal.Signals(number).name}: {saved}; {resume}")

    def _is_save_due(self) -> bool:
        """Whether to save now: `at_checkpoint`, or by `train.save_every`."""
        every_steps, every_seconds = self.settings.save_steps, self.settings.save_seconds
        if self.at_checkpoint or (every_steps is not None and self.steps_done % every_steps == 0):
            return True
        if every_seconds is None:
            return False
        due = time.monotonic() - self.state.saved_at >= every_seconds
        if self.plan.processes > 1:  # their clocks differ, and saving needs all of them
            gathered = self.accelerator.gather(torch.tensor([due], device=self.accelerator.device))
            assert isinstance(gathered, Tensor)
            due = bool(gathered.any())
        return due

    def order(self) -> StepSampler:
        """The samples of this process from the next step to the last."""
        return StepSampler(
            num_samples=len(self.clips),
            batch_size=self.plan.videos_per_step,
            steps=self.plan.steps,
            samples_per_epoch=self.plan.videos_per_epoch,
            accumulation=self.plan.accumulation,
            rank=self.rank,
            world=self.plan.processes,
            seed=self.settings.seed,
            start_step=self.steps_done,
            repeat_first=self.context.one_batch,
        )

    def loader(self) -> ClipLoader:
        """The clips of `order`."""
        workers, timeout = self.settings.num_workers, self.settings.data_timeout
        return make_loader(self.clips, self.order(), workers=workers, timeout=timeout)

    def micro_batches(self) -> Iterator[Clip]:
        """The clips of every pass of a step, on the device. Gradients are exchanged in the last pass only."""
        for number in range(self.plan.accumulation):
            self._pass = number
            started = time.monotonic()
            clip = next(self._batches)
            self._record.waited += time.monotonic() - started
            self._record.failed += failures(clip)
            self._record.videos += clip.video_id
            # Drop path uses torch's global generator; seeded before every pass, a resumed run is identical.
            torch.manual_seed(seed_at(self.settings.seed, Purpose.STEP, self.steps_done, self.rank, number))
            with self.updater.one_pass(last=number == self.plan.accumulation - 1):
                yield on_device(clip, self.accelerator.device)

    def rng(self) -> np.random.Generator:
        """A generator to pair or perturb the clips of the current pass; the same in a resumed run."""
        return generator_at(self.settings.seed, Purpose.BATCH, self.steps_done, self.rank, self._pass)

    def backward(self, losses: Sequence[Tensor], parts: Mapping[str, Tensor] | None = None) -> None:
        """Add the gradients of one pass.

        Args:
            losses: the model's, then one for each other network that is active in the step.
            parts: further scalars of the pass to log, by name.
        """
        passes = self.plan.accumulation
        self._record.add(losses[0], parts or {}, passes=passes)
        self.updater.backward([loss / passes for loss in losses])

    def update(self) -> dict[str, Any]:
        """Apply the gradients of the step, then log the step.

        Returns:
            The row of metrics.jsonl.
        Raises:
            DivergedError: a loss or a gradient is not finite; all weights stay as they were.
            DataError: too many videos are unreadable.
        """
        norms = self.updater.clip_gradients()
        totals = self._record.reduce_over_processes(self.accelerator, self._signal.number)
        self._stop_signal = totals.signal
        metrics = StepMetrics(totals.loss, norms.pop(GRAD_NORM), {**totals.parts, **norms})
        step = self.steps_done + 1
        try:
            skip = self._nonfinite.should_skip(metrics)
        except DivergedError as error:
            problem = f"step {step}: {error}; {self._write_videos(step, metrics)}"
            raise DivergedError(f"{problem}; lower base_lr or set train.clip_grad") from error
        if skip and not self._nonfinite.overflow:
            self.notice(f"step {step} skipped: {metrics}; {self._write_videos(step, metrics)}")
        self.updater.step(skip=skip)
        self.steps_done = step
        row = self._record.row(self.plan, metrics, step=step)
        self.log(row)
        self.report({"event": "step", "steps": self.plan.steps, "epochs": self.plan.epochs, **row})
        share = self._waits.add(self._record.waited)
        if share is not None:
            workers, views = self.settings.num_workers, self.clips.make_views
            self.warn_once("waiting", waiting_advice(share, workers=workers, views=views))
        jump = self.losses.spike(metrics.loss)
        if jump:
            self.notice(f"step {step}: {jump}")
        failed = list(gather_object(self._record.failed)) if totals.any_failed else []
        for text in self.bad_videos.add(requested=self.plan.videos_per_step, failed=failed):
            self.notice(text)
        if failed and self.accelerator.is_main_process:
            self.run.write_bad_videos(self.bad_videos.reasons)
        self.bad_videos.check(any_failed=totals.any_failed)
        return row

    def end(self, reason: str) -> None:
        """End the run before the last step of its plan; it is finished, and cannot be resumed."""
        if not self._has_ended:
            self._has_ended = True
            self.save()  # if the process was killed before the last weights were written
            self.log({"step": self.steps_done, ENDED: reason})
            self.notice(reason)

    def _write_videos(self, step: int, metrics: StepMetrics) -> str:
        """Write the videos of a step, gathered over all processes; returns where they are."""
        videos = gather_object(self._record.videos)
        if self.accelerator.is_main_process:
            self.run.write_nonfinite(step=step, figures=metrics.by_name, videos=videos)
        return f"its videos are in {self.run.path / NONFINITE}"

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl, once over all processes; its numbers go to the tracker, too."""
        if self.accelerator.is_main_process:
            self.run.log(row)
        if self.tracker is not None:
            numbers = {k: v for k, v in row.items() if k != "step" and isinstance(v, int | float)}
            self.tracker.log(numbers, step=row["step"])

    def notice(self, text: str) -> None:
        """Show a line of text to the user."""
        self.report(notice(text))

    def warn_once(self, kind: str, warning: str | None) -> None:
        """Show a warning, if there is one and none of its kind has been shown."""
        if warning is not None and kind not in self._warned:
            self._warned.add(kind)
            self.notice(f"warning: {warning}")

    def save(self) -> None:
        """Write the newest weights and a state to resume from. All processes must call it."""
        notes = {"videos": self.bad_videos.counts(), "skipped": self._nonfinite.skipped}
        self.state.save(self.steps_done, notes)
