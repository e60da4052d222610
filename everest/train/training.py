"""What the loops share: seeds, the update, logging, saving, resuming, ending.

A loop reads

    for _ in training.steps():
        for clip in training.micro_batches():
            training.backward(loss of the clip)
        training.update()

and everything that a run can lose or break lies behind these four calls.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader

from everest.config.settings import TrainSettings
from everest.data.bad_videos import BadVideos
from everest.data.dataset import Clip, StepSampler, VideoClips, failures
from everest.data.loader import batches, make_loader, on_device
from everest.errors import DivergedError, EnvironmentProblem, UserError
from everest.system.events import Report, notice
from everest.system.randomness import Purpose, generator_at, seed_at
from everest.system.run_folder import NONFINITE, RunFolder
from everest.system.run_lock import release_lock_after
from everest.system.signals import Stopped, StopSignal
from everest.system.weights import Weights
from everest.train.adversary import Adversary
from everest.train.health import Figures, LossWatch, Nonfinite
from everest.train.plan import StagePlan
from everest.train.state import Saver, TrainState
from everest.train.step_record import StepRecord
from everest.train.tracking import Tracker, numbers_of
from everest.train.update import Updater


class Training:
    """One stage under way: the live objects, and the step they are at.

    Args:
        weights: everything of the stage's `model.safetensors` but the tensors and the step.
        videos: what tells the clips from others, for env.json.
        memory_advice: what to try when a pass does not fit.
        adversary: what learns against the model, in the same steps.
        one_batch: train on the first step's clips again and again.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        plan: StagePlan,
        settings: TrainSettings,
        run: RunFolder,
        weights: Weights,
        clips: VideoClips,
        videos: dict[str, Any],
        bad_videos: BadVideos,
        report: Report,
        memory_advice: str,
        adversary: Adversary | None = None,
        one_batch: bool = False,
    ) -> None:
        self._memory_advice = memory_advice
        self.accelerator = accelerator
        self.clips = clips
        self.videos = videos
        self.plan = plan
        self.settings = settings
        self.run = run
        self.report = report
        self.one_batch = one_batch
        self.bad_videos = bad_videos
        self.tracker: Tracker | None = None  # of the main process, beside metrics.jsonl
        self.steps_done = 0  # updates done, over all resumes
        self._state = TrainState(
            model=model,
            optimizer=optimizer,
            ema=ModelEmaV3(model, decay=settings.ema) if settings.ema else None,
            scaler=accelerator.scaler,
            adversary=adversary,
        )
        self._saver = Saver(
            accelerator, run, self._state, weights, plan=plan, settings=settings, notify=self.notice
        )
        self.updater = Updater(accelerator, self._state, settings)
        self.model = self.updater.model
        self._nonfinite = Nonfinite(settings.nonfinite, scaled=accelerator.scaler is not None)
        self._losses = LossWatch()
        self._signal = StopSignal()
        self._stop_asked = 0  # the signal that any process got
        self._batches: Iterator[Clip] = iter(())
        self._pass = 0
        self._record = StepRecord(accelerator.device)

    @property
    def trained_model(self) -> nn.Module:
        """The module that is judged and handed on: the average with `train.ema`, else the trained one."""
        return self._state.trained_model

    @property
    def ends_epoch(self) -> bool:
        """Whether the last update was an epoch's last."""
        return self.plan.ends_epoch(self.steps_done)

    def resume(self) -> None:
        """Continue from the run's newest state, if it has one. Every process reads it.

        Raises:
            CheckpointError: what is there cannot be continued.
        """
        self.steps_done, notes = self._saver.restore()
        if notes is not None:
            self._nonfinite.skipped = notes["skipped"]
            self.bad_videos.restore(notes["videos"], self.run.bad_videos())

    @contextmanager
    def explain_out_of_memory(self) -> Iterator[None]:
        """Around a loop: what the machine refused, told with what to try."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise EnvironmentProblem(f"out of memory: {self._memory_advice}") from error

    def steps(self) -> Iterator[int]:
        """The steps that remain. Between them the run is saved when due and ends when a signal asks."""
        main = self.accelerator.is_main_process
        with self._signal, release_lock_after(self.run.path) if main else nullcontext():
            self._batches = batches(self.loader())
            while self.steps_done < self.plan.steps:
                self.updater.set_lr(self.plan.lr(self.steps_done))
                self._record = StepRecord(self.accelerator.device)
                yield self.steps_done
                stop = self._stop_asked
                if stop or self._saver.is_due(self.steps_done):
                    self.save()
                if stop and self.steps_done < self.plan.steps:
                    self._stop(stop)

    def loader(self) -> DataLoader[Clip | UserError]:
        """The clips of this process from the next step to the last."""
        order = StepSampler(
            num_samples=len(self.clips),
            batch_size=self.plan.videos_per_step,
            epochs=self.plan.epochs,
            steps_per_epoch=self.plan.steps_per_epoch,
            accumulation=self.plan.accumulation,
            rank=self.accelerator.process_index,
            world=self.plan.processes,
            seed=self.settings.seed,
            start_step=self.steps_done,
            repeat_first=self.one_batch,
        )
        timeout = self.settings.data_timeout
        return make_loader(self.clips, order, workers=self.settings.workers, timeout=timeout)

    def micro_batches(self) -> Iterator[Clip]:
        """The passes of one step, on the device. Gradients are exchanged in the last one only."""
        for number in range(self.plan.accumulation):
            self._pass = number
            with self._record.waiting():
                clip = next(self._batches)
            self._record.failed += failures(clip)
            self._record.videos += clip.video_id
            # Drop path draws from torch's generator: seeded here, a resumed pass equals the unbroken one.
            torch.manual_seed(seed_at(self.settings.seed, Purpose.STEP, *self._place))
            with self.updater.one_pass(last=number == self.plan.accumulation - 1):
                yield on_device(clip, self.accelerator.device)

    @property
    def _place(self) -> tuple[int, int, int]:
        return self.steps_done, self.accelerator.process_index, self._pass

    def rng(self) -> np.random.Generator:
        """For what pairs or perturbs the clips of the pass under way: it follows from the pass's place."""
        return generator_at(self.settings.seed, Purpose.BATCH, *self._place)

    def backward(
        self, loss: Tensor, adversary_loss: Tensor | None = None, parts: Mapping[str, Tensor] | None = None
    ) -> None:
        """Add the gradients of one pass.

        Args:
            parts: what else of the pass is logged, by name.
        """
        passes = self.plan.accumulation
        self._record.add(loss, parts or {}, passes=passes)
        self.updater.backward(loss / passes, None if adversary_loss is None else adversary_loss / passes)

    def update(self) -> None:
        """Change the weights by the gradients of the step, and log it.

        Raises:
            DivergedError: a loss or a gradient is not finite; all weights are left as they were.
            DataError: too many videos could not be read.
        """
        self.updater.average_adversary()
        norm, adversary_norm = self.updater.clip_gradients()
        found = self._record.reduce_over_processes(self.accelerator, self._signal.number)
        self._stop_asked = found.signal
        figures = Figures(found.loss, norm, {**found.parts, **adversary_norm})
        if self._is_sound(figures):
            self.updater.step()
        else:
            self.updater.skip_step()
        self.updater.zero_grad()
        self.steps_done += 1
        self._log_step(figures)
        self._count_videos(any_failed=found.any_failed)

    def _is_sound(self, figures: Figures) -> bool:
        """Whether the update may be done; what is against it is told."""
        try:
            left_out = self._nonfinite.should_skip(figures)
        except DivergedError as error:
            where = self._write_videos(figures)
            raise DivergedError(
                f"step {self.steps_done + 1}: {error}; {where}; lower base_lr or set train.clip_grad"
            ) from error
        if left_out and not self._nonfinite.overflow:
            where = self._write_videos(figures)
            self.notice(f"step {self.steps_done + 1} left out: {figures}; {where}")
        return not left_out

    def _write_videos(self, figures: Figures) -> str:
        """Write down what the step was made of, for all processes; returns where."""
        videos = gather_object(self._record.videos)
        if self.accelerator.is_main_process:
            self.run.write_nonfinite(step=self.steps_done + 1, figures=figures.named, videos=videos)
        return f"its videos are in {self.run.path / NONFINITE}"

    def _count_videos(self, *, any_failed: bool) -> None:
        failed = list(gather_object(self._record.failed)) if any_failed else []
        for text in self.bad_videos.add(requested=self.plan.videos_per_step, failed=failed):
            self.notice(text)
        if failed and self.accelerator.is_main_process:
            self.run.write_bad_videos(self.bad_videos.reasons)
        self.bad_videos.check(any_failed=any_failed)

    def _log_step(self, figures: Figures) -> None:
        row = self._record.row(self.plan, figures, step=self.steps_done)
        self.log(row)
        self.report({"event": "step", "steps": self.plan.steps, "epochs": self.plan.epochs, **row})
        jump = self._losses.spike(figures.loss)
        if jump:
            self.notice(f"step {self.steps_done}: {jump}")

    def change_loss(self, text: str) -> None:
        """Tell of a loss that is another one from the next step on, and compare it with none before."""
        self._losses = LossWatch()
        self.notice(text)

    def recent_losses(self, number: int) -> list[float]:
        """Up to the last `number` losses of this process's life."""
        return self._losses.recent(number)

    def log(self, row: dict[str, Any]) -> None:
        """A row for metrics.jsonl, once over all processes."""
        if self.accelerator.is_main_process:
            self.run.log(row)
        if self.tracker is not None:
            self.tracker.log(numbers_of(row), step=row["step"])

    def notice(self, text: str) -> None:
        """A line for whoever watches."""
        self.report(notice(text))

    def _stop(self, number: int) -> None:
        name = signal.Signals(number).name
        raise Stopped(
            number,
            f"{name}: saved after step {self.steps_done} of {self.plan.steps}; the same command with "
            f"--output {self.run.path} goes on from there",
        )

    def save(self) -> None:
        """Write the newest weights and a state to resume from. All processes must call it."""
        notes = {"videos": self.bad_videos.counts(), "skipped": self._nonfinite.skipped}
        self._saver.save(self.steps_done, notes)

    def save_weights(self, path: Path) -> None:
        """Write the weights as they are. All processes must call it."""
        self._saver.save_weights(path, self.steps_done)
