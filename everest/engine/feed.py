"""The clips of a run's passes in this process, and a warning if the first steps wait long for them."""

from __future__ import annotations

import time
from typing import Final

from everest.config.settings import TrainSettings
from everest.data.dataset import StepSampler, VideoClips
from everest.data.loader import ClipLoader, choose_workers, make_loader
from everest.data.views import MakeViews, PretrainViews
from everest.engine.context import RunContext
from everest.engine.plan import StagePlan
from everest.system.cores import num_cores, num_trainers
from everest.system.signals import StopSignal

# Our choice: how long a process waits for a batch after a stop signal, so that a step of several processes
# can end, and be saved.
SHARED_STEP_SECONDS: Final = 10.0
LARGE: Final = 0.3  # our choice: share of the time of the steps
SECONDS: Final = 60.0  # our choice: how long a run is watched; the first files take longer
STEPS: Final = 20  # our choice: at least


class Feed:
    """The clips of a run in this process.

    Args:
        signal: after it, a batch that has not arrived is not waited for any longer.
    """

    def __init__(
        self,
        context: RunContext,
        settings: TrainSettings,
        clips: VideoClips,
        plan: StagePlan,
        signal: StopSignal,
    ) -> None:
        self._context = context
        self._settings = settings
        self._clips = clips
        self._plan = plan
        self._signal = signal
        self.workers = choose_workers(clips, self.order(), settings.workers)

    def order(self, step: int = 0) -> StepSampler:
        """The samples from `step` to the last step; they follow from the seed and the step."""
        return StepSampler(
            num_samples=len(self._clips),
            batch_size=self._plan.videos_per_step,
            steps=self._plan.steps,
            samples_per_epoch=self._plan.videos_per_epoch,
            accumulation=self._plan.accumulation,
            rank=self._context.accelerator.process_index,
            world=self._plan.processes,
            seed=self._settings.seed,
            start_step=step,
            repeat_first=self._context.one_batch,
            weights=self._clips.sample_weights,
        )

    def loader(self, step: int = 0) -> ClipLoader:
        """The clips of `order`. After a signal, several processes first wait for a step that they share."""
        waits = 0.0 if self._plan.processes == 1 else SHARED_STEP_SECONDS
        return make_loader(
            self._clips,
            self.order(step),
            workers=self.workers,
            timeout=self._settings.data_timeout,
            should_stop=lambda: bool(self._signal.number) and self._signal.seconds >= waits,
        )


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
        if self._is_over:
            return None
        now = time.monotonic() if now is None else now
        if self._last is not None:
            self._steps += 1
            self._waited += waited
            self._seconds += now - self._last
        self._last = now
        if self._steps < STEPS or self._seconds < SECONDS:
            return None
        self._is_over = True
        share = self._waited / self._seconds
        return share if share > LARGE else None


def waiting_advice(share: float, *, workers: int, views: MakeViews) -> str:
    """The warning for a share of the time of the steps."""
    cores = max(1, num_cores() // num_trainers())
    remedies = ["read smaller files (`everest prepare encode`)"]
    if isinstance(views, PretrainViews) and not views.compared:
        remedies.insert(0, f"raise pretrain.views_per_decode (now {views.num_views})")
    if workers < cores:
        remedies.insert(0, f"raise train.workers (now {workers}, with {cores} cores for this process)")
    return f"the first steps waited for videos for {share:.0%} of their time: {', or '.join(remedies)}"
