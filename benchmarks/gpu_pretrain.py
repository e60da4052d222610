"""Pre-training by the clock on one device, from the same initial weights and views each time."""

from __future__ import annotations

import time
from concurrent.futures import Executor, Future
from itertools import count
from typing import Final, cast

import numpy as np
import torch
from gpu_clips import Choice, Crops, Frames, PretrainingViews, to_device
from gpu_rows import Row

from everest.config.settings import Recipe
from everest.engine import network
from everest.engine.plan import cosine_lr
from everest.engine.step import StepRecord, clip_gradients, set_lr, step_optimizers
from everest.models.mae import PretrainingModel
from everest.models.spec import pretrain_spec
from everest.system.accelerator import make_accelerator

LEAST: Final = 1e-6  # learning rate at the end
WARM_UP: Final = 0.05  # share of the seconds with a rising learning rate
TICKS: Final = 10_000  # of the schedule, which follows the clock
UNTIMED: Final = 8  # steps: compilation, choice of kernels
AHEAD: Final = 12  # steps whose views are chosen before they are needed
PARTS: Final = 10  # of a run: the mean loss of each is kept


class Pretraining:
    """A model with its optimizer.

    Args:
        frames: of all clips that views are drawn from.
        executor: its processes choose the views.
    """

    def __init__(self, recipe: Recipe, frames: Frames, executor: Executor) -> None:
        self._recipe, self._frames, self._executor = recipe, frames, executor
        self._accelerator = make_accelerator(
            recipe.train.precision, tf32=False, cpu=not torch.cuda.is_available()
        )
        self._device = self._accelerator.device
        torch.manual_seed(recipe.train.seed)
        self.model = cast(PretrainingModel, pretrain_spec(recipe, tokenizer=None).build().to(self._device))
        self._initial = {name: value.clone() for name, value in self.model.state_dict().items()}
        self._optimizer = network.stage_optimizer(self.model, recipe.pretrain)
        self._networks = [network.Network(module=self.model, optimizer=self._optimizer)]
        self._wrapped = network.prepare_model(self._accelerator, self.model, recipe.train)
        self._crops = Crops(frames, recipe.data.frame_size, compiled=True)

    def train(self, batch: int, base_lr: float, seconds: float) -> Row:
        """Train from the initial weights for `seconds`, after steps that are not timed.

        Returns:
            Its row: `losses` are means over tenths of the steps, `first_loss` is that of the first step.
        """
        recipe, device = self._recipe, self._device
        self.model.load_state_dict(self._initial)
        self.model.train()
        choose = PretrainingViews(recipe=recipe, sizes=self._frames.sizes, batch=batch)
        numbers = count()  # of steps, whose views are the same in each run
        waiting = [self._executor.submit(choose, next(numbers)) for _ in range(AHEAD)]
        generator = torch.Generator(device).manual_seed(recipe.train.seed)
        began = time.perf_counter()
        for _ in range(UNTIMED):
            waiting.append(self._executor.submit(choose, next(numbers)))
            self._step(waiting.pop(0), 0.0, generator).read()
        self._optimizer.state.clear()
        untimed = time.perf_counter() - began
        losses: list[float] = []
        pending: StepRecord | None = None
        began = time.perf_counter()
        while pending is None or time.perf_counter() - began < seconds:
            waiting.append(self._executor.submit(choose, next(numbers)))
            tick = int(TICKS * (time.perf_counter() - began) / seconds)
            peak, warm_up = base_lr * batch / 256, int(WARM_UP * TICKS)
            lr = cosine_lr(tick, steps=TICKS, warmup=warm_up, peak=peak, minimum=LEAST)
            computed = self._step(waiting.pop(0), lr, generator)
            if pending is not None:  # a step late, so that the device does not wait
                losses.append(pending.read()[0]["loss"])
            pending = computed
        last, *_ = pending.read()
        losses.append(last["loss"])
        seconds = time.perf_counter() - began
        for future in waiting:
            future.cancel()
        self.model.eval()
        return {
            **{"batch": batch, "base_lr": base_lr, "steps": len(losses), "clips": batch * len(losses)},
            **{"seconds": seconds, "untimed_seconds": untimed, "first_loss": losses[0]},
            "losses": [float(np.mean(part)) for part in np.array_split(losses, min(PARTS, len(losses)))],
            "last_step": last,
        }

    def _step(self, choice: Future[Choice], lr: float, generator: torch.Generator) -> StepRecord:
        views, device = choice.result(), self._device
        stage, accelerator = self._recipe.pretrain, self._accelerator
        width = self.model.noise_layout.total
        noise = torch.rand(len(views.clips), width, device=device, generator=generator)
        videos = {"videos": to_device(views.clips, device)} if stage.objective == "views" else {}
        set_lr(self._optimizer, lr)
        record = StepRecord()
        output = self._wrapped(self._crops(views), noise=noise, **videos)
        record.add(output.loss, output.metrics, passes=1)
        accelerator.backward(output.loss)
        norms = clip_gradients(accelerator, self._networks, self._recipe.train.clip_grad)
        _, finite = record.gather(accelerator, norms)
        step_optimizers(accelerator, self._networks, skipped=finite.logical_not().float())
        return record
