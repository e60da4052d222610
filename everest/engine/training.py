"""A running stage, and the calls of which every training loop is made (see everest.pretraining)."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, Never

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from everest.config.settings import Recipe
from everest.data.clips import Batch, StepSampler, VideoClips
from everest.data.loader import ClipLoader, DeviceCopy, StoppedWaiting, choose_workers
from everest.data.randomness import Purpose, generator_at, seed_at
from everest.engine.context import RunContext
from everest.engine.network import Network, clip_gradients, set_lr, update_weights
from everest.engine.plan import StagePlan
from everest.engine.state import TrainState
from everest.engine.step_log import StepLog, StepRecord, WaitWatch
from everest.models.block import DropPath
from everest.system.run_folder import Row
from everest.system.signals import Stopped, StopSignal
from everest.system.weights import Weights

if TYPE_CHECKING:
    from accelerate.tracking import TensorBoardTracker, WandBTracker

# Heuristic: how long a process waits for a batch after a stop signal, so that a step of several processes
# can end, and be saved.
SHARED_STEP_SECONDS: Final = 10.0


class Training:
    """A running stage: its networks, clips, plan and number of steps done.

    Random choices follow from the seed, the step, the process and the pass, so that a resumed run is
    identical, and no generator is saved.

    Args:
        model: as the loop calls it (everest.engine.network.prepare_model).
        networks: the model as built, then all other networks that learn in the same steps.
        loaded_clips: `clips` as workers read them: their crops may be resized on the device.
        weights: the header of `model.safetensors`; tensors and step are added when it is saved.
        videos: the number and a fingerprint of the videos, for env.json.
    """

    def __init__(
        self,
        context: RunContext,
        recipe: Recipe,
        model: nn.Module,
        networks: Sequence[Network],
        clips: VideoClips,
        *,
        loaded_clips: VideoClips,
        plan: StagePlan,
        weights: Weights,
        videos: dict[str, Any],
    ) -> None:
        self.context = context
        self.accelerator = context.accelerator
        self.run = context.run
        self.report = context.report
        self.notice = context.notice
        self.settings = recipe.train
        self.model = model
        self.networks = networks
        self.clips = clips
        self.loaded_clips = loaded_clips  # the same object unless the device resizes
        self.videos = videos
        self.origin = weights.origin
        self.plan = plan
        # Of the main process, in addition to metrics.jsonl.
        self.tracker: TensorBoardTracker | WandBTracker | None = None
        self.steps_done = 0  # updates done, over all resumes
        self.is_loaded = True  # False: the run is finished and has no state, so its model is not here
        self.state = TrainState(context, networks, weights, keep=recipe.train.keep_states)
        self.step_log = StepLog(context, recipe.train, plan, max_bad=recipe.data.max_bad, log=self.log)
        self.bad_videos = self.step_log.bad_videos
        self.workers = choose_workers(loaded_clips, self.order(), recipe.train.workers)
        # Pre-training has none.
        self._drop_paths = [part for part in networks[0].module.modules() if isinstance(part, DropPath)]
        device = self.accelerator.device
        self._signal = StopSignal()
        self._batches: Iterator[Batch] = iter(())
        self._to_device = DeviceCopy(device)
        self._waits = WaitWatch()
        self._last_step = plan.steps
        self._warned: set[str] = set()
        self._pass = 0  # of the current step
        self._record = StepRecord(device)
        self._broken = torch.zeros((), device=device)  # 1 after an update that ends the run

    def resume(self) -> None:
        """Go on from the newest state of the run, which may have none. Every process reads it."""
        self.steps_done, notes = self.state.restore(self.plan.steps, notify=self.notice)
        self.is_loaded = notes is not None or self.steps_done == 0
        self._last_step = self.run.environment().plan.finished or self.plan.steps
        if notes is not None:
            self.step_log.nonfinite.skipped = notes["skipped"]
            self.bad_videos.restore(notes["videos"], self.run.bad_videos())

    def order(self, step: int = 0) -> StepSampler:
        """The samples from `step` to the last step; they follow from the seed and the step."""
        return StepSampler(
            num_samples=len(self.clips),
            batch_size=self.plan.videos_per_step,
            steps=self.plan.steps,
            samples_per_epoch=self.plan.videos_per_epoch,
            accumulation=self.plan.accumulation,
            rank=self.accelerator.process_index,
            world=self.plan.processes,
            seed=self.settings.seed,
            start_step=step,
            repeat_first=self.context.options.one_batch,
            weights=self.clips.sample_weights,
        )

    def loader(self, step: int = 0) -> ClipLoader:
        """The clips of `order`, read by workers that start here; several processes stop at a common step."""
        waits = 0.0 if self.plan.processes == 1 else SHARED_STEP_SECONDS
        return ClipLoader(
            self.loaded_clips,
            self.order(step),
            workers=self.workers,
            timeout=self.settings.data_timeout,
            should_stop=lambda: bool(self._signal.number) and self._signal.seconds >= waits,
        )

    # --- the calls of a loop, in their order

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around the loop: catch stop signals and start the workers; end them and finish writing after it."""
        with ExitStack() as ending:
            ending.enter_context(self._signal)
            ending.callback(self.state.finish)  # also after an error
            if self.has_steps:
                self._batches = iter(ending.enter_context(closing(self.loader(self.steps_done))))
            yield

    @property
    def has_steps(self) -> bool:
        """Whether the run has steps left."""
        return self.steps_done < self._last_step

    def begin_step(self) -> None:
        """Set the learning rate of the next step, and start its record.

        A warm-up begins at 0: its first step fills the moments of AdamW and changes no weight.
        """
        for network in self.networks:
            set_lr(network.optimizer, self.plan.lr(self.steps_done))
        self._record = StepRecord(self.accelerator.device)

    def next_batch(self) -> Batch:
        """The clips of the next pass, on the device; Stopped if a signal comes while they are awaited."""
        started = time.monotonic()
        try:
            batch = next(self._batches)
        except StoppedWaiting:
            self._stop(self._signal.number, saved=self.plan.processes == 1)
        self._record.waited += time.monotonic() - started
        self._record.failed += filter(None, batch.failed)
        self._record.videos += batch.video_ids
        return self._to_device(batch)

    @contextmanager
    def one_pass(self, number: int) -> Iterator[None]:
        """Around pass `number` of the step: dropout, dropped paths and `rng` follow from it.

        Processes exchange gradients in the last pass only.
        """
        self._pass = number
        seed, plan, rank = self.settings.seed, self.plan, self.accelerator.process_index
        # Dropout uses torch's global generator.
        torch.manual_seed(seed_at(seed, Purpose.STEP, self.steps_done, rank, number))
        device = self.accelerator.device
        generator = torch.Generator(device).manual_seed(seed_at(seed, Purpose.DROP_PATH, self.steps_done))
        # Of the whole step, (P, batch): the same on any number of processes.
        noise = torch.rand(len(self._drop_paths), plan.batch_size, device=device, generator=generator)
        first = (rank * plan.accumulation + number) * plan.micro_batch
        for path, uniform in zip(self._drop_paths, noise, strict=True):
            path.noise = uniform[first : first + plan.micro_batch]

        is_last, module = number == plan.accumulation - 1, self.networks[0].module
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(is_last)
        with nullcontext() if is_last else self.accelerator.no_sync(self.model):
            yield

    def rng(self) -> np.random.Generator:
        """A generator to pair or perturb the clips of the current pass."""
        rank = self.accelerator.process_index
        return generator_at(self.settings.seed, Purpose.BATCH, self.steps_done, rank, self._pass)

    def backward(self, losses: Sequence[Tensor], parts: Mapping[str, Tensor] | None = None) -> None:
        """Add the gradients of one pass, in float32.

        Args:
            losses: the model's, then one for each other network that is active in the step.
            parts: further scalars of the pass to log, by name.
        """
        passes = self.plan.accumulation
        self._record.add(losses[0], parts or {}, passes=passes)
        self.accelerator.backward(losses[0] / passes)
        for loss in losses[1:]:
            (loss / passes).backward()

    def clip_gradients(self) -> dict[str, Tensor]:
        """Clip the gradients of each network to `train.clip_grad`; returns their norms before, by name."""
        return clip_gradients(self.accelerator, self.networks, self.settings.clip_grad)

    def update(self, norms: Mapping[str, Tensor]) -> None:
        """Update the weights of each network, and send the numbers of the step on their way to the host.

        Args:
            norms: of `clip_gradients`.
        """
        record = self._record
        record.signal = self._signal.number
        record.is_save_due = time.monotonic() - self.state.saved_at >= self.settings.save_seconds
        losses_finite, all_finite = record.gather(self.accelerator, norms)
        # An update is left out whose losses or gradient norms are not finite: the device decides, without the
        # host. With `train.nonfinite: stop` all later ones are left out, too: the host learns of the first a
        # step late, and ends the run.
        if self.settings.nonfinite == "stop":  # fp16 overflows while it finds its scale
            counted = all_finite if self.accelerator.scaler is None else losses_finite
            self._broken = torch.maximum(self._broken, counted.logical_not().float())
        skipped = torch.maximum(self._broken, all_finite.logical_not().float())  # (): 1 or 0
        update_weights(self.accelerator, self.networks, skipped=skipped)
        for path in self._drop_paths:  # of this step only
            path.noise = None
        self.steps_done += 1

    def log_step(self, *, wait: bool = False) -> list[Row]:
        """Log all steps whose numbers have arrived; returns the new rows of metrics.jsonl.

        On a GPU the numbers of a step are read while the next one is computed, so that it never waits for
        the host. Where the run is saved, or with `wait`, all are read.
        """
        record = self._record
        rows = self.step_log.add(self.steps_done, record, all_now=wait or self._saves_here)
        record.seconds = time.monotonic() - record.started  # its row may be written later
        share = self._waits.add(record.waited, record.seconds)
        if share is not None:
            self.notice(
                f"warning: the first steps spent {share:.0%} of their time waiting for videos: raise "
                f"train.workers (now {self.workers}), or encode the videos (`everest prepare encode --codec "
                "mjpeg`); `everest profile --data` states what helps most"
            )
        return rows

    @property
    def at_checkpoint(self) -> bool:
        """Whether the run is validated after the update just done: each epoch, if epochs are counted."""
        return self.steps_done % self.plan.checkpoint_steps == 0 or self.steps_done == self.plan.steps

    @property
    def _saves_here(self) -> bool:
        """Whether the run is saved after the last update, even if `train.save_every` is a time."""
        every = self.settings.save_every
        return self.steps_done == self.plan.steps or (isinstance(every, int) and self.steps_done % every == 0)

    def save_if_due(self) -> None:
        """Save after `train.save_every`, after the last step, and before a stop."""
        if self.step_log.stop_signal or self.step_log.is_save_due or self._saves_here:
            self.save()

    def stop_if_asked(self) -> None:
        """Raise Stopped after a signal to any process, unless the run is done."""
        if self.step_log.stop_signal and self.has_steps:
            self._stop(self.step_log.stop_signal, saved=True)

    # --- what the calls above use, and loops now and then

    def _stop(self, number: int, *, saved: bool) -> Never:
        """Raise Stopped, after saving the steps so far; one of several processes in a step cannot do that."""
        text, place = "timed out waiting for a batch, so this step is not saved", "the last saved step"
        if saved:
            self.save()
            self.state.finish()
            self.accelerator.wait_for_everyone()  # a process that has ended would end the others
            text, place = f"saved after step {self.steps_done} of {self.plan.steps}", "there"
        resume = f"the same command with --output {self.run.path} resumes from {place}"
        raise Stopped(number, f"{signal.Signals(number).name}: {text}; {resume}")

    def save(self) -> None:
        """Log all steps, and write the newest weights and a state; all processes must call it."""
        self.step_log.read()
        self.step_log.is_save_due = False
        notes = {"videos": self.bad_videos.counts(), "skipped": self.step_log.nonfinite.skipped}
        self.state.save(self.steps_done, notes)

    def end(self, reason: str) -> None:
        """End the run before the last step of its plan, unless it has ended here."""
        if self.steps_done < self._last_step:
            self._last_step = self.steps_done
            self.save()  # if the process was killed before the last weights were written
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
