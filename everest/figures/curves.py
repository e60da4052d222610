"""`everest plot`: losses, validations and learning rates of runs by steps, hours or computation.

R rows of metrics.jsonl.
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

AxisName = Literal["steps", "hours", "gflops"]
AXIS_LABELS: Final[dict[AxisName, str]] = {
    "steps": "steps (updates of the weights)",
    "hours": "hours of training steps",
    "gflops": "GMACs of forward passes, without a frozen teacher (the papers' GFLOPs)",
}
SMOOTHING_DIVISOR: Final = 50  # heuristic: the mean covers a 50th of a run's steps on either side
SPIKE_QUANTILE: Final = 0.9  # heuristic: quantile of the losses that sets the scale if the largest is a spike
TITLE_STYLE: Any = {"fontsize": "small", "loc": "left"}  # style of the title of a panel
# The names of losses in metrics.jsonl, with their markers and their names in the legend.
LOSSES: Final = {
    "loss": ("", "training, mean of nearby steps"),
    "val_loss": ("o", "validation"),
}
LOGGED_EACH_STEP: Final = ("loss", "view_top1")


class Curve(NamedTuple):
    """Points in the order of logging, float64; NaN is a gap in the line."""

    x: NDArray[np.float64]  # (R,)
    y: NDArray[np.float64]  # (R,)


@dataclass(frozen=True, kw_only=True)
class RunCurves:
    """The curves of one run."""

    name: str
    curves: Mapping[str, Curve]  # by name in metrics.jsonl; only curves with values
    metric: str | None = None  # selects the best weights (everest.metrics.names); None: the loss
    # Percent of videos that a guess gets right; None before weights are saved, or for other metrics.
    chance: float | None = None


def read_curves(runs: Sequence[Path], *, x: AxisName) -> list[RunCurves]:
    """Read the curves of several runs, each run once, named by their folders."""
    distinct_runs = list({run.resolve(): run for run in runs}.values())
    names = [run.resolve().name for run in distinct_runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in distinct_runs]
    curves = []
    for run, name in zip(distinct_runs, names, strict=True):
        with damage_errors(run, fix=RESTORE_FIX):
            curves.append(_read_run(run, name, x))
    return curves


def _read_run(run: Path, name: str, x: AxisName) -> RunCurves:
    environment, rows = read_run(run)
    steps = [row for row in rows if "loss" in row]
    if not steps:
        raise RecipeError(f"{run}: no step in {METRICS_FILE} yet; there is nothing to draw")
    positions = _make_x_values(run, environment, steps, x)
    x_of_step = {row["step"]: position for row, position in zip(steps, positions, strict=True)}
    known = [row for row in rows if row["step"] in x_of_step]
    validations = [row for row in known if any(key.startswith("val_") for key in row)]
    metric = metric_of_run(run, validations)
    spec = _read_transformer_spec(run) if metric in ("top1", "mean_class_accuracy") else None
    curves: dict[str, Curve] = {}
    for logged, keys in (
        (steps, ("loss", "lr", "view_top1")),
        (validations, ("val_loss", f"val_{metric}")),
    ):
        for key in keys:
            values = {row["step"]: row[key] for row in logged if key in row}
            points = [(x_of_step[step], value) for step, value in values.items()]
            xy = np.array(points, np.float64).reshape(-1, 2)  # (R, 2); None is a gap in the line
            if np.isfinite(xy[:, 1]).any():
                curves[key] = Curve(xy[:, 0], xy[:, 1])
    return RunCurves(
        name=name,
        curves=curves,
        metric=None if metric == "loss" else metric,
        chance=100 / math.prod(head.outputs for head in spec.heads) if spec and spec.heads else None,
    )


def _make_x_values(run: Path, environment: RunEnvironment, rows: Sequence[Row], x: AxisName) -> list[float]:
    """Return the position of each step's row on the x axis."""
    if x == "steps":
        return [row["step"] for row in rows]
    batch_size = environment.plan.batch_size
    if x == "hours":
        if any(row.get("clips_per_second") is None for row in rows):
            raise RecipeError(f"{run}: a step of {METRICS_FILE} has no clips_per_second; use --x steps")
        return hours_of_steps(rows, batch_size)
    spec = _read_transformer_spec(run)
    if spec is None:
        raise RecipeError(
            f"{run}: no transformer in {WEIGHTS_FILE} yet, which --x gflops needs; draw by steps or hours"
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


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the running means (R,) of the finite values, each over a 50th of the values on either side.

    The window is symmetric and shrinks at both ends: early losses fall so fast that a wider window would
    hide it.
    """
    index = np.arange(len(values))
    reach = np.minimum(len(values) // SMOOTHING_DIVISOR, np.minimum(index, index[::-1]))  # (R,)
    finite = np.isfinite(values)
    sums, counts = (
        np.concatenate([[0.0], np.cumsum(summed)])  # (R + 1,)
        for summed in (np.where(finite, values, 0.0), finite)
    )
    first, last = index - reach, index + reach + 1
    with np.errstate(invalid="ignore"):  # 0 / 0, a gap, if no value nearby is finite
        return (sums[last] - sums[first]) / (counts[last] - counts[first])


def draw_curves(path: Path, runs: Sequence[RunCurves], *, x: AxisName) -> Figure:
    """Draw a figure with a panel of the losses, one of the learning rate, and one of each further value."""
    metrics = [f"val_{run.metric}" for run in runs if run.metric is not None]
    further = dict.fromkeys([*metrics, "view_top1"])
    names = ["loss", *(key for key in further if any(key in run.curves for run in runs)), "lr"]
    styles = [
        {"color": color, "linestyle": dashes, "linewidth": 2}
        for (dashes, color), _ in zip(cycle(product(DASHES, COLORS)), runs, strict=False)
    ]
    heights = [2.0, *[1.0] * (len(names) - 1)]
    with saved_figure(path, (12, 8), points=13, dpi=100, tight=False) as figure:
        panels = figure.subplots(len(names), sharex=True, height_ratios=heights)
        for panel, name in zip(panels, names, strict=True):
            _draw_panel(panel, name, runs, styles)
        panels[-1].set_xlabel(AXIS_LABELS[x])
        labels = [escape_dollars(shorten(run.name)) for run in runs]
        columns = max(1, 150 // (max(map(len, labels)) + 8))  # letters in a row; 8 for the line before a name
        lines = [Line2D([], [], **style) for style in styles]
        figure.legend(lines, labels, loc="outside upper center", ncols=columns, frameon=False)
    return figure


def _draw_panel(
    panel: Axes, name: str, runs: Sequence[RunCurves], styles: Sequence[Mapping[str, Any]]
) -> None:
    """Draw the curves of a value, with a title and limits: accuracies from 0 to 100 %, with chance.

    The values of a curve that is logged at each step are faint behind their running means.
    """
    for run, style in zip(runs, styles, strict=True):
        for key in [key for key in (LOSSES if name == "loss" else [name]) if key in run.curves]:
            curve = run.curves[key]
            marker = "o" if len(curve.x) <= 30 else ""
            if key in LOGGED_EACH_STEP:
                panel.plot(*curve, color=style["color"], linewidth=1, alpha=0.25)
                panel.plot(curve.x, smooth(curve.y), marker=marker, **style)
            elif key in LOSSES:  # with a line thinner than the training loss
                panel.plot(*curve, marker=LOSSES[key][0], **{**style, "linewidth": 1})
            else:
                panel.plot(*curve, marker=marker, **style)
    panel.grid(alpha=0.3)
    panel.margins(x=0.01)
    if name == "loss":
        # The panel goes from 0, or the lowest loss below 0, to the highest loss that is not a spike.
        lows, highs = [0.0], [0.0]
        entries: list[Line2D] = []
        for key, (marker, label) in LOSSES.items():
            curves = [run.curves[key] for run in runs if key in run.curves]
            if curves:
                entries.append(Line2D([], [], color="black", marker=marker, label=label))
            for curve in curves:
                values = smooth(curve.y) if key in LOGGED_EACH_STEP else curve.y
                values = values[np.isfinite(values)]
                lows += values.tolist()
                highs += [min(values.max(), 2 * np.quantile(values, SPIKE_QUANTILE))] if values.size else []
        if max(highs) > min(lows):
            panel.set_ylim(1.05 * min(lows), 1.05 * max(highs))
        panel.legend(handles=entries, frameon=False, fontsize="small", loc="upper right")
        panel.set_title("loss", **TITLE_STYLE)
        return
    metric = METRICS.get(name.removeprefix("val_")) if name.startswith("val_") else None
    if metric is None or not metric.is_percent:
        panel.set_title(name if metric is None else metric.title, **TITLE_STYLE)
        panel.set_ylim(bottom=0 if metric is None else None)
        return
    title = f"{metric.title} on the validation videos (%)"
    chances = [run.chance for run in runs if f"val_{run.metric}" == name]
    levels = sorted({chance for chance in chances if chance is not None})
    for level in levels:
        panel.axhline(level, color="black", linestyle=":", linewidth=1.5)
    dotted = f"; dotted: chance, {', '.join(f'{level:.3g} %' for level in levels)}" if levels else ""
    panel.set_title(title + dotted, **TITLE_STYLE)
    panel.set_ylim(0, 100)
