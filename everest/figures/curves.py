"""Curves of runs: losses, learning rate and validation accuracy against steps, hours or computation.

R step rows of metrics.jsonl, V validation rows, P rows of probes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from everest.errors import RecipeError
from everest.models.cost import gmacs_of_clip
from everest.models.spec import ModelSpec
from everest.system.files import check_new_file, write_atomically
from everest.system.names import escape_bytes
from everest.system.run_folder import ENVIRONMENT, METRICS, WEIGHTS
from everest.system.weights_header import read_header
from everest.train.listing import read_run
from everest.train.probes import ACCURACIES, probe_rows

AxisName = Literal["steps", "hours", "gflops"]
LABELS: dict[AxisName, str] = {
    "steps": "steps (updates of the weights)",
    "hours": "hours of training steps",
    "gflops": "GMACs of forward passes (the papers' GFLOPs)",
}
# Okabe and Ito (2008), distinct to color-blind readers; without the yellow, which is faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
SHARES = ("val_top1", "val_map")  # metrics in percent: the panel of a run has the first it knows
LINES = ("-", "--", ":", "-.")  # the next style when all colors are used
SMOOTHED_SHARE = 50  # our choice: the mean is over a 50th of a run's steps on either side
EACH_STEP: Any = {"linewidth": 1, "alpha": 0.25}  # lines of the training loss as logged
TRAINING: Any = {"linewidth": 2, "markersize": 4}
VALIDATION: Any = {"linewidth": 1, "marker": "o", "markersize": 6, "markerfacecolor": "white"}
HELD_OUT: Any = {"linewidth": 1, "marker": "s", "markersize": 5, "linestyle": "--"}
TITLE: Any = {"fontsize": "small", "loc": "left"}  # of a panel
KINDS: Any = {"loc": "lower right", "bbox_to_anchor": (1, 1), "frameon": False, "fontsize": "small"}
LEGEND_LETTERS = 150  # letters that fit in a row above the panels
LONGEST_NAME = 64  # letters; longer names are cut at the front
FEW_POINTS = 30  # of a curve: each has a marker
SLOWEST = 0.005  # clips/s: metrics.jsonl rounds slower values to 0.00
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Curve(NamedTuple):
    """Points in the order they were logged, float64."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RunCurves:
    """The curves of one run."""

    name: str
    loss: Curve  # (R,)
    lr: Curve  # (R,)
    validation_loss: Curve  # (V,) empty without data.val
    accuracy: Curve  # (V,) percent, empty without data.val
    chance: float | None  # percent, of guessing; None without data.val, or before weights are saved
    probe: Curve  # (P,) percent, of the linear probe if there is one, else of k-NN; empty without labels
    probe_chance: float | None  # percent, of the most frequent class
    held_out_loss: Curve  # (P,) empty without data.val


def read_curves(runs: Sequence[Path], *, x: AxisName) -> list[RunCurves]:
    """Read the curves of several runs, each run once, named by their folders.

    Raises:
        RecipeError: no run folder, nothing logged yet, or a value that this axis needs is missing.
        CheckpointError: weights whose header is needed, for `gflops` or the chance level, cannot be read.
    """
    once = list({run.resolve(): run for run in runs}.values())
    names = [run.resolve().name for run in once]
    if len(set(names)) < len(names):
        names = [str(run) for run in once]
    curves = []
    for run, name in zip(once, names, strict=True):
        environment, rows = read_run(run)
        steps = [row for row in rows if "loss" in row]
        if not steps:
            raise RecipeError(f"{run}: no step in {METRICS} yet; there is nothing to draw")
        positions = _positions(run, environment, steps, x)
        x_of_step = {row["step"]: position for row, position in zip(steps, positions, strict=True)}
        x_of_step[0] = 0.0  # of the probe before the first step
        probes = [row for row in probe_rows(rows) if row["step"] in x_of_step]
        validated = [row for row in rows if {"val_loss", *SHARES} & row.keys()]
        validations = [row for row in validated if row["step"] in x_of_step]
        metric = next((name for name in SHARES if any(name in row for row in validations)), SHARES[0])
        loss, lr = _curve(x_of_step, steps, "loss"), _curve(x_of_step, steps, "lr")
        curves.append(
            RunCurves(
                name=name,
                loss=loss,
                lr=lr,
                validation_loss=_curve(x_of_step, validations, "val_loss"),
                accuracy=_curve(x_of_step, validations, metric),
                chance=_chance(run) if validations else None,
                probe=_curve(x_of_step, probes, _probe_metric(probes)),
                probe_chance=next((row["probe_chance"] for row in probes if row.get("probe_chance")), None),
                held_out_loss=_curve(x_of_step, probes, "heldout_loss"),
            )
        )
    return curves


