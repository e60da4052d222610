"""What the loops share: processes and precision, seeds, the update, saving, resuming, stopping.

A loop reads

    for _ in training.steps():
        for clip in training.micro_batches():
            training.backward(loss of the clip)
        training.update()

and everything a run can lose or break lies behind these four calls.
"""

from __future__ import annotations

import math
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader

from everest.bad_videos import BadVideos
from everest.checkpoint import (
    RunState,
    Weights,
    load_optimizer,
    load_tensors,
    newest_state,
    optimizer_tensors,
    save_state,
)
from everest.data.datasets import Clip, StepSampler, VideoClips, make_loader
from everest.errors import DivergedError, UserError
from everest.optim import set_lr
from everest.plan import StagePlan
from everest.run_folder import RunFolder
from everest.settings import TrainSettings

Report = Callable[[dict[str, Any]], None]  # events for whoever shows them: {"event": "step", ...}


class Stopped(UserError):
    """A signal asked for the end; the run is saved."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number  # as a shell counts: 130 SIGINT, 143 SIGTERM


def make_accelerator(train: TrainSettings, *, cpu: bool) -> Accelerator:
    """Accelerate's process group and precision: `auto` is bf16 where the device computes it, else fp32."""
    precision = train.precision
    if precision == "auto":
        fast = (
            not cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        )
        precision = "bf16" if fast else "fp32"
    return Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=cpu)


def seed_from(*place: int) -> int:
    """A seed that follows from a place in the run, such as (seed, step, process)."""
    return int(np.random.SeedSequence(place).generate_state(1)[0])


