"""Training health checks: losses that are not finite, losses at chance, overfitting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, Final, Literal, NamedTuple

from everest.config.metrics import METRICS
from everest.errors import DivergedError

SKIP_LIMIT: Final = 10  # our choice: updates in a row that `train.nonfinite: skip` may skip
SCALER_LIMIT: Final = 100  # our choice: the same for fp16, whose scale starts too high and halves each time
NEAR_CHANCE: Final = 0.1  # our choice: of the way from chance to 100 %, below which little has been learned
# Our choice: of the way from the training loss of guessing to that of a model that knows every label. After
# few steps only a loss that has hardly moved is reported, at the end also one of a model that underfits.
STILL_GUESSING: Final = 0.03
UNDERFITS: Final = 0.2
NEAR_GUESSING: Final = 0.95  # our choice: a validation loss above this share of that of guessing
FEWEST_STEPS: Final = 300  # our choice: updates before a loss shows whether a model learns
MEANT: Final = 5  # our choice: validations whose losses are averaged before overfitting is reported
# Overfitting, our choice: a validation loss above RISEN times its lowest, and a training loss below FALLEN
# times its value then.
RISEN: Final = 1.2
FALLEN: Final = 0.95
Row = dict[str, Any]  # of metrics.jsonl


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


def stays_at_chance(
    losses: Sequence[float], num_classes: Sequence[int], *, lowest: float, share: float, mixes: bool = False
) -> str | None:
    """A warning if the last losses are hardly below the loss of guessing, else None.

    The loss of equal probabilities is ln(classes) whatever the targets are, smoothed and mixed ones included.

    Args:
        num_classes: of each head; the loss is the mean over the heads.
        lowest: the loss of a model that knows every class (everest.data.augment.lowest_loss).
        share: of the way from guessing to `lowest`, below which there is a warning.
        mixes: whether mixup or cutmix is on.
    """
    if not losses:  # not one of them was finite
        return None
    chance, mean = fmean(map(math.log, num_classes)), fmean(losses)
    if mean < chance - share * (chance - lowest):
        return None
    logarithms = " and ".join(f"ln({number})" for number in num_classes)
    logarithms = f"the mean of {logarithms}" if len(num_classes) > 1 else logarithms
    fewer = "lower finetune.mixup and finetune.cutmix, " if mixes else ""
    return (
        f"the loss, {mean:.2f}, is still near that of guessing, {logarithms} = {chance:.2f}; a model that "
        f"knows every label would reach {lowest:.2f}. Check that the labels belong to the videos; try "
        f"{fewer}more steps or a higher base_lr; --overfit-one-batch shows whether anything can be learned"
    )


def is_near_chance(top1: float, chance: float) -> bool:
    """Whether an accuracy shows hardly any learning; both in percent."""
    return top1 < chance + NEAR_CHANCE * (100 - chance)


class Validations:
    """The validations of a run so far, which `metrics.jsonl` has: a resumed run sees those before it, too.

    Args:
        rows: of metrics.jsonl.
        metric: by which validations are compared, of everest.config.metrics.METRICS.
    """

    def __init__(self, rows: Iterable[Row], metric: str) -> None:
        self.metric = metric  # `val_METRIC` of a row decides
        self._higher, self._percent = METRICS[metric].higher, METRICS[metric].percent
        self.rows: list[Row] = []
        self._losses: list[float] = []  # of training, since the last validation
        self._train_losses: list[float | None] = []  # the mean of those before each validation
        self.best: Row | None = None
        for row in rows:
            self.add(row)

    @property
    def steps(self) -> set[int]:
        """The steps after which the run was validated."""
        return {row["step"] for row in self.rows}

    @property
    def since_best(self) -> int:
        """The number of validations after the best one."""
        return len(self.rows) - 1 - self.rows.index(self.best) if self.best else 0

    @property
    def train_loss(self) -> float | None:
        """The mean training loss between the last two validations; None if no loss was finite."""
        return self._train_losses[-1] if self._train_losses else None

    def add(self, row: Row) -> bool:
        """Add a row of metrics.jsonl; returns whether it is a validation better than all before.

        A smaller loss decides between equal values, which are common with few videos.
        """
        if f"val_{self.metric}" not in row:
            if isinstance(row.get("loss"), float | int):
                self._losses.append(row["loss"])
            return False
        self.rows.append(row)
        self._train_losses.append(fmean(self._losses) if self._losses else None)
        self._losses = []
        if self.best is not None and self._quality(row) <= self._quality(self.best):
            return False
        self.best = row
        return True

    @property
    def best_value(self) -> float | None:
        """The best value of the metric."""
        return None if self.best is None else self.best[f"val_{self.metric}"]

    def _quality(self, row: Row) -> tuple[float, float]:
        value = row[f"val_{self.metric}"]
        return value if self._higher else -value, -row["val_loss"]

    def _losses_of_validations(self) -> list[float]:
        return [row["val_loss"] for row in self.rows]

    def overfits(self) -> str | None:
        """A warning if the validation loss stays far above its lowest while the training loss falls.

        Both are means of the last validations: the loss of few videos jumps from one to the next.
        """
        losses = self._losses_of_validations()
        if not losses:
            return None
        lowest = losses.index(min(losses))
        trained = [loss for loss in self._train_losses[-MEANT:] if loss is not None]
        before = self._train_losses[lowest]
        if before is None or len(losses) - 1 - lowest < MEANT or len(trained) < MEANT:
            return None
        risen, fallen = fmean(losses[-MEANT:]), fmean(trained)
        if fallen >= FALLEN * before or risen <= RISEN * losses[lowest]:
            return None
        return (
            f"overfitting: since step {self.rows[lowest]['step']}, the validation loss rose from "
            f"{losses[lowest]:.3g} to {risen:.3g}, and the training loss fell from {before:.3g} to "
            f"{fallen:.3g} (means of the last {MEANT} validations). The best weights are kept; more videos, "
            "stronger augmentation or fewer steps help"
        )

    def advice(self, *, chance: float | None, guessing: float) -> str | None:
        """The advice at the end of a run that has learned hardly anything; None for any other run.

        Args:
            chance: the metric of a model that has learned nothing, if that is known.
            guessing: its loss.
        """
        best = self.best_value
        if self.best is None or best is None:
            return None
        if chance is not None:
            error_near_chance = best > (1 - NEAR_CHANCE) * chance
            if is_near_chance(best, chance) if self._percent else error_near_chance:
                return "That is hardly better than chance: check the labels, or try more steps"
        losses = self._losses_of_validations()
        if losses and min(losses) > NEAR_GUESSING * guessing:
            return (
                f"The validation loss never fell clearly below that of guessing, {guessing:.2f}: the model "
                "has learned the training videos, not their labels; more videos or a pre-trained encoder help"
            )
        return None
