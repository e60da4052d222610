"""Totals over windows of which a few were checked: prediction-powered estimates with score intervals.

The mean over the windows that nobody watched is the mean of λ times the model's amount, plus the mean error
(label less λ times prediction) of the checked windows: prediction-powered inference with power tuning
(Angelopoulos et al. 2023, arXiv 2311.01453), the regression estimator of survey sampling (Särndal et al.
1992, chapter 6). λ = 0 is watching alone.

A few windows have too few errors for a t interval. So the interval is a score interval (Wilson 1927): an
amount of a window varies as a fraction does, θ (1 - θ), or as a count does, θ, times a design effect. Checked
windows show how much smaller the variance is, because windows are partly filled and the model explains a
part; two windows' worth of prior hold it at 1. A class that nobody saw thus has about the exact upper bound.

Windows are sampled at random in each cell, or in all of them, without replacement. All amounts are means per
window. N checked windows, C cells (strata of a draw, or groups of recordings).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from everest.metrics.intervals import TAIL_FRACTION
from everest.system.types import Floats

PRIOR_WINDOWS: Final = 2.0  # heuristic: so many windows say that neither model nor partly filled windows help

ROUNDING: Final = 1e-9  # of a variance, relative to a fraction of 1


class Estimate(NamedTuple):
    """The mean amount of the windows that nobody watched."""

    mean: float
    spread: float  # the squared quantile of t, times the variance of the mean relative to that of one window
    is_fraction: bool  # a fraction of a window; else a count
    own: float = 1.0  # weight of a cell's own error rate; the rest is that of all cells

    def total(self, seen: float, left: float, least: float = 0.0) -> list[float]:
        """The total of an amount, and its 95 % score interval.

        Args:
            seen: the amount in the checked windows. What nobody saw may be absent everywhere.
            left: the seconds (of a fraction) or the number of the windows that are not checked.
            least: the least possible total.
        """
        square, largest = (1, 1.0) if self.is_fraction else (0, math.inf)
        mean = min(max(self.mean, 0.0), largest)
        center = (mean + self.spread / 2) / (1 + self.spread * square)
        variance = self.spread * mean * (1 - mean * square) + self.spread**2 / 4
        half = math.sqrt(variance) / (1 + self.spread * square)
        means = mean, max(center - half, 0.0) if seen else 0.0, center + half
        return [round(float(max(seen + left * each, least)), 3) for each in means]


@dataclass(frozen=True, eq=False, kw_only=True)
class CheckedAmounts:
    """The amounts of a class in checked windows, with the model's amounts everywhere."""

    labeled: Floats  # (N,) amounts of a person: fractions of a window, or counts
    predicted: Floats  # (N,) amounts of a model
    cells: NDArray[np.int64]  # (N,) cell of each checked window
    windows: NDArray[np.int64]  # (C,) number of all windows of a cell
    predicted_left: Floats  # (C,) mean amount of the model in the windows that are not checked
    is_fraction: bool  # amounts are at most 1

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(C,) the number of checked windows."""
        return np.bincount(self.cells, minlength=len(self.windows))

    @property
    def left(self) -> NDArray[np.int64]:
        """(C,) the number of windows that are not checked."""
        return self.windows - self.counts

    def cell_means(self, values: Floats) -> Floats:
        """(C,) the means of (N,) values; 0 in a cell without a checked window."""
        return np.bincount(self.cells, values, len(self.windows)) / np.maximum(self.counts, 1)

    def centered(self, values: Floats) -> Floats:
        """The (N,) values less the means of their cells."""
        return values - self.cell_means(values)[self.cells]

    @property
    def degrees(self) -> int:
        """Degrees of freedom of a variance within cells."""
        return len(self.labeled) - int(np.count_nonzero(self.counts))

    def tune(self) -> float:
        """The weight λ of the model, from 0 to 1, that makes the errors vary least."""
        predicted = self.centered(self.predicted)
        if self.degrees < 2 or not predicted.any():
            return 0.0
        return float(np.clip(predicted @ self.centered(self.labeled) / (predicted @ predicted), 0.0, 1.0))

    def estimate_all(self, weight: float) -> Estimate:
        """Estimate the mean over all cells; each cell with windows left needs two checked windows."""
        errors = self.labeled - weight * self.predicted
        fractions = self.left / max(self.left.sum(), 1)
        mean = fractions @ (weight * self.predicted_left + self.cell_means(errors))
        # (C,) variance of the error of the mean: of the checked windows, and of those left.
        parts = fractions**2 / np.maximum(self.counts, 1) + fractions / max(self.left.sum(), 1)
        squares = np.bincount(self.cells, self.centered(errors) ** 2, len(self.windows))
        variances = squares / np.maximum(self.counts - 1, 1) * self._cost(weight)
        variance = float(parts @ variances) / max(float(parts.sum()), ROUNDING)
        effect = self._design_effect(variance)
        return Estimate(float(mean), self.quantile(weight) * effect * float(parts.sum()), self.is_fraction)

    def estimate_cells(self, weight: float) -> list[Estimate]:
        """Estimate the mean of each cell, with error rates pooled over the cells.

        The mean error of a cell is drawn to that of all checked windows (`pool`). Cells may have no checked
        window.
        """
        errors = self.labeled - weight * self.predicted
        effect, ratio = self.variation(weight)
        own, parts = pool(self.counts, self.left, ratio)
        means = own * self.cell_means(errors) + (1 - own) * errors.mean()
        values = (weight * self.predicted_left + means).tolist()
        spreads = (self.quantile(weight) * effect * parts).tolist()
        cells = zip(values, spreads, own.tolist(), strict=True)
        return [Estimate(value, spread, self.is_fraction, own_weight) for value, spread, own_weight in cells]

    def variation(self, weight: float) -> tuple[float, float]:
        """The design effect of the errors within cells, and their variance between cells relative to it.

        The variance between cells is that of DerSimonian and Laird (1986).
        """
        errors, counts = self.labeled - weight * self.predicted, self.counts
        variance = float((self.centered(errors) ** 2).sum()) / max(self.degrees, 1) * self._cost(weight)
        ratio = 0.0
        if self.degrees and (num_used := np.count_nonzero(counts)) > 1:
            squares = float(counts @ (self.cell_means(errors) - errors.mean()) ** 2)
            between = squares / max(variance, ROUNDING) - (num_used - 1)
            ratio = max(float(between) / (len(errors) - float(counts @ counts) / len(errors)), 0.0)
        return self._design_effect(variance), ratio

    def quantile(self, weight: float) -> float:
        """The squared quantile of t for an interval; a fitted λ costs a degree of freedom."""
        return squared_quantile(self.degrees - (weight > 0))

    def _design_effect(self, variance: float) -> float:
        """The variance of the error of a window, relative to that of a fraction or a count with this mean."""
        typical = (self.labeled.sum() + 1) / (len(self.labeled) + 2)  # above 0 for a class that nobody saw
        typical *= max(1 - typical, TAIL_FRACTION) if self.is_fraction else 1.0
        informative = np.count_nonzero(self.labeled > 0)
        if self.is_fraction:
            informative = min(informative, np.count_nonzero(self.labeled < 1))
        effect = (informative * variance / typical + PRIOR_WINDOWS) / (informative + PRIOR_WINDOWS)
        return float(min(effect, 1.0) if self.is_fraction else effect)

    def _cost(self, weight: float) -> float:
        """The factor of a variance whose errors were made small by a fitted λ."""
        return self.degrees / max(self.degrees - 1, 1) if weight else 1.0


def squared_quantile(degrees: int) -> float:
    """The squared quantile of t for a 95 % interval."""
    return float(t.ppf(1 - TAIL_FRACTION, max(degrees, 1))) ** 2


def pool(counts: NDArray[np.int64], left: NDArray[np.int64], ratio: float) -> tuple[Floats, Floats]:
    """Pool the mean errors of cells: the best linear predictor of random effects.

    Args:
        counts, left: (C,) windows of each cell that are checked, and that are not.
        ratio: variance between cells, relative to the variance of a window within cells.
    Returns:
        (C,) the weight of a cell's own mean, the larger the more windows it has and the more cells differ;
        and (C,) the variance of the error of its pooled mean, relative to that of a window.
    """
    own = counts * ratio / (counts * ratio + 1)
    of_mean = float((counts / counts.sum()) ** 2 @ (ratio + 1 / np.maximum(counts, 1)))
    return own, ratio * (1 - own) + (1 - own) ** 2 * of_mean + 1 / np.maximum(left, 1)
