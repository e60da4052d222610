"""The figure of `everest plot`: curves of runs against steps, hours or computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from everest.figures.drawing import COLORS, LINES, plain, png_figure, shorten
from everest.figures.run_curves import AxisName, Curve, RunCurves
from everest.metrics.names import METRICS

LABELS: dict[AxisName, str] = {
    "steps": "steps (updates of the weights)",
    "hours": "hours of training steps",
    "gflops": "GMACs of forward passes (the papers' GFLOPs)",
}
SMOOTHED_SHARE: Final = 50  # our choice: the mean is over a 50th of a run's steps on either side
USUAL: Final = 0.9  # our choice: the quantile of a curve that sets the scale if the largest is a spike
DECADES: Final = 100  # our choice: the ratio of losses from which the scale is logarithmic
EACH_STEP: Any = {"linewidth": 1, "alpha": 0.25}  # lines of the training loss as logged
TRAINING: Any = {"linewidth": 2, "markersize": 4}
VALIDATION: Any = {"linewidth": 1, "marker": "o", "markersize": 6, "markerfacecolor": "white"}
OF_MEAN: Any = {"linewidth": 1.5, "linestyle": ":"}
HELD_OUT: Any = {"linewidth": 1, "marker": "s", "markersize": 5, "linestyle": "--"}
LEVEL: Any = {"color": "black", "linestyle": ":", "linewidth": 1.5}
TITLE: Any = {"fontsize": "small", "loc": "left"}  # of a panel
KINDS: Any = {"loc": "lower right", "bbox_to_anchor": (1, 1), "frameon": False, "fontsize": "small"}
LEGEND_LETTERS: Final = 150  # letters that fit in a row above the panels
LONGEST_NAME: Final = 64  # letters
FEW_POINTS: Final = 30  # of a curve: each has a marker

Styled = Sequence[tuple[RunCurves, dict[str, Any]]]  # runs with the color and style of their lines


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return running means (R,) over a 50th of the values on either side.

    The window is symmetric and shrinks at both ends: early losses fall so fast that a wider window would
    hide it. Values that are not finite (of skipped steps) are ignored.
    """
    finite = np.isfinite(values)
    index = np.arange(len(values))
    before = np.minimum(len(values) // SMOOTHED_SHARE, index)  # (R,)
    after = np.minimum(before, index[::-1])  # (R,)
    first, last = index - before, index + after + 1
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])  # (R + 1,)
    counts = np.concatenate([[0], np.cumsum(finite)])  # (R + 1,)
    with np.errstate(invalid="ignore"):  # 0 / 0, a gap, if no value nearby is finite
        return (sums[last] - sums[first]) / (counts[last] - counts[first])


def without_spikes(values: NDArray[np.float64]) -> float:
    """The largest of finite values (R,), unless it is a spike: more than twice 90 % of the values."""
    usual, most = float(np.quantile(values, USUAL)), float(values.max())
    return most if usual <= 0 or most <= 2 * usual else 1.2 * usual


