"""The validations of a fine-tuning run: the best weights, when to stop, and whether the model overfits."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Any, Final

from everest.config.metrics import METRICS
from everest.train.health import NEAR_CHANCE, NEAR_GUESSING, is_near_chance

Row = dict[str, Any]  # of metrics.jsonl

MEANT: Final = 5  # our choice: validations whose losses are averaged before overfitting is reported
RISEN: Final = 1.2  # our choice: a validation loss above 1.2 times the lowest is overfitting
FALLEN: Final = 0.95  # our choice: so is a training loss only if it fell below 0.95 times that at the lowest


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
        return value if self._higher else -value, -row.get("val_loss", float("inf"))

    @property
    def lowest_loss(self) -> float | None:
        """The lowest validation loss; None before the first, or if rows of an older version have none."""
        losses = self._losses_of_validations()
        return min(losses) if losses else None

    def _losses_of_validations(self) -> list[float]:
        losses = [row["val_loss"] for row in self.rows if "val_loss" in row]
        return losses if len(losses) == len(self.rows) else []

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

    def advice(self, *, chance: float | None, guessing: float, steps: int) -> str | None:
        """The advice at the end of a run of `steps` steps; None if it learned well.

        Args:
            chance: the metric of a model that has learned nothing, if that is known.
            guessing: its loss.
        """
        best = self.best_value
        if self.best is None or best is None:
            return None
        if chance is not None and self._near_chance(best, chance):
            return "That is hardly better than chance: check the labels, or try more steps"
        lowest = self.lowest_loss
        if lowest is not None and lowest > NEAR_GUESSING * guessing:
            return (
                f"The validation loss never fell clearly below that of guessing, {guessing:.2f}: the model "
                "has learned the training videos, not their labels; more videos or a pre-trained encoder help"
            )
        perfect = self._higher and self._percent and best == 100
        return (
            "It was still improving: try more steps" if self.best["step"] == steps and not perfect else None
        )

    def _near_chance(self, value: float, chance: float) -> bool:
        if self._percent:
            return is_near_chance(value, chance)
        return value > (1 - NEAR_CHANCE) * chance  # an error