def _probe_metric(probes: Sequence[dict[str, Any]]) -> str:
    """Return the better probe that the run has."""
    return next((key for key in ACCURACIES if any(row.get(key) is not None for row in probes)), "probe_knn")


def _spec(run: Path) -> ModelSpec | None:
    """Return the model of a run; None before its weights are saved."""
    weights = run / WEIGHTS
    if not weights.is_file():
        return None
    return ModelSpec.from_settings(read_header(weights).settings, source=weights)


def _chance(run: Path) -> float | None:
    """Return the percentage of videos that a guess of all labels gets right, if each names one class."""
    spec = _spec(run)
    if spec is None or spec.num_classes is None:
        return None
    if any(head.task != "single-label" for head in spec.answered):
        return None
    return 100 / math.prod(head.outputs for head in spec.answered)


def _curve(x_of_step: dict[int, float], rows: list[dict[str, Any]], key: str) -> Curve:
    """Collect the values of `key`; None, a value that is not finite, is a gap in the line."""
    values = {row["step"]: row[key] for row in rows if isinstance(row.get(key, ""), float | int | None)}
    points = [(x_of_step[step], value) for step, value in values.items()]
    both = np.array(points, dtype=np.float64).reshape(-1, 2)  # (R, 2)
    return Curve(both[:, 0], both[:, 1])


def _positions(
    run: Path, environment: dict[str, Any], rows: list[dict[str, Any]], x: AxisName
) -> list[float]:
    """Return the position of each step's row on the x axis."""
    if x == "steps":
        return [row["step"] for row in rows]
    try:
        batch_size = environment["plan"]["batch_size"]
    except (KeyError, TypeError) as error:
        raise RecipeError(
            f"{run / ENVIRONMENT}: no plan.batch_size in it; only --x steps works for this run"
        ) from error
    if x == "hours":  # time in steps up to each row, over all resumes, without validation and saving
        if any(row.get("clips_per_second") is None for row in rows):
            raise RecipeError(f"{run / METRICS}: a step without clips_per_second; only --x steps works")
        speeds = np.array([max(row["clips_per_second"], SLOWEST) for row in rows])  # (R,)
        return (np.cumsum(batch_size / speeds) / 3600).tolist()
    spec = _spec(run)
    if spec is None:
        raise RecipeError(f"{run}: no {WEIGHTS} yet, which --x gflops needs; draw by steps or hours")
    gmacs_of_step = batch_size * gmacs_of_clip(spec)
    return [row["step"] * gmacs_of_step for row in rows]


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


def draw_curves(path: Path, runs: Sequence[RunCurves], *, x: AxisName) -> None:
    """Draw a PNG of 1200 x 800 pixels: losses, accuracy of validation and probes (if any), learning rate."""
    with matplotlib.rc_context({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False}):
        figure = figure_of(runs, x=x)
        write_atomically(path, lambda part: figure.savefig(part, format="png"))


