"""The validations of a fine-tuning run: the best weights, when to stop, and whether the model overfits."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Any, Final

Row = dict[str, Any]  # of metrics.jsonl

RISEN: Final = 1.2  # our choice: a validation loss above 1.2 times the lowest is overfitting


class Validations:
    """The validations of a run so far, which `metrics.jsonl` has: a resumed run sees those before it, too."""

    def __init__(self, rows: Iterable[Row]) -> None:
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

        A smaller loss decides between equal accuracies, which are common with few videos.
        """
        if "val_top1" not in row:
            if isinstance(row.get("loss"), float | int):
                self._losses.append(row["loss"])
            return False
        self.rows.append(row)
        self._train_losses.append(fmean(self._losses) if self._losses else None)
        self._losses = []
        if self.best is not None and _quality(row) <= _quality(self.best):
            return False
        self.best = row
        return True

    def overfits(self) -> str | None:
        """A warning if the validation loss has risen far above its lowest while the training loss fell."""
        losses = [row["val_loss"] for row in self.rows if "val_loss" in row]
        if not losses or len(losses) < len(self.rows):  # rows of an older version have none
            return None
        lowest = losses.index(min(losses))
        before, now = self._train_losses[lowest], self._train_losses[-1]
        if before is None or now is None or now >= before or losses[-1] <= RISEN * losses[lowest]:
            return None
        return (
            f"overfitting: since step {self.rows[lowest]['step']}, the validation loss rose from "
            f"{losses[lowest]:.3g} to {losses[-1]:.3g}, and the training loss fell from {before:.3g} to "
            f"{now:.3g}. The best weights are kept; more videos, stronger augmentation or fewer steps help"
        )


def _quality(row: Row) -> tuple[float, float]:
    return row["val_top1"], -row.get("val_loss", float("inf"))
