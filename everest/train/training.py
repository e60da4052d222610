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
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Never

import numpy as np
import torch
from torch import Tensor

from everest.config.settings import Recipe
from everest.data.bad_videos import BadVideos
from everest.data.dataset import Clip, VideoClips, failures
from everest.data.loader import DeviceCopy, StoppedWaiting, batches
from everest.errors import EnvironmentProblem
from everest.system.run_folder import ENDED
from everest.system.signals import Stopped, StopSignal
from everest.system.weights import Weights
from everest.train.context import RunContext
from everest.train.health import Nonfinite, Row
from everest.train.network import Network
from everest.train.passes import Passes
from everest.train.plan import StagePlan
from everest.train.probe_advice import Probing
from everest.train.state import TrainState
from everest.train.step_log import StepLog, StepNumbers, StepRecord
from everest.train.tracking import Tracker
from everest.train.update import Updater


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
        self.run = context.run
        self.report = context.report
        self.notice = context.notice
        self.settings = recipe.train
        self.clips = clips
        self.videos = videos
        self.origin = weights.origin
        self.plan = plan
        self.bad_videos = BadVideos(recipe.data.max_bad)
        self.tracker: Tracker | None = None  # of the main process, in addition to metrics.jsonl
        self.prober: Probing | None = None  # of pre-training, see everest.probes.probe_loop
        self.steps_done = 0  # updates done, over all resumes
        self.is_loaded = True  # False: the run is finished and has no state, so its model is not here
        self._signal = StopSignal()
        self.passes = Passes(context, recipe.train, clips, plan, networks[0].module, self._signal)
        keep, background = self.settings.keep_states, context.overlaps
        self.state = TrainState(
            self.accelerator, self.run, networks, weights, keep=keep, background=background
        )
        self.updater = Updater(self.accelerator, networks, recipe.train)
        self.model = self.updater.model
        self._memory_advice = memory_advice
        self._batches: Iterator[Clip] = iter(())
        self._copy = DeviceCopy(self.accelerator.device)
        self._has_ended = False
        self._warned: set[str] = set()
        self._record = StepRecord(self.accelerator.device)
        nonfinite = Nonfinite(recipe.train.nonfinite, scaled=self.accelerator.scaler is not None)
        self.step_log = StepLog(context, plan, nonfinite=nonfinite, bad_videos=self.bad_videos, log=self.log)

    @property
    def at_checkpoint(self) -> bool:
        """Whether the run is validated after the update just done: each epoch, if epochs are counted."""
        return self.steps_done % self.plan.checkpoint_steps == 0 or self.steps_done == self.plan.steps

    def resume(self) -> None:
        """Resume from the run's newest state, if it has one. Every process reads it.

        Raises:
            CheckpointError: the run cannot be resumed.
        """
        self.steps_done, notes = self.state.restore(self.plan.steps, notify=self.notice)
        self.is_loaded = notes is not None or self.steps_done == 0
        self._has_ended = any(ENDED in row for row in self.run.rows())
        if notes is not None:
            self.step_log.nonfinite.skipped = notes["skipped"]
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
        with self._signal, ExitStack() as ending:
            ending.callback(self.state.finish)  # also after an error
            self._batches = ending.enter_context(closing(batches(self.passes.loader(self.steps_done))))
            while self.steps_done < self.plan.steps and not self._has_ended:
                self.updater.set_lr(self.plan.lr(self.steps_done))
                self._record = StepRecord(self.accelerator.device)
                yield self.steps_done
                number = self.step_log.stop_signal
                if number or self.step_log.is_save_due or self._saves_here:
                    self.save()
                if number and self.steps_done < self.plan.steps:
                    self._stop(number, saved=True)

    @property
    def _saves_here(self) -> bool:
        """Whether the run is saved after the last update, even if `train.save_every` is a time."""
        every = self.settings.save_steps
        return self.steps_done == self.plan.steps or (every is not None and self.steps_done % every == 0)

    def micro_batches(self) -> Iterator[Clip]:
        """The clips of every pass of a step, on the device. Gradients are exchanged in the last pass only."""
        for number in range(self.plan.accumulation):
            started = time.monotonic()
            try:
                clip = next(self._batches)
            except StoppedWaiting:
                self._stop(self._signal.number, saved=self.plan.processes == 1)
            self._record.waited += time.monotonic() - started
            self._record.failed += failures(clip)
            self._record.videos += clip.video_id
            last = number == self.plan.accumulation - 1
            with self.updater.one_pass(last=last), self.passes.seeded(self.steps_done, number):
                yield self._copy(clip)

    def _stop(self, number: int, *, saved: bool) -> Never:
        """Raise Stopped, after saving the steps so far; one of several processes in a step cannot do that."""
        if saved:
            self.save()
            self.state.finish()
            self.accelerator.wait_for_everyone()  # a process that has ended would end the others
            text = f"saved after step {self.steps_done} of {self.plan.steps}"
        else:
            text = "a batch does not come, so this step is not saved"
        place = "there" if saved else "the last saved step"
        resume = f"the same command with --output {self.run.path} resumes from {place}"
        raise Stopped(number, f"{signal.Signals(number).name}: {text}; {resume}")

    def rng(self) -> np.random.Generator:
        """A generator to pair or perturb the clips of the current pass; the same in a resumed run."""
        return self.passes.rng(self.steps_done)

    def backward(self, losses: Sequence[Tensor], parts: Mapping[str, Tensor] | None = None) -> None:
        """Add the gradients of one pass.

        Args:
            losses: the model's, then one for each other network that is active in the step.
            parts: further scalars of the pass to log, by name.
        """
        passes = self.plan.accumulation
        self._record.add(losses[0], parts or {}, passes=passes)
        self.updater.backward([loss / passes for loss in losses])

    def update(self) -> list[Row]:
        """Apply the gradients of the step, and log all steps whose numbers have arrived.

        On a GPU the numbers of a step are read while the next one is computed, so that it never waits for
        the host. Where the run is saved all are read.

        Returns:
            The new rows of metrics.jsonl.
        Raises:
            DivergedError: a loss or a gradient is not finite; all weights stay as they were.
            DataError: too many videos are unreadable.
        """
        norms, record = self.updater.clip_gradients(), self._record
        every = self.settings.save_seconds
        record.signal = self._signal.number
        record.is_save_due = every is not None and time.monotonic() - self.state.saved_at >= every
        numbers = StepNumbers(self.accelerator, record, norms)
        self.updater.step(numbers)
        self.steps_done += 1
        rows = self.step_log.add(self.steps_done, record, numbers, all_now=self._saves_here)
        record.close()
        self.warn_once("waiting", self.passes.advice(record.waited))
        return rows

    def end(self, reason: str) -> None:
        """End the run before the last step of its plan; it is finished, and cannot be resumed."""
        if not self._has_ended:
            self._has_ended = True
            self.save()  # if the process was killed before the last weights were written
            self.log({"step": self.steps_done, ENDED: reason})
            self.notice(reason)

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl, once over all processes; its numbers go to the tracker, too."""
        if self.accelerator.is_main_process:
            self.run.log(row)
        if self.tracker is not None:
            numbers = {k: v for k, v in row.items() if k != "step" and isinstance(v, int | float)}
            self.tracker.log(numbers, step=row["step"])

    def warn_once(self, kind: str, warning: str | None) -> None:
        """Show a warning, if there is one and none of its kind has been shown."""
        if warning is not None and kind not in self._warned:
            self._warned.add(kind)
            self.notice(f"warning: {warning}")

    def save(self) -> list[Row]:
        """Write the newest weights and a state to resume from. All processes must call it.

        Returns:
            The rows of the steps that were not logged before.
        """
        rows = self.step_log.read()
        self.step_log.is_save_due = False
        notes = {"videos": self.bad_videos.counts(), "skipped": self.step_log.nonfinite.skipped}
        self.state.save(self.steps_done, notes)
        return rows
