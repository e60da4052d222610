"""The numbers of every arm and seed, read from the finished work of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from everest.config.metrics import CHANCES, METRICS
from everest.figures.run_curves import chance_of_run
from everest.models.spec import ModelSpec
from everest.sweep.budgets import macs_of_clip
from everest.sweep.metric_names import PRETRAIN_LOSS, PROBE, VALIDATION
from everest.sweep.plan import PlannedArm, SweepPlan
from everest.sweep.works import RUNS, Work
from everest.system.json_text import nonfinite_as_null, read_json
from everest.system.run_folder import WEIGHTS
from everest.system.weights_header import read_header
from everest.train.listing import metric_of_run, read_run, summarize
from everest.train.validations import Validations

LAST_STEPS: Final = 50  # our choice: of a pre-training, whose losses are averaged
SECONDS_PER_HOUR: Final = 3600
Metrics = dict[str, float | None]


class WorkRow(NamedTuple):
    """The numbers of a finished work."""

    metrics: Metrics
    gmacs: float  # of the forward passes of all its steps; 0 of an evaluation
    hours: float


def is_finished(work: Work, folder: Path) -> bool:
    """Whether a training has saved its last step, or the result of an evaluation is written."""
    if work.stage in RUNS:
        run = work.run(folder)
        return run.is_dir() and summarize(run).state == "finished"
    try:
        return isinstance(read_json(work.file(folder, "json")), dict)
    except (OSError, ValueError):
        return False


def metrics_of(work: Work, folder: Path) -> Metrics:
    """The metrics of a finished work."""
    if work.stage in RUNS:
        return _of_run(work, folder)
    document = read_json(work.file(folder, "json"))
    found = dict(_numbers(document))
    for head, of_head in document.get("heads", {}).items():
        found |= {f"{head}.{name}": value for name, value in _numbers(of_head)}
    return found


def _numbers(document: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    """The metrics of an evaluation, or of every probe."""
    found = [(name, document[name]) for name in (*METRICS, *CHANCES) if name in document]
    for probe, values in document.get("probes", {}).items():
        first = next(METRICS[name] for name in METRICS if name in values)  # has the chance of the document
        values = {**values, first.chance: document["chance"], "majority_top1": document.get("majority")}
        found += [
            (f"{PROBE}.{probe}.{name}", values[name]) for name in (*METRICS, *CHANCES) if name in values
        ]
    return found


def _of_run(work: Work, folder: Path) -> Metrics:
    """The last losses of a pre-training, or the validation of the best weights of a fine-tuning."""
    run = work.run(folder)
    _, rows = read_run(run)
    if work.stage == "pretrain":
        losses = [row["loss"] for row in rows if row.get("loss") is not None][-LAST_STEPS:]
        return {PRETRAIN_LOSS: sum(losses) / len(losses)} if losses else {}
    chosen_by = metric_of_run(run, rows)
    if chosen_by is None:
        return {}  # without data.val
    metric = METRICS[chosen_by]
    best = Validations(rows, chosen_by, higher=metric.higher, percent=metric.percent).best or {}
    found = {name: value for name, value in sorted(best.items()) if name.startswith(VALIDATION)}
    chance = chance_of_run(run, chosen_by)
    return found if chance is None else found | {f"{VALIDATION}{metric.chance}": chance}


def cost_of_training(work: Work, folder: Path) -> tuple[float, float]:
    """The GMACs of the forward passes of a finished training, and the hours of its steps."""
    run = work.run(folder)
    environment, rows = read_run(run)
    steps = [row for row in rows if "loss" in row]
    batch = environment["plan"]["batch_size"]
    spec = ModelSpec.from_settings(read_header(run / WEIGHTS).settings, source=run / WEIGHTS)
    gmacs = steps[-1]["step"] * batch * macs_of_clip(spec) / 1e9
    seconds = sum(batch / row["clips_per_second"] for row in steps if row.get("clips_per_second"))
    return gmacs, seconds / SECONDS_PER_HOUR


def read_work(work: Work, folder: Path) -> WorkRow | None:
    """The numbers of a work; None if it has not finished."""
    if not is_finished(work, folder):
        return None
    gmacs, hours = cost_of_training(work, folder) if work.stage in RUNS else (0.0, 0.0)
    return WorkRow(metrics_of(work, folder), gmacs, hours)


def collect(plan: SweepPlan, rows: Mapping[str, WorkRow], failures: Mapping[str, str]) -> dict[str, Any]:
    """Return the document of `results.json`.

    Args:
        rows: the numbers of finished work, by its name.
        failures: the errors of failed work, by its name.
    """
    works = plan.works()
    return nonfinite_as_null(
        {
            **plan.header,
            "metric": plan.headline,
            "jobs": {"all": len(works), "finished": len(rows)},
            "arms": [_arm(plan, arm, rows) for arm in plan.arms],
            "failures": [
                {"arms": plan.users(work), "seed": work.seed, "job": name, "error": failures[name]}
                for name, work in works.items()
                if name in failures
            ],
        }
    )


def _arm(plan: SweepPlan, arm: PlannedArm, read: Mapping[str, WorkRow]) -> dict[str, Any]:
    """The rows of an arm, one for each seed."""
    rows = []
    for seed in plan.seeds:
        names = [work.name for work in arm.works[seed]]
        done = [read[name] for name in names if name in read]
        metrics: Metrics = {}
        for row in done:
            metrics |= row.metrics
        rows.append(
            {
                "seed": seed,
                "finished": len(done) == len(names),
                "gmacs": sum(row.gmacs for row in done),
                "hours": sum(row.hours for row in done),
                "metrics": metrics,
                "jobs": names,
            }
        )
    return {
        "arm": arm.name,
        "overrides": arm.overrides,
        "stages": list(arm.stages),
        "budgets": {stage: budget._asdict() for stage, budget in arm.budgets.items()},
        "seeds": rows,
    }
