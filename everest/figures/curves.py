"""The figure of `everest plot`: curves of runs against steps, hours or computation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from everest.errors import RecipeError
from everest.figures.drawing import any_script, name_entries, png_figure
from everest.figures.run_curves import AxisName, Curve, RunCurves
from everest.metrics.names import METRICS
from everest.system.files import check_new_file

LABELS: dict[AxisName, str] = {
    "steps": "steps (updates of the weights)",
    "hours": "hours of training steps",
    "gflops": "GMACs of forward passes (the papers' GFLOPs)",
}
# Okabe and Ito (2008), distinct to color-blind readers; without the yellow, which is faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", ":", "-.")  # the next style when all colors are used
SMOOTHED_SHARE = 50  # our choice: the mean is over a 50th of a run's steps on either side
USUAL = 0.9  # our choice: the quantile of a curve that sets the scale if the largest value is a spike
DECADES = 100  # our choice: the ratio of losses from which the scale is logarithmic
EACH_STEP: Any = {"linewidth": 1, "alpha": 0.25}  # lines of the training loss as logged
TRAINING: Any = {"linewidth": 2, "markersize": 4}
VALIDATION: Any = {"linewidth": 1, "marker": "o", "markersize": 6, "markerfacecolor": "white"}
OF_MEAN: Any = {"linewidth": 1.5, "linestyle": ":"}
HELD_OUT: Any = {"linewidth": 1, "marker": "s", "markersize": 5, "linestyle": "--"}
TITLE: Any = {"fontsize": "small", "loc": "left"}  # of a panel
KINDS: Any = {"loc": "lower right", "bbox_to_anchor": (1, 1), "frameon": False, "fontsize": "small"}
LEGEND_LETTERS = 150  # letters that fit in a row above the panels
LONGEST_NAME = 64  # letters; longer names are cut at the front
FEW_POINTS = 30  # of a curve: each has a marker
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return running means (R,) over a 50th of the values on either side.

    The window is symmetric and shrinks at both ends: early losses fall so fast that a wider window would
    hide it. Values that are not finite (of skipped steps) are ignored.
    """
    finite = np.isfinite(values)
    count = len(values)
    index = np.arange(count)
    before = np.minimum(count // SMOOTHED_SHARE, index)  # (R,)
    after = np.minimum(before, count - 1 - index)  # (R,)
    first, last = index - before, index + after + 1
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])  # (R + 1,)
    counts = np.concatenate([[0], np.cumsum(finite)])  # (R + 1,)
    with np.errstate(invalid="ignore"):  # 0 / 0, a gap, if no value nearby is finite
        return (sums[last] - sums[first]) / (counts[last] - counts[first])


def without_spikes(values: NDArray[np.float64]) -> float:
    """The largest of finite values (R,), unless it is a spike: more than twice 90 % of the values."""
    usual, most = float(np.quantile(values, USUAL)), float(values.max())
    return most if usual <= 0 or most <= 2 * usual else 1.2 * usual


