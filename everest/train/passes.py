"""The passes of a run's steps: the clips of this process, and their random choices.

All of them follow from the seed, the step and the pass, so that a resumed run is identical.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from torch import nn

from everest.config.settings import TrainSettings
from everest.data.dataset import StepSampler, VideoClips
from everest.data.loader import ClipLoader, choose_workers, make_loader
from everest.data.randomness import Purpose, generator_at, seed_at
from everest.data.views import MakeViews, PretrainViews
from everest.models.block import drop_noise, drop_paths
from everest.system.cores import num_cores, num_trainers
from everest.system.signals import StopSignal
from everest.train.context import RunContext
from everest.train.plan import StagePlan

# Our choice: how long a process waits for a batch after a stop signal, so that a step of several processes
# can end, and be saved.
SHARED_STEP_SECONDS: Final = 10.0
LARGE: Final = 0.3  # our choice: share of the time of the steps
SECONDS: Final = 60.0  # our choice: how long a run is watched; the first files take longer
STEPS: Final = 20  # our choice: at least


class Passes:
    """The passes of a run in this process.

    Args:
        model: the network whose paths are dropped.
        signal: after it, a batch that does not come is not awaited any longer.
    """

    def __init__(
        self,
        context: RunContext,
        settings: TrainSettings,
        clips: VideoClips,
        plan: StagePlan,
        model: nn.Module,
        signal: StopSignal,
    ) -> None:
        self._rank = context.accelerator.process_index
        self._device = context.accelerator.device
        self._one_batch = context.one_batch
        self._settings = settings
        self._clips = clips
        self._plan = plan
        self._signal = signal
        self._drop_paths = drop_paths(model)
        self._waits = WaitWatch()
        self._number = 0  # of the current pass in its step
        self.workers = choose_workers(clips, self.order(), settings.workers)

    def order(self, step: int = 0) -> StepSampler:
        """The samples from `step` to the last."""
        return StepSampler(
            num_samples=len(self._clips),
            batch_size=self._plan.videos_per_step,
            steps=self._plan.steps,
            samples_per_epoch=self._plan.videos_per_epoch,
            accumulation=self._plan.accumulation,
            rank=self._rank,
            world=self._plan.processes,
            seed=self._settings.seed,
            start_step=step,
            repeat_first=self._one_batch,
            weights=self._clips.sample_weights,
        )

    def loader(self, step: int = 0) -> ClipLoader:
        """The clips of `order`. After a signal, processes first wait for a step that they share."""
        waits = 0.0 if self._plan.processes == 1 else SHARED_STEP_SECONDS
        return make_loader(
            self._clips,
            self.order(step),
            workers=self.workers,
            timeout=self._settings.data_timeout,
            should_stop=lambda: bool(self._signal.number) and self._signal.seconds >= waits,
        )

    def advice(self, waited: float) -> str | None:
        """Once, when enough steps were watched: a warning if they waited long (seconds) for their clips."""
        share = self._waits.add(waited)
        if share is None:
            return None
        return waiting_advice(share, workers=self.workers, views=self._clips.make_views)

    @contextmanager
    def seeded(self, step: int, number: int) -> Iterator[None]:
        """Around pass `number` of a step: seeds dropout, and draws the paths that are dropped."""
        self._number = number
        # Dropout uses torch's global generator.
        torch.manual_seed(seed_at(self._settings.seed, Purpose.STEP, step, self._rank, number))
        generator = torch.Generator(self._device)
        generator.manual_seed(seed_at(self._settings.seed, Purpose.DROP_PATH, step))
        plan, paths = self._plan, self._drop_paths
        # Of the whole step, (P, batch): the same on any number of processes.
        noise = torch.rand(len(paths), plan.batch_size, device=self._device, generator=generator)
        first = (self._rank * plan.accumulation + number) * plan.micro_batch
        with drop_noise(paths, noise[:, first : first + plan.micro_batch]):
            yield

    def rng(self, step: int) -> np.random.Generator:
        """A generator to pair or perturb the clips of the current pass."""
        return generator_at(self._settings.seed, Purpose.BATCH, step, self._rank, self._number)


class WaitWatch:
    """Adds up how long the first steps wait, without the very first one, which starts the workers."""

    def __init__(self) -> None:
        self._steps = 0
        self._waited = 0.0
        self._seconds = 0.0
        self._last: float | None = None
        self._is_over = False

    def add(self, waited: float, *, now: float | None = None) -> float | None:
        """Add a step.

        Args:
            waited: seconds that the step waited for its clips.
        Returns:
            Once, when enough steps were watched: the share of their time, if it is large.
        """
        now = time.monotonic() if now is None else now
        if self._last is not None and not self._is_over:
            self._steps += 1
            self._waited += waited
            self._seconds += now - self._last
        self._last = now
        if self._is_over or self._steps < STEPS or self._seconds < SECONDS:
            return None
        self._is_over = True
        share = self._waited / self._seconds
        return share if share > LARGE else None


def waiting_advice(share: float, *, workers: int, views: MakeViews) -> str:
    """Returns the warning for a share of the time of the steps."""
    cores = max(1, num_cores() // num_trainers())
    remedies = ["read smaller files (`everest prepare encode`)"]
    if isinstance(views, PretrainViews) and not views.compared:
        remedies.insert(0, f"raise pretrain.views_per_decode (now {views.num_views})")
    if workers < cores:
        remedies.insert(0, f"raise train.workers (now {workers}, with {cores} cores for this process)")
    return f"the first steps waited for videos for {share:.0%} of their time: {', or '.join(remedies)}"