def draw_curves(path: Path, runs: Sequence[RunCurves], *, x: AxisName) -> Figure:
    """Draw a PNG of 1200 x 800 pixels: losses, metrics of validation and probes (if any), learning rate.

    There is a panel for each metric that chooses the best weights of a run, and for each kind of probe.
    """
    drawn: Styled = [
        (run, {"color": COLORS[i % len(COLORS)], "linestyle": LINES[i // len(COLORS) % len(LINES)]})
        for i, run in enumerate(runs)
    ]
    parts: list[tuple[float, Callable[[Axes, Styled], None], Styled]] = [(3, _draw_losses, drawn)]
    for metric in dict.fromkeys(run.metric for run in runs if run.metric is not None):
        parts.append((2, _draw_metric, [(run, style) for run, style in drawn if run.metric == metric]))
    for height, draw, name in (
        (2, _draw_probes, "probe"),
        (1.5, _draw_ratios, "loss_ratio"),
        (1.5, _draw_view_top1, "view_top1"),
        (1.5, _draw_ranks, "rank_me"),
    ):
        if any(_is_drawn(getattr(run, name)) for run in runs):
            parts.append((height, draw, drawn))
    parts.append((1.3, _draw_rates, drawn))
    heights = [height for height, _, _ in parts]
    with png_figure(path, (12, 8), points=13, dpi=100, tight=False) as figure:
        panels = figure.subplots(len(heights), sharex=True, height_ratios=heights)
        for panel, (_, draw, shown) in zip(panels, parts, strict=True):
            draw(panel, shown)
            panel.grid(alpha=0.3)
            panel.margins(x=0.01)
        panels[-1].set_xlabel(LABELS[x])
        panels[-1].ticklabel_format(axis="x", scilimits=(-4, 6), useMathText=True)
        panels[-1].xaxis.get_major_locator().set_params(integer=x == "steps")
        names = [plain(shorten(run.name, LONGEST_NAME)) for run in runs]
        columns = max(1, LEGEND_LETTERS // (max(map(len, names)) + 8))  # 8: the line before a name
        figure.legend(
            handles=[Line2D([], [], marker=_marker(run.loss), **TRAINING, **style) for run, style in drawn],
            labels=names,
            loc="outside upper center",
            ncols=min(columns, len(names)),
            frameon=False,
            fontsize="small",
        )
    return figure


def _draw_losses(panel: Axes, runs: Styled) -> None:
    """Draw the losses of training, validation and probes.

    The training loss is smoothed; the logged values are faint behind it. The limits are 0 and the highest
    smoothed loss, or that of other videos after the first step, without spikes. If the losses span decades,
    the scale is logarithmic.
    """
    shown: list[NDArray[np.float64]] = []
    for run, style in runs:
        smoothed = smooth(run.loss.y)
        panel.plot(*run.loss, **EACH_STEP, color=style["color"])
        panel.plot(run.loss.x, smoothed, marker=_marker(run.loss), **TRAINING, **style)
        panel.plot(*run.validation_loss, **VALIDATION, **style)
        panel.plot(*run.mean_loss, **OF_MEAN, color=style["color"])
        panel.plot(*run.held_out_loss, **HELD_OUT, color=style["color"])
        trained = run.held_out_loss.y[run.held_out_loss.x > 0]  # an untrained model's may be far above
        shown += [smoothed, run.validation_loss.y, trained, run.mean_loss.y]
    panel.set_ylabel("loss")
    curves = [finite for values in shown if (finite := values[np.isfinite(values)]).size]
    if any(curve.any() for curve in curves):  # else matplotlib's limits
        low = min(float(curve.min()) for curve in curves)
        high, most = (max(map(of, curves)) for of in (without_spikes, np.max))
        typical = min(float(np.quantile(curve, 1 - USUAL)) for curve in curves)
        if low > 0 and high > DECADES * typical:
            panel.set_yscale("log")
            panel.set_ylim(0.9 * low, 1.1 * most)
        else:  # from 0, or from the lowest negative loss
            panel.set_ylim(min(0.0, 1.05 * low), max(0.0, 1.05 * high))
            if most > high:
                panel.set_title(f"values up to {most:.3g}", **TITLE)
    kinds = {"training, each step": EACH_STEP, "training, mean of nearby steps": TRAINING}
    for label, kind, name in (
        ("validation", VALIDATION, "validation_loss"),
        ("held-out videos", HELD_OUT, "held_out_loss"),
        ("predicting their mean", OF_MEAN, "mean_loss"),
    ):
        if any(_is_drawn(getattr(run, name)) for run, _ in runs):
            kinds[label] = kind
    samples = [Line2D([], [], color="black", label=label, **kind) for label, kind in kinds.items()]
    panel.legend(handles=samples, **KINDS, ncols=len(samples))


def _draw_metric(panel: Axes, runs: Styled) -> None:
    """Draw the metric that the runs share."""
    for run, style in runs:
        panel.plot(*run.validation, **VALIDATION, **style)
    assert runs[0][0].metric is not None
    _finish(panel, runs[0][0].metric, "on the validation videos", [run.chance for run, _ in runs])


def _draw_probes(panel: Axes, runs: Styled) -> None:
    for run, style in runs:
        panel.plot(*run.probe, **VALIDATION, **style)
    _finish(panel, "top1", "of simple classifiers of the features", [run.probe_chance for run, _ in runs])


def _finish(panel: Axes, metric: str, of_what: str, chances: Sequence[float | None]) -> None:
    """Add the levels of chance, the title and the limits to the panel of a metric."""
    shown, levels = METRICS[metric], sorted({chance for chance in chances if chance is not None})
    for level in levels:
        panel.axhline(level, **LEVEL)
    dotted = f"; dotted: chance, {', '.join(f'{level:.3g} %' for level in levels)}" if levels else ""
    panel.set_title(f"{shown.title} {of_what}{dotted}", **TITLE)
    panel.set_ylabel(f"{shown.short or shown.title} (%)" if shown.percent else shown.title)
    panel.set_ylim(0, 100 if shown.percent else None)


def _draw_ratios(panel: Axes, runs: Styled) -> None:
    """Draw the ratios of the held-out losses. The limits are of the probes after the first step."""
    for run, style in runs:
        panel.plot(*run.loss_ratio, **VALIDATION, **style)
    ratios = np.concatenate([run.loss_ratio.y for run, _ in runs])
    later = np.concatenate([run.loss_ratio.y[run.loss_ratio.x > 0] for run, _ in runs])
    limited = np.append(later if np.isfinite(later).any() else ratios, 1.0)
    finite = limited[np.isfinite(limited)]
    low, high = finite.min(), without_spikes(finite)
    panel.axhline(1, **LEVEL)
    title = "held-out loss over that of predicting the mean (dotted): above 1, nothing is learned"
    panel.set_title(title, **TITLE)
    panel.set_ylabel("ratio")
    panel.set_ylim(low - 0.2 * (high - low) - 0.02, high + 0.2 * (high - low) + 0.02)


def _draw_view_top1(panel: Axes, runs: Styled) -> None:
    for run, style in runs:
        panel.plot(run.view_top1.x, smooth(run.view_top1.y), **TRAINING, **style)
    panel.set_title("clips that retrieve their own video (view_top1)", **TITLE)
    panel.set(ylabel="found (%)", ylim=(0, 100))


def _draw_ranks(panel: Axes, runs: Styled) -> None:
    for run, style in runs:
        panel.plot(*run.rank_me, **VALIDATION, **style)
    panel.set_title("effective dimensions of the features (RankMe); a fall to 1 is a collapse", **TITLE)
    panel.set_ylabel("RankMe")
    panel.margins(y=0.2)
    panel.set_ylim(bottom=0)


def _draw_rates(panel: Axes, runs: Styled) -> None:
    for run, style in runs:
        panel.plot(*run.lr, marker=_marker(run.lr), **TRAINING, **style)
    panel.set_title("learning rate", **TITLE)
    panel.set_ylim(bottom=0)
    panel.ticklabel_format(axis="y", scilimits=(-3, 3), useMathText=True)


def _is_drawn(curve: Curve) -> bool:
    return bool(np.isfinite(curve.y).any())


def _marker(curve: Curve) -> str | None:
    return "o" if len(curve.x) <= FEW_POINTS else None
