"""Signs that a run is not well: losses that are not finite, jump or do not change; waiting for videos."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from everest.data.views import MakeViews, PretrainViews
from everest.errors import DivergedError
from everest.system.cores import num_cores, num_trainers

SKIP_LIMIT: Final = 10  # our choice: updates in a row that `train.nonfinite: skip` may skip
SCALER_LIMIT: Final = 100  # our choice: the same for fp16, whose scale starts too high and halves each time
SPIKE_WINDOW: Final = 50  # our choice: losses that a new one is compared with
SPIKE_STDS: Final = 6.0  # our choice
NEAR_CHANCE: Final = 0.1  # our choice: of the way from chance to 100 %, below which little has been learned
NEAR_GUESSING: Final = 0.95  # our choice: a validation loss above this share of that of guessing
FEWEST_STEPS: Final = 300  # our choice: updates before a loss shows whether a model learns


class StepMetrics(NamedTuple):
    """The numbers of one step, over all processes."""

    loss: float
    norm: float  # of the model's gradient
    parts: dict[str, float]  # terms of the loss; losses and gradient norms of other networks

    @property
    def by_name(self) -> dict[str, float]:
        """All numbers under their names in metrics.jsonl."""
        return {"loss": self.loss, "grad_norm": self.norm, **self.parts}

    def __str__(self) -> str:
        parts = "".join(f", {name} {value}" for name, value in self.parts.items() if not math.isfinite(value))
        return f"loss {self.loss}, gradient norm {self.norm}{parts}"


class Nonfinite:
    """Decides about updates with a loss or a gradient that is not finite (`train.nonfinite`)."""

    def __init__(self, policy: Literal["stop", "skip"], *, scaled: bool) -> None:
        self.policy = policy
        self.scaled = scaled  # fp16: an overflow of the gradient is part of finding the scale
        self.skipped = 0  # in a row
        self.overflow = False  # whether the last skipped update was fp16's search for its scale

    def should_skip(self, metrics: StepMetrics) -> bool:
        """Whether to skip the update.

        Raises:
            DivergedError: the policy does not allow it, or no longer.
        """
        losses_finite = all(map(math.isfinite, (metrics.loss, *metrics.parts.values())))
        if losses_finite and math.isfinite(metrics.norm):
            self.skipped = 0
            return False
        self.skipped += 1
        self.overflow = self.scaled and losses_finite
        limit = SCALER_LIMIT if self.overflow else SKIP_LIMIT
        if (self.policy == "stop" and not self.overflow) or self.skipped > limit:
            raise DivergedError(f"{metrics}, {self.skipped} times in a row")
        return True


class LossWatch:
    """Notices a loss far above the finite losses before it. It only warns; nothing depends on it."""

    def __init__(self) -> None:
        self.finite: deque[float] = deque(maxlen=SPIKE_WINDOW)  # the last finite losses of this process

    def spike(self, loss: float) -> str | None:
        """A warning if `loss` jumped, else None."""
        warning = None
        if len(self.finite) == SPIKE_WINDOW:
            mean = sum(self.finite) / SPIKE_WINDOW
            std = math.sqrt(sum((x - mean) ** 2 for x in self.finite) / SPIKE_WINDOW)
            if loss > mean + SPIKE_STDS * max(std, 1e-3 * abs(mean)):
                warning = f"the loss jumped to {loss:.4g} from {mean:.4g} on average of {SPIKE_WINDOW} steps"
        if math.isfinite(loss):  # Nonfinite reports the others; a mean with one would hide all that follow
            self.finite.append(loss)
        return warning


def stays_at_chance(losses: Sequence[float], num_classes: Sequence[int]) -> str | None:
    """A warning if the last losses still equal the loss of guessing, else None.

    Args:
        num_classes: of each head; the loss is the mean over the heads.
    """
    if not losses:  # not one of them was finite
        return None
    chance = sum(map(math.log, num_classes)) / len(num_classes)
    mean = sum(losses) / len(losses)
    if abs(mean - chance) > 0.02 * chance:
        return None
    logarithms = " and ".join(f"ln({number})" for number in num_classes)
    logarithms = f"the mean of {logarithms}" if len(num_classes) > 1 else logarithms
    return (
        f"the loss is still that of guessing, {logarithms} = {chance:.2f}: check that the labels belong "
        "to the videos, try another base_lr, or see with --overfit-one-batch if anything can be learned"
    )


def is_near_chance(top1: float, chance: float) -> bool:
    """Whether an accuracy shows hardly any learning; both in percent."""
    return top1 < chance + NEAR_CHANCE * (100 - chance)


LARGE: Final = 0.3  # our choice: share of the time of the steps
SECONDS: Final = 60.0  # our choice: how long a run is watched; the first files take longer
STEPS: Final = 20  # our choice: at least


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
    if isinstance(views, PretrainViews):
        remedies.insert(0, f"raise pretrain.views_per_decode (now {views.num_views})")
    if workers < cores:
        remedies.insert(0, f"raise train.workers (now {workers}, with {cores} cores for this process)")
    return f"the first steps waited for videos for {share:.0%} of their time: {', or '.join(remedies)}"