def figure_of(runs: Sequence[RunCurves], *, x: AxisName) -> Figure:
    """Return the figure of `draw_curves`.

    The training loss is smoothed; the logged values are faint behind it. Losses are drawn from 0 to the
    highest smoothed or validation loss, accuracies from 0 to 100 %, with the accuracy of guessing.
    """
    validated = any(len(run.accuracy.x) for run in runs)
    probed = any(np.isfinite(run.probe.y).any() for run in runs)
    held_out = any(np.isfinite(run.held_out_loss.y).any() for run in runs)
    heights = [3, *([2] * (validated + probed)), 1.3]
    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
    panels = list(figure.subplots(len(heights), sharex=True, height_ratios=heights))
    losses, rates = panels[0], panels[-1]
    lines, drawn = [], []
    for number, run in enumerate(runs):
        color = COLORS[number % len(COLORS)]
        style = {"color": color, "linestyle": LINES[number // len(COLORS) % len(LINES)]}
        smoothed = smooth(run.loss.y)
        losses.plot(run.loss.x, run.loss.y, **EACH_STEP, color=color)
        lines += losses.plot(run.loss.x, smoothed, marker=_marker(run.loss), **TRAINING, **style)
        losses.plot(*run.validation_loss, **VALIDATION, **style)
        losses.plot(*run.held_out_loss, **HELD_OUT, color=color)
        trained = run.held_out_loss.y[run.held_out_loss.x > 0]  # an untrained model's may be far above
        drawn += [smoothed, run.validation_loss.y, trained]
        if validated:
            panels[1].plot(*run.accuracy, **VALIDATION, **style)
        if probed:
            panels[-2].plot(*run.probe, **VALIDATION, **style)
        rates.plot(*run.lr, marker=_marker(run.lr), **TRAINING, **style)
    losses.set_ylabel("loss")
    losses.set_ylim(*_loss_limits(np.concatenate(drawn)))
    kinds = {"training, each step": EACH_STEP, "training, mean of nearby steps": TRAINING}
    kinds |= {"validation": VALIDATION} if validated else {}
    kinds |= {"held-out videos": HELD_OUT} if held_out else {}
    samples = [Line2D([], [], color="black", label=label, **kind) for label, kind in kinds.items()]
    losses.legend(handles=samples, **KINDS, ncols=len(samples))
    if validated:
        title = "accuracy on the validation videos"
        _finish_accuracies(panels[1], title, [run.chance for run in runs])
    if probed:
        title = "probes: accuracy of a simple classifier of the features"
        _finish_accuracies(panels[-2], title, [run.probe_chance for run in runs])
    rates.set_title("learning rate", **TITLE)
    rates.set_xlabel(LABELS[x])
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.margins(x=0.01)
    rates.set_ylim(bottom=0)
    rates.ticklabel_format(axis="y", scilimits=(-3, 3), useMathText=True)
    rates.ticklabel_format(axis="x", scilimits=(-4, 6), useMathText=True)
    rates.xaxis.get_major_locator().set_params(integer=x == "steps")
    _add_legend(figure, lines, [run.name for run in runs])
    return figure


def _finish_accuracies(panel: Axes, title: str, chances: Sequence[float | None]) -> None:
    """Add the levels of chance, the title and the limits to a panel."""
    levels = sorted({chance for chance in chances if chance is not None})
    for level in levels:
        panel.axhline(level, color="black", linestyle=":", linewidth=1.5)
    dotted = f"; dotted: chance, {', '.join(f'{level:.3g} %' for level in levels)}" if levels else ""
    panel.set_title(f"{title}{dotted}", **TITLE)
    panel.set(ylabel="top-1 (%)", ylim=(0, 100))


def _marker(curve: Curve) -> str | None:
    return "o" if len(curve.x) <= FEW_POINTS else None


def _loss_limits(values: NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
    """Return limits from 0, or from the lowest negative loss; None, matplotlib's, without finite values."""
    finite = values[np.isfinite(values)]
    if not finite.any():
        return None, None
    return min(0.0, 1.05 * float(finite.min())), max(0.0, 1.05 * float(finite.max()))


def _add_legend(figure: Figure, lines: Sequence[Line2D], names: Sequence[str]) -> None:
    """Add the names above all panels, in as many columns as fit."""
    shown = [name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :] for name in names]
    columns = max(1, LEGEND_LETTERS // (max(map(len, shown)) + 8))  # 8: the line before a name
    legend = figure.legend(
        lines,
        ["run"] * len(lines),
        loc="outside upper center",
        ncols=min(columns, len(lines)),
        frameon=False,
        fontsize="small",
    )
    # Set afterwards: matplotlib omits labels that begin with "_" and reads dollars as formulas.
    for text, name in zip(legend.get_texts(), shown, strict=True):
        text.set_parse_math(False)
        text.set_text(escape_bytes(name))
