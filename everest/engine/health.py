"""The validations of a run: the best one, and overfitting. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Final

from everest.metrics.names import METRICS
from everest.system.run_folder import Row

# All numbers are our choice.
MEANT: Final = 5  # validations whose losses are averaged before overfitting is reported
RISEN: Final = 1.2  # overfitting: a validation loss above this times its lowest,
FALLEN: Final = 0.95  # and a training loss below this times its value then


class Validations:
    """The validations of a run so far, which `metrics.jsonl` has: a resumed run sees those before it, too.

    Args:
        rows: of metrics.jsonl.
        metric: by which validations are compared, of everest.metrics.names.METRICS.
    """

    def __init__(self, rows: Iterable[Row], metric: str) -> None:
        self.metric = metric
        self.rows: list[Row] = []
        self.best: Row | None = None
        self._losses: list[float] = []  # of training, since the last validation
        self._train_losses: list[float | None] = []  # the mean of those before each validation
        for row in rows:
            self.add(row)

    @property
    def since_best(self) -> int:
        """The number of validations after the best one."""
        return len(self.rows) - 1 - self.rows.index(self.best) if self.best else 0

    @property
    def train_loss(self) -> float | None:
        """The mean training loss between the last two validations; None if no loss was finite."""
        return self._train_losses[-1] if self._train_losses else None

    @property
    def best_value(self) -> float | None:
        """The best value of the metric."""
        return None if self.best is None else self.best[f"val_{self.metric}"]

    def add(self, row: Row) -> bool:
        """Add a row of metrics.jsonl; returns whether it is a validation better than all before.

        A smaller loss decides between equal values, which are common with few videos.
        """

        def quality(row: Row) -> tuple[float, float]:
            value = row[f"val_{self.metric}"]
            return value if METRICS[self.metric].higher else -value, -row["val_loss"]

        if f"val_{self.metric}" not in row:
            if isinstance(row.get("loss"), float | int):
                self._losses.append(row["loss"])
            return False
        self.rows.append(row)
        self._train_losses.append(fmean(self._losses) if self._losses else None)
        self._losses = []
        is_best = self.best is None or quality(row) > quality(self.best)
        if is_best:
            self.best = row
        return is_best

    def overfitting_warning(self) -> str | None:
        """A warning if the validation loss stays far above its lowest while the training loss falls.

        Both are means of the last validations: the loss of few videos jumps from one to the next.
        """
        losses = [row["val_loss"] for row in self.rows]
        lowest = losses.index(min(losses)) if losses else 0
        trained = [loss for loss in self._train_losses[-MEANT:] if loss is not None]
        if len(losses) - 1 - lowest < MEANT or len(trained) < MEANT:
            return None
        train_loss = self._train_losses[lowest]
        risen, fallen = fmean(losses[-MEANT:]), fmean(trained)
        if train_loss is None or fallen >= FALLEN * train_loss or risen <= RISEN * losses[lowest]:
            return None
        return (
            f"overfitting: since step {self.rows[lowest]['step']}, the validation loss rose from "
            f"{losses[lowest]:.3g} to {risen:.3g}, and the training loss fell from {train_loss:.3g} to "
            f"{fallen:.3g}. The best weights are kept; more videos, augmentation or fewer steps help"
        )
