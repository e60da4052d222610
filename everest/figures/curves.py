"""`everest plot`: losses, validations and learning rates of runs by steps, hours or computation.

S runs of a line (the seeds of a variant), R rows of metrics.jsonl.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from everest.engine.listing import hours_of_steps, metric_of_run, read_run
from everest.errors import RecipeError
from everest.figures.style import COLORS, DASHES, escape_dollars, saved_figure, shorten
from everest.metrics.names import METRICS
from everest.models.clip_spec import ModelSpec
from everest.models.cost import count_macs
from everest.models.spec import read_model_spec
from everest.system.run_folder import METRICS_FILE, RESTORE_FIX, WEIGHTS_FILE, Row, RunEnvironment
from everest.system.text import damage_errors
from everest.system.weights_header import read_header

Axis = Literal["steps", "hours", "gmacs"]
AXIS_LABELS: Final[dict[Axis, str]] = {
    "steps": "steps (updates of the weights)",
    "hours": "hours of training steps",
    "gmacs": "GMACs of forward passes, without a frozen teacher (the papers' GFLOPs)",
}
SMOOTHING_DIVISOR: Final = 50  # heuristic: the mean covers a 50th of a run's steps on either side
SPIKE_QUANTILE: Final = 0.9  # heuristic: quantile of the losses that sets the scale if the largest is a spike
LOSSES: Final = ("loss", "val_loss")  # share a panel
LOGGED_EACH_STEP: Final = ("loss", "view_top1")  # drawn as running means


class Curve(NamedTuple):
    """A value of the runs of a line, at the steps that any of them has."""

    x: NDArray[np.float64]  # (R,) the mean over the runs that have the step
    y: NDArray[np.float64]  # (S, R); NaN: the run lacks the step, or its value is not finite


@dataclass(frozen=True, kw_only=True)
class RunCurves:
    """The curves of a run, or of all seeds of a variant."""

    name: str
    curves: Mapping[str, Curve]  # by name in metrics.jsonl; only curves with values
    metric: str | None = None  # selects the best weights (everest.metrics.names); None: the loss
    # Percent of videos that a guess gets right; None before weights are saved, or for other metrics.
    chance: float | None = None
    is_pretraining: bool = False

    def shown(self, key: str) -> NDArray[np.float64]:
        """The values (S, R) of a curve as they are sampled."""
        values = self.curves[key].y
        return running_means(values) if key in LOGGED_EACH_STEP else values


class _Run(NamedTuple):
    points: dict[str, dict[int, tuple[float, float]]]  # x and value by step, of each curve
    metric: str | None
    chance: float | None
    is_pretraining: bool


def name_runs(runs: Sequence[Path]) -> list[tuple[str, Path]]:
    """Name each run, once, by its folder, or by its path if folders have equal names."""
    distinct = list({run.resolve(): run for run in runs}.values())
    names = [run.resolve().name for run in distinct]
    return list(zip(names if len(set(names)) == len(names) else map(str, distinct), distinct, strict=True))


def read_curves(runs: Sequence[tuple[str, Path]], *, x: Axis) -> list[RunCurves]:
    """Read the curves of runs with their names; runs of one name share a line."""
    by_name: dict[str, list[_Run]] = {}
    for name, run in runs:
        with damage_errors(run, fix=RESTORE_FIX):
            by_name.setdefault(name, []).append(_read_run(run, x))
    return [
        RunCurves(
            name=name,
            curves=_join(seeds),
            metric=next((seed.metric for seed in seeds if seed.metric), None),
            chance=next((seed.chance for seed in seeds if seed.chance), None),
            is_pretraining=seeds[0].is_pretraining,
        )
        for name, seeds in by_name.items()
    ]


def _read_run(run: Path, x: Axis) -> _Run:
    environment, rows = read_run(run)
    steps = [row for row in rows if "loss" in row]
    if not steps:
        raise RecipeError(f"{run}: no step in {METRICS_FILE} yet; there is nothing to draw")
    positions = _make_x_values(run, environment, steps, x)
    x_of_step = {row["step"]: position for row, position in zip(steps, positions, strict=True)}
    known = [row for row in rows if row["step"] in x_of_step]
    metric = metric_of_run(run, known)
    spec = _read_transformer_spec(run) if metric in ("top1", "mean_class_accuracy") else None
    return _Run(
        points={
            key: {
                row["step"]: (x_of_step[row["step"]], math.nan if row[key] is None else float(row[key]))
                for row in known
                if key in row
            }
            for key in ("loss", "lr", "view_top1", "val_loss", f"val_{metric}")
        },
        metric=None if metric == "loss" else metric,
        chance=100 / math.prod(head.outputs for head in spec.heads) if spec and spec.heads else None,
        is_pretraining=environment.stage == "pretrain",
    )


def _join(seeds: Sequence[_Run]) -> dict[str, Curve]:
    """The curves with values of the runs of a line."""
    curves = {}
    for key in dict.fromkeys(key for seed in seeds for key in seed.points):
        points = [seed.points.get(key, {}) for seed in seeds]
        steps = sorted(set().union(*points))
        xy = np.array([[each.get(step, (math.nan, math.nan)) for step in steps] for each in points])
        if np.isfinite(xy[..., 1:]).any():  # (S, R, 2)
            mean = np.nanmean(xy[..., 0], axis=0)  # of hours, it falls where the slowest run ends
            curves[key] = Curve(np.maximum.accumulate(mean), xy[..., 1])
    return curves


def _make_x_values(run: Path, environment: RunEnvironment, rows: Sequence[Row], x: Axis) -> list[float]:
    """Return the position of each step's row on the x axis."""
    if x == "steps":
        return [row["step"] for row in rows]
    batch_size = environment.plan.batch_size
    if x == "hours":
        return hours_of_steps(rows, batch_size)
    spec = _read_transformer_spec(run)
    if spec is None:
        raise RecipeError(
            f"{run}: no transformer in {WEIGHTS_FILE} yet, which --x gmacs needs; draw by steps or hours"
        )
    gmacs_of_step = batch_size * count_macs(spec).total / 1e9
    return [row["step"] * gmacs_of_step for row in rows]