def check_target(path: Path, *, option: str, overwrite: bool) -> None:
    """Check that a PNG can be written to `path`, and replaces another PNG only with --overwrite.

    Args:
        option: the option that names the path, for messages.
    Raises:
        RecipeError: the name does not end in .png, or the path exists and may not be replaced.
        EnvironmentProblem: the file cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise RecipeError(f"{option} {path}: the figure is a PNG; end its name in .png")
    if path.is_dir():
        raise RecipeError(f"{option} {path}: a folder is in the way; choose another name")
    if path.exists():
        with path.open("rb") as file:
            if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
                raise RecipeError(f"{option} {path}: exists and is no PNG; choose another name")
    check_new_file(path, option=option, overwrite=overwrite)


@any_script()
def draw_curves(path: Path, runs: Sequence[RunCurves], *, x: AxisName) -> Figure:
    """Draw a PNG of 1200 x 800 pixels: losses, metrics of validation and probes (if any), learning rate.

    There is a panel for each metric that chooses the best weights of a run, and for each kind of probe.
    """
    metrics = list(dict.fromkeys(run.metric for run in runs if run.metric is not None))
    probed = any(_is_drawn(run.probe) for run in runs)
    ranked = any(_is_drawn(run.rank_me) for run in runs)
    compared = any(_is_drawn(run.loss_ratio) for run in runs)
    viewed = any(_is_drawn(run.view_top1) for run in runs)
    heights = [3, *([2] * (len(metrics) + probed)), *([1.5] * (compared + ranked + viewed)), 1.3]
    styles: list[Any] = [
        {"color": COLORS[i % len(COLORS)], "linestyle": LINES[i // len(COLORS) % len(LINES)]}
        for i in range(len(runs))
    ]
    with png_figure(path, (12, 8), points=13, dpi=100, tight=False) as figure:
        panels = list(figure.subplots(len(heights), sharex=True, height_ratios=heights))
        lines = _draw_losses(panels[0], runs, styles)
        for panel, metric in zip(panels[1:], metrics, strict=False):
            chosen = [(run, style) for run, style in zip(runs, styles, strict=True) if run.metric == metric]
            for run, style in chosen:
                panel.plot(*run.validation, **VALIDATION, **style)
            _finish(panel, metric, "on the validation videos", [run.chance for run, _ in chosen])
        if probed:
            panel = panels[1 + len(metrics)]
            for run, style in zip(runs, styles, strict=True):
                panel.plot(*run.probe, **VALIDATION, **style)
            _finish(
                panel, "top1", "of simple classifiers of the features", [run.probe_chance for run in runs]
            )
        if compared:
            _draw_ratios(panels[-2 - ranked - viewed], runs, styles)
        if viewed:
            panel = panels[-2 - ranked]
            for run, style in zip(runs, styles, strict=True):
                panel.plot(run.view_top1.x, smooth(run.view_top1.y), **TRAINING, **style)
            panel.set_title("clips that retrieve their own video (view_top1)", **TITLE)
            panel.set_ylabel("found (%)")
            panel.set_ylim(0, 100)
        if ranked:
            panel = panels[-2]
            for run, style in zip(runs, styles, strict=True):
                panel.plot(*run.rank_me, **VALIDATION, **style)
            panel.set_title(
                "effective dimensions of the features (RankMe); a fall to 1 is a collapse", **TITLE
            )
            panel.set_ylabel("RankMe")
            panel.margins(y=0.2)
            panel.set_ylim(bottom=0)
        rates = panels[-1]
        for run, style in zip(runs, styles, strict=True):
            rates.plot(*run.lr, marker=_marker(run.lr), **TRAINING, **style)
        rates.set_title("learning rate", **TITLE)
        rates.set_xlabel(LABELS[x])
        for panel in panels:
            panel.grid(alpha=0.3)
            panel.margins(x=0.01)
        rates.set_ylim(bottom=0)
        rates.ticklabel_format(axis="y", scilimits=(-3, 3), useMathText=True)
        rates.ticklabel_format(axis="x", scilimits=(-4, 6), useMathText=True)
        rates.xaxis.get_major_locator().set_params(integer=x == "steps")
        _name_runs(figure, lines, runs)
    return figure


def _name_runs(figure: Figure, lines: Sequence[Line2D], runs: Sequence[RunCurves]) -> None:
    """Add the names of the runs and their lines above all panels."""
    names = [
        run.name if len(run.name) <= LONGEST_NAME else "…" + run.name[1 - LONGEST_NAME :] for run in runs
    ]
    columns = max(1, LEGEND_LETTERS // (max(map(len, names)) + 8))  # 8: the line before a name
    legend = figure.legend(
        lines,
        ["run"] * len(lines),
        loc="outside upper center",
        ncols=min(columns, len(lines)),
        frameon=False,
        fontsize="small",
    )
    name_entries(legend, names)


def _draw_losses(panel: Axes, runs: Sequence[RunCurves], styles: Sequence[Any]) -> list[Line2D]:
    """Draw the losses of training, validation and probes; returns a line for each run.

    The training loss is smoothed; the logged values are faint behind it. The limits are 0 and the highest
    smoothed loss, or that of other videos after the first step, without spikes. If the losses span decades,
    the scale is logarithmic.
    """
    lines, drawn = [], []
    for run, style in zip(runs, styles, strict=True):
        smoothed = smooth(run.loss.y)
        panel.plot(run.loss.x, run.loss.y, **EACH_STEP, color=style["color"])
        lines += panel.plot(run.loss.x, smoothed, marker=_marker(run.loss), **TRAINING, **style)
        panel.plot(*run.validation_loss, **VALIDATION, **style)
        panel.plot(*run.mean_loss, **OF_MEAN, color=style["color"])
        panel.plot(*run.held_out_loss, **HELD_OUT, color=style["color"])
        trained = run.held_out_loss.y[run.held_out_loss.x > 0]  # an untrained model's may be far above
        drawn += [smoothed, run.validation_loss.y, trained, run.mean_loss.y]
    panel.set_ylabel("loss")
    curves = [finite for values in drawn if (finite := values[np.isfinite(values)]).size]
    if not any(curve.any() for curve in curves):
        panel.set_ylim(None, None)  # matplotlib's limits
    else:
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
    kinds |= {"validation": VALIDATION} if any(_is_drawn(run.validation_loss) for run in runs) else {}
    kinds |= {"held-out videos": HELD_OUT} if any(_is_drawn(run.held_out_loss) for run in runs) else {}
    kinds |= {"predicting their mean": OF_MEAN} if any(_is_drawn(run.mean_loss) for run in runs) else {}
    samples = [Line2D([], [], color="black", label=label, **kind) for label, kind in kinds.items()]
    panel.legend(handles=samples, **KINDS, ncols=len(samples))
    return lines


def _draw_ratios(panel: Axes, runs: Sequence[RunCurves], styles: Sequence[Any]) -> None:
    """Draw the ratios of the held-out losses. The limits are of the probes after the first step."""
    for run, style in zip(runs, styles, strict=True):
        panel.plot(*run.loss_ratio, **VALIDATION, **style)
    drawn = np.concatenate([run.loss_ratio.y for run in runs])
    later = np.concatenate([run.loss_ratio.y[run.loss_ratio.x > 0] for run in runs])
    limited = np.append(later if np.isfinite(later).any() else drawn, 1.0)
    panel.axhline(1, color="black", linestyle=":", linewidth=1.5)
    panel.set_title(
        "held-out loss over that of predicting the mean (dotted): above 1, nothing is learned", **TITLE
    )
    panel.set_ylabel("ratio")
    finite = limited[np.isfinite(limited)]
    low, high = finite.min(), without_spikes(finite)
    panel.set_ylim(low - 0.2 * (high - low) - 0.02, high + 0.2 * (high - low) + 0.02)


def _finish(panel: Axes, metric: str, of_what: str, chances: Sequence[float | None]) -> None:
    """Add the levels of chance, the title and the limits to the panel of a metric."""
    shown, levels = METRICS[metric], sorted({chance for chance in chances if chance is not None})
    for level in levels:
        panel.axhline(level, color="black", linestyle=":", linewidth=1.5)
    dotted = f"; dotted: chance, {', '.join(f'{level:.3g} %' for level in levels)}" if levels else ""
    panel.set_title(f"{shown.title} {of_what}{dotted}", **TITLE)
    panel.set_ylabel(f"{shown.short or shown.title} (%)" if shown.percent else shown.title)
    panel.set_ylim(0, 100 if shown.percent else None)


def _is_drawn(curve: Curve) -> bool:
    return bool(np.isfinite(curve.y).any())


def _marker(curve: Curve) -> str | None:
    return "o" if len(curve.x) <= FEW_POINTS else None
