"""Signs that a run is not well: losses that are not finite, that jump, or that do not move."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from everest.errors import DivergedError

SKIP_LIMIT: Final = 10  # ours: updates in a row that `train.nonfinite: skip` may leave out
SCALER_LIMIT: Final = 100  # ours: the same for fp16, whose scale starts too high and halves each time
SPIKE_WINDOW: Final = 50  # ours: losses that a new one is compared with
SPIKE_DEVIATIONS: Final = 6.0  # ours


class Figures(NamedTuple):
    """What a step comes to, over all processes."""

    loss: float
    norm: float  # of the gradient
    parts: dict[str, float]  # terms of the loss, and an adversary's loss and gradient

    @property
    def named(self) -> dict[str, float]:
        """All of them, by their names in the log."""
        return {"loss": self.loss, "grad_norm": self.norm, **self.parts}

    @property
    def broken_parts(self) -> dict[str, float]:
        """Those that are not finite."""
        return {name: value for name, value in self.parts.items() if not math.isfinite(value)}

    def __str__(self) -> str:
        broken = "".join(f", {name} {value}" for name, value in self.broken_parts.items())
        return f"loss {self.loss}, gradient norm {self.norm}{broken}"


class Nonfinite:
    """What happens to an update of which a loss or a gradient is not finite (`train.nonfinite`)."""

    def __init__(self, policy: Literal["stop", "skip"], *, scaled: bool) -> None:
        self.policy = policy
        self.scaled = scaled  # fp16: an overflow of the gradient is part of finding the scale
        self.skipped = 0  # in a row
        self.overflow = False  # whether the last one that was left out is fp16's search for its scale

    def should_skip(self, figures: Figures) -> bool:
        """Whether to leave the update out.

        Raises:
            DivergedError: the policy does not allow it, or no longer.
        """
        losses_sound = math.isfinite(figures.loss) and not figures.broken_parts
        if losses_sound and math.isfinite(figures.norm):
            self.skipped = 0
            return False
        self.skipped += 1
        self.overflow = self.scaled and losses_sound
        limit = SCALER_LIMIT if self.overflow else SKIP_LIMIT
        if (self.policy == "stop" and not self.overflow) or self.skipped > limit:
            raise DivergedError(f"{figures}, {self.skipped} times in a row")
        return True


class LossWatch:
    """Notices a loss far above the finite ones before it. It only tells; nothing depends on it."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=SPIKE_WINDOW)

    def recent(self, number: int) -> list[float]:
        """Up to the last `number` finite losses, at most SPIKE_WINDOW."""
        return list(self._recent)[-number:]

    def spike(self, loss: float) -> str | None:
        """A line about `loss` if it jumped, else None."""
        told = None
        if len(self._recent) == SPIKE_WINDOW:
            mean = sum(self._recent) / SPIKE_WINDOW
            deviation = math.sqrt(sum((x - mean) ** 2 for x in self._recent) / SPIKE_WINDOW)
            if loss > mean + SPIKE_DEVIATIONS * max(deviation, 1e-3 * abs(mean)):
                told = f"the loss jumped to {loss:.4g} from {mean:.4g} on average of {SPIKE_WINDOW} steps"
        if math.isfinite(loss):  # of others Nonfinite tells; a mean with one would hide all that follow
            self._recent.append(loss)
        return told


def stays_at_chance(losses: Sequence[float], num_classes: Sequence[int]) -> str | None:
    """A line if the last losses are still those of guessing: the most frequent question upstream.

    Args:
        num_classes: of each head; the loss is their mean.
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
        "to the videos, try another base_lr, or see by --overfit-one-batch if anything can be learned"
    )