def _read_transformer_spec(run: Path) -> ModelSpec | None:
    """Return the transformer of a run; None before its weights are saved, and for a tokenizer."""
    weights = run / WEIGHTS_FILE
    header = read_header(weights) if weights.is_file() else None
    if header is None or header.kind == "tokenizer":
        return None
    return read_model_spec(header.settings, source=weights)


def running_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the running means (S, R) of the finite values, each over a 50th of the values on either side.

    The window is symmetric and shrinks at both ends: early losses fall so fast that a wider window would
    hide it.
    """
    index = np.arange(values.shape[1])
    reach = np.minimum(len(index) // SMOOTHING_DIVISOR, np.minimum(index, index[::-1]))  # (R,)
    finite = np.isfinite(values)
    sums, counts = (
        np.pad(np.cumsum(summed, axis=1), ((0, 0), (1, 0)))  # (S, R + 1)
        for summed in (np.where(finite, values, 0.0), finite)
    )
    first, last = index - reach, index + reach + 1
    with np.errstate(invalid="ignore"):  # 0 / 0, a gap, if no value nearby is finite
        return (sums[:, last] - sums[:, first]) / (counts[:, last] - counts[:, first])


def draw_curves(path: Path, runs: Sequence[RunCurves], *, x: Axis) -> Figure:
    """Draw a figure with a panel of the losses, one of the learning rate, and one of each further value.

    A line is a run, or the mean over the seeds of a variant in a band from their lowest to their highest
    value.
    """
    metrics = [f"val_{run.metric}" for run in runs if run.metric is not None]
    further = dict.fromkeys([*metrics, "view_top1"])
    names = ["loss", *(key for key in further if any(key in run.curves for run in runs)), "lr"]
    styles = [
        {"color": color, "linestyle": dashes, "linewidth": 2}
        for (dashes, color), _ in zip(cycle(product(DASHES, COLORS)), runs, strict=False)
    ]
    heights = [2.0, *[1.0] * (len(names) - 1)]
    with saved_figure(path, (12, 8), points=13) as figure:
        panels = figure.subplots(len(names), sharex=True, height_ratios=heights)
        for panel, name in zip(panels, names, strict=True):
            panel.grid(alpha=0.3)
            panel.margins(x=0.01)
            for run, style in zip(runs, styles, strict=True):
                _draw_run(panel, run, name, style)
            _scale_panel(panel, name, runs)
        panels[-1].set_xlabel(AXIS_LABELS[x])
        labels = [escape_dollars(shorten(run.name)) for run in runs]
        columns = max(1, 150 // (max(map(len, labels)) + 8))  # letters in a row; 8 for the line before a name
        lines = [Line2D([], [], **style) for style in styles]
        figure.legend(lines, labels, loc="outside upper center", ncols=columns, frameon=False)
    return figure


def _draw_run(panel: Axes, run: RunCurves, name: str, style: Mapping[str, Any]) -> None:
    """Draw a value of a run; a single run's values of each step are faint behind their running means."""
    for key in [key for key in (LOSSES if name == "loss" else (name,)) if key in run.curves]:
        curve, values = run.curves[key], np.ma.masked_invalid(run.shown(key))
        if len(values) > 1:
            ends = values.min(axis=0), values.max(axis=0)
            panel.fill_between(curve.x, *ends, color=style["color"], alpha=0.2, linewidth=0)
        elif key in LOGGED_EACH_STEP:
            panel.plot(curve.x, curve.y[0], color=style["color"], linewidth=1, alpha=0.25)
        is_validation = key == "val_loss"
        marker = "o" if is_validation or (name not in ("loss", "lr") and len(curve.x) <= 30) else ""
        width = 1 if is_validation else style["linewidth"]
        is_partial = np.ma.getmaskarray(values).any(axis=0)  # some seed has ended: only the band goes on
        mean = np.ma.array(values.mean(axis=0), mask=is_partial)
        panel.plot(curve.x, mean, marker=marker, **{**style, "linewidth": width})


