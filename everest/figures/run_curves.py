"""The curves of runs, read from their files: losses, learning rate, validations and probes.

R step rows of metrics.jsonl, V validation rows, P rows of probes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everest.engine.listing import metric_of_run, read_run
from everest.errors import RecipeError
from everest.models.cost import count_macs
from everest.models.spec import ModelSpec
from everest.probes.collapse import ACCURACIES, probe_rows
from everest.system.run_folder import ENVIRONMENT, METRICS_FILE, WEIGHTS
from everest.system.weights_header import read_header

AxisName = Literal["steps", "hours", "gflops"]
SLOWEST: Final = 0.005  # clips/s: metrics.jsonl rounds slower values to 0.00


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
    metric: str | None  # of everest.metrics.names, that chooses the best weights, unless that is the loss
    validation: Curve  # (V,) its values, empty without data.val
    chance: float | None  # of the metric, in percent; None before weights are saved, or if it is not known
    probe: Curve  # (P,) percent, of the linear probe if there is one, else of k-NN; empty without labels
    probe_chance: float | None  # percent, of the most frequent class
    held_out_loss: Curve  # (P,) empty without data.val
    mean_loss: Curve  # (P,) of predicting the mean of the same targets
    loss_ratio: Curve  # (P,) the former loss over the latter
    rank_me: Curve  # (P,) the effective dimensions of the features
    view_top1: Curve  # (R,) percent of clips that retrieve their own video; empty without views


def read_curves(runs: Sequence[Path], *, x: AxisName) -> list[RunCurves]:
    """Read the curves of several runs, each run once, named by their folders."""
    once = list({run.resolve(): run for run in runs}.values())
    names = [run.resolve().name for run in once]
    if len(set(names)) < len(names):
        names = [str(run) for run in once]
    curves = []
    for run, name in zip(once, names, strict=True):
        environment, rows = read_run(run)
        steps = [row for row in rows if "loss" in row]
        if not steps:
            raise RecipeError(f"{run}: no step in {METRICS_FILE} yet; there is nothing to draw")
        positions = _positions(run, environment, steps, x)
        x_of_step = {row["step"]: position for row, position in zip(steps, positions, strict=True)}
        x_of_step[0] = 0.0  # of the probe before the first step
        logged = [row for row in rows if row["step"] in x_of_step]
        probes = [row | {"ratio": _ratio(row)} for row in probe_rows(logged)]
        validations = [row for row in logged if any(key.startswith("val_") for key in row)]
        metric = metric_of_run(run, validations)
        # The better probe that the run has.
        measured = (key for key in ACCURACIES if any(row.get(key) is not None for row in probes))
        curve_of = partial(_curve, x_of_step)
        view_top1 = curve_of(steps, "view_top1")
        curves.append(
            RunCurves(
                name=name,
                loss=curve_of(steps, "loss"),
                lr=curve_of(steps, "lr"),
                validation_loss=curve_of(validations, "val_loss"),
                metric=None if metric == "loss" else metric,
                validation=curve_of(validations, f"val_{metric}"),
                chance=chance_of_run(run, metric),
                probe=curve_of(probes, next(measured, "probe_knn")),
                probe_chance=next((row["probe_chance"] for row in probes if row.get("probe_chance")), None),
                held_out_loss=curve_of(probes, "heldout_loss"),
                mean_loss=curve_of(probes, "heldout_mean_loss"),
                loss_ratio=curve_of(probes, "ratio"),
                rank_me=curve_of(probes, "rank_me"),
                view_top1=Curve(view_top1.x, 100 * view_top1.y),
            )
        )
    return curves


def _spec(run: Path) -> ModelSpec | None:
    """Return the transformer of a run; None before its weights are saved."""
    weights = run / WEIGHTS
    if not weights.is_file():
        return None
    header = read_header(weights)
    if header.kind == "tokenizer":
        raise RecipeError(f"{run}: a tokenizer, which has no axis gflops; draw by steps or hours")
    return ModelSpec.from_settings(header.settings, source=weights)


def chance_of_run(run: Path, metric: str | None) -> float | None:
    """Return the percentage of videos that a guess of all labels gets right, if the metric counts these."""
    if metric not in ("top1", "mean_class_accuracy"):
        return None
    spec = _spec(run)
    if spec is None or spec.num_classes is None:
        return None
    return 100 / math.prod(head.outputs for head in spec.answered)


def _curve(x_of_step: Mapping[int, float], rows: Sequence[Mapping[str, Any]], key: str) -> Curve:
    """Collect the values of `key`; None, a value that is not finite, is a gap in the line."""
    values = {row["step"]: row[key] for row in rows if isinstance(row.get(key, ""), float | int | None)}
    points = [(x_of_step[step], value) for step, value in values.items()]
    both = np.array(points, dtype=np.float64).reshape(-1, 2)  # (R, 2)
    return Curve(both[:, 0], both[:, 1])


def _ratio(row: dict[str, Any]) -> float | None:
    """The held-out loss over that of predicting the mean."""
    loss, mean = row.get("heldout_loss"), row.get("heldout_mean_loss")
    if isinstance(loss, float | int) and isinstance(mean, float | int) and mean > 0:
        return loss / mean
    return None


def _positions(
    run: Path, environment: dict[str, Any], rows: list[dict[str, Any]], x: AxisName
) -> list[float]:
    """Return the position of each step's row on the x axis."""
    if x == "steps":
        return [row["step"] for row in rows]
    plan = environment.get("plan")
    batch_size = plan.get("batch_size") if isinstance(plan, dict) else None
    if type(batch_size) is not int or batch_size < 1:  # bool is a subclass of int
        raise RecipeError(
            f"{run / ENVIRONMENT}: plan.batch_size is missing or not a positive integer; only --x steps "
            "works for this run"
        )
    if x == "hours":  # time in steps up to each row, over all resumes, without validation and saving
        if any(row.get("clips_per_second") is None for row in rows):
            raise RecipeError(f"{run / METRICS_FILE}: a step without clips_per_second; only --x steps works")
        speeds = np.array([max(row["clips_per_second"], SLOWEST) for row in rows])  # (R,)
        return (np.cumsum(batch_size / speeds) / 3600).tolist()
    spec = _spec(run)
    if spec is None:
        raise RecipeError(f"{run}: no {WEIGHTS} yet, which --x gflops needs; draw by steps or hours")
    gmacs_of_step = batch_size * count_macs(spec).total / 1e9
    return [row["step"] * gmacs_of_step for row in rows]