class StopSignal:
    """Notes a SIGINT, SIGTERM or SIGUSR1, so that the step under way can end; a second one acts at once."""

    WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __enter__(self) -> StopSignal:
        self.received = 0
        self._before = {int(number): signal.signal(number, self._note) for number in self.WATCHED}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._before[number])

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Training:
    """One stage under way: the live objects, and the step they are at.

    Args:
        weights: everything of the stage's `model.safetensors` but the tensors and the step.
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
        max_bad: float,
        report: Report,
    ) -> None:
        self.accelerator = accelerator
        self.clips = clips
        self.plan = plan
        self.settings = settings
        self.run = run
        self.bad_videos = BadVideos(max_bad)
        self.report = report
        self.steps_done = 0  # updates done, over all resumes
        self._weights = weights
        self._plain_model = model
        self._ema = ModelEmaV3(model, decay=settings.ema) if settings.ema else None
        self._plain_optimizer = optimizer
        self.model, self.optimizer = accelerator.prepare(
            torch.compile(model) if settings.compile else model, optimizer
        )
        self._batches: Iterator[Clip] = iter(())
        self._pass = 0
        self._signal = StopSignal()
        self._loss = torch.zeros((), device=accelerator.device)
        self._failed: list[str] = []  # "path<tab>reason" of this process's step

    def resume(self) -> None:
        """Continue from the run's newest state, if it has one."""
        state = newest_state(self.run.state, notify=self._notice)
        if state is None:
            return
        load_tensors(self._plain_model, state.model, source=f"{self.run.state}")
        load_optimizer(self._plain_model, self._plain_optimizer, state.optimizer)
        if self._ema is not None:
            load_tensors(self._ema.module, state.ema, source=f"{self.run.state}")
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.notes["scaler"])
        self.bad_videos.restore(state.notes["videos"], self.run.bad_videos())
        self.steps_done = state.step
        if self.accelerator.is_main_process:
            self.run.rewind(state.step)
        self._notice(f"resuming after step {state.step} of {self.plan.steps}")

    @property
    def ends_epoch(self) -> bool:
        """Whether the last update was an epoch's last."""
        return self.plan.ends_epoch(self.steps_done)

    def steps(self) -> Iterator[int]:
        """The steps that remain. Between them the run is saved when due and ends when a signal asks."""
        self._batches = iter(self._loader())
        saved_at = time.monotonic()
        with self._signal:
            while self.steps_done < self.plan.steps:
                self._begin_step()
                yield self.steps_done
                if self._save_is_due(saved_at):
                    self.save()
                    saved_at = time.monotonic()
                self._stop_if_asked()

    def first_batch(self) -> Clip:
        """The first pass's clips, for a trial."""
        return next(iter(self._loader()))

    def _loader(self) -> DataLoader[Clip]:
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
        )
        return make_loader(self.clips, order, workers=self.settings.workers)

    def _begin_step(self) -> None:
        set_lr(self.optimizer, self.plan.lr(self.steps_done))
        # Drop path draws from torch's generator: seeded here, a resumed step equals the unbroken one.
        torch.manual_seed(seed_from(self.settings.seed, self.steps_done, self.accelerator.process_index))
        self._loss.zero_()
        self._began = time.monotonic()
        self._waited = 0.0

    def micro_batches(self) -> Iterator[Clip]:
        """The passes of one step, on the device. Gradients are exchanged in the last one only."""
        for number in range(self.plan.accumulation):
            asked_at = time.monotonic()
            clip = next(self._batches)
            self._waited += time.monotonic() - asked_at
            self._failed += [line for lines in clip.failed for line in lines.splitlines()]
            self._pass = number
            last = number == self.plan.accumulation - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                yield on_device(clip, self.accelerator.device)

    def rng(self) -> np.random.Generator:
        """For what pairs or perturbs the clips of the pass under way: it follows from the pass's place."""
        place = (self.settings.seed, self.steps_done, self.accelerator.process_index, self._pass)
        return np.random.default_rng(place)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one pass."""
        self._loss += loss.detach() / self.plan.accumulation
        self.accelerator.backward(loss / self.plan.accumulation)

    def update(self) -> None:
        """Change the weights by the gradients of the step, and log it.

        Raises:
            DivergedError: the loss or the gradient is not finite; the weights are left as they were.
            DataError: too many videos could not be read.
        """
        norm = self._gradient_norm()
        loss, failed = self._over_processes(self._loss, len(self._failed))
        norm = norm.item()
        if not (math.isfinite(loss) and (math.isfinite(norm) or self.accelerator.scaler is not None)):
            raise DivergedError(
                f"step {self.steps_done + 1}: the loss is {loss}, the gradient norm {norm}; lower base_lr or "
                f"set train.clip_grad; what was saved before it is in {self.run.state}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self._ema is not None:
            self._ema.update(self._plain_model)
        self.steps_done += 1
        self._log_step(loss, norm)
        self._count_videos(any_failed=failed > 0)

    def _gradient_norm(self) -> Tensor:
        if self.settings.clip_grad is not None:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad)
            assert norm is not None
            return norm
        self.accelerator.unscale_gradients(self.optimizer)
        return torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def _over_processes(self, loss: Tensor, failed: int) -> tuple[float, float]:
        """The mean loss and the sum of failed videos: the step's one exchange beside the gradients."""
        sums = torch.stack([loss, torch.tensor(failed).to(loss)])
        sums = self.accelerator.reduce(sums, reduction="sum")
        assert isinstance(sums, Tensor)
        loss_sum, failed_sum = sums.tolist()
        return loss_sum / self.plan.processes, failed_sum

    def _count_videos(self, *, any_failed: bool) -> None:
        lines = list(gather_object(self._failed)) if any_failed else []
        self._failed = []
        for text in self.bad_videos.add(asked=self.plan.videos_per_step, failed=lines):
            self._notice(text)
        if lines and self.accelerator.is_main_process:
            self.run.write_bad_videos(self.bad_videos.reasons)
        self.bad_videos.check(lines)

    def _log_step(self, loss: float, norm: float) -> None:
        seconds = time.monotonic() - self._began
        row = {
            "step": self.steps_done,
            "epoch": self.plan.epoch(self.steps_done - 1),
            "loss": loss,
            "lr": self.plan.lr(self.steps_done - 1),
            "grad_norm": norm,
            "clips_per_second": round(self.plan.batch_size / seconds, 2),
            "data_wait": round(self._waited / seconds, 4),
            "memory_bytes": peak_memory(self.accelerator.device),
        }
        self.log(row)
        self.report({"event": "step", "steps": self.plan.steps, "epochs": self.plan.epochs, **row})

    def log(self, row: dict[str, Any]) -> None:
        """A row for metrics.jsonl, once over all processes."""
        if self.accelerator.is_main_process:
            self.run.log(row)

    def _save_is_due(self, saved_at: float) -> bool:
        every_steps, every_seconds = self.settings.save_steps, self.settings.save_seconds
        by_steps = every_steps is not None and self.steps_done % every_steps == 0
        by_time = every_seconds is not None and time.monotonic() - saved_at >= every_seconds
        return self.ends_epoch or by_steps or by_time

    def _stop_if_asked(self) -> None:
        if self._signal.received and self.steps_done < self.plan.steps:
            self.save()
            name = signal.Signals(self._signal.received).name
            raise Stopped(
                self._signal.received,
                f"{name}: saved after step {self.steps_done} of {self.plan.steps}; the same command with "
                f"--output {self.run.path} goes on from there",
            )

    def save(self) -> None:
        """Write the newest weights and a state to resume from."""
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = RunState(
            step=self.steps_done,
            model=self._plain_model.state_dict(),
            ema=self._ema.module.state_dict() if self._ema is not None else {},
            optimizer=optimizer_tensors(self._plain_model, self._plain_optimizer),
            notes={"videos": self.bad_videos.counts(), "scaler": scaler.state_dict() if scaler else None},
        )
        save_state(self.run.state, state, keep=self.settings.keep_states)
        self.save_weights(self.run.weights)

    def save_weights(self, path: Path) -> None:
        """Write a self-describing `model.safetensors`; with `train.ema` the averaged weights."""
        if self.accelerator.is_main_process:
            tensors = self.trained_model.state_dict()
            replace(self._weights, tensors=tensors, step=self.steps_done).save(path)

    @property
    def trained_model(self) -> nn.Module:
        """The module that is judged and handed on: the average with `train.ema`, else the trained one."""
        return self._ema.module if self._ema is not None else self._plain_model

    def _notice(self, text: str) -> None:
        self.report({"event": "notice", "text": text})


def on_device(batch: Clip, device: torch.device) -> Clip:
    """The batch with what a model needs on `device`, without waiting for the copy."""
    names = ("frames", "label", "noise", "erase")
    return batch._replace(**{name: getattr(batch, name).to(device, non_blocking=True) for name in names})


def peak_memory(device: torch.device) -> int:
    """The most bytes held so far: on the device, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