def _scale_panel(panel: Axes, name: str, runs: Sequence[RunCurves]) -> None:
    """Set the title and the limits of a panel: accuracies from 0 to 100 %, with chance."""
    metric = METRICS.get(name.removeprefix("val_")) if name.startswith("val_") else None
    title = name if metric is None else metric.title
    if name == "loss":
        title = "loss: training, as the mean of nearby steps"
        title += ", and validation (thin, circles)" if any("val_loss" in run.curves for run in runs) else ""
        if any(len(curve.y) > 1 for run in runs for curve in run.curves.values()):
            title += "; bands: all seeds"
        if len(runs) > 1 and any(run.is_pretraining for run in runs):
            title += "\nlosses of pre-training compare only where the same tokens are predicted"
        panel.set_ylim(*_limit_losses(runs))
    elif metric is None:
        panel.set_ylim(bottom=0)
    elif metric.is_percent:
        chances = {run.chance for run in runs if f"val_{run.metric}" == name}
        levels = sorted(chance for chance in chances if chance is not None)
        for level in levels:
            panel.axhline(level, color="black", linestyle=":", linewidth=1.5)
        title += " on the validation videos (%)"
        title += f"; dotted: chance, {', '.join(f'{level:.3g} %' for level in levels)}" if levels else ""
        panel.set_ylim(0, 100)
    panel.set_title(title, fontsize="small", loc="left")


def _limit_losses(runs: Sequence[RunCurves]) -> tuple[float, float]:
    """From the lowest loss to the highest that is not a spike, with a margin."""
    shown = [run.shown(key) for run, key in product(runs, LOSSES) if key in run.curves]
    finite = [values[np.isfinite(values)] for values in shown]
    if not finite:
        return 0.0, 1.0
    low = min(values.min() for values in finite)
    usual = ((values.max(), np.quantile(values, SPIKE_QUANTILE)) for values in finite)
    high = max(min(highest, level + abs(level)) for highest, level in usual)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin
