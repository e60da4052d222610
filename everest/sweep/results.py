"""The numbers of every arm and seed, read from the finished work of a sweep, and the file `results.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic does not take typing's on Python 3.11

from everest.engine.health import Validations
from everest.engine.listing import metric_of_run, read_run, summarize
from everest.errors import RecipeError
from everest.figures.curves import chance_of_run
from everest.metrics.names import CHANCES, METRICS
from everest.models.spec import ModelSpec
from everest.sweep.budgets import macs_of_clip
from everest.sweep.metric_names import PRETRAIN_LOSS, PROBE, VALIDATION
from everest.sweep.plan import PlannedArm, SweepPlan
from everest.sweep.works import RUNS, Work
from everest.system.json_text import nonfinite_as_null, read_json
from everest.system.run_folder import WEIGHTS
from everest.system.weights_header import read_header

LAST_STEPS: Final = 50  # our choice: of a pre-training, whose losses are averaged
RESULTS: Final = "results.json"
LARGEST: Final = 1e100  # our choice: means and intervals of larger numbers may overflow
Metrics = dict[str, float | None]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


class WorkRow(NamedTuple):
    """The numbers of a finished work."""

    metrics: Metrics
    gmacs: float  # of the forward passes of all its steps; 0 of an evaluation
    hours: float


def read_work(work: Work, folder: Path) -> WorkRow | None:
    """The numbers of a work; None if its run is not finished, or its evaluation has no result."""
    if work.stage not in RUNS:
        try:
            document = read_json(work.file(folder, "json"))
        except (OSError, ValueError):
            return None
        return WorkRow(_numbers(document), 0.0, 0.0) if isinstance(document, dict) else None
    run = work.run(folder)
    if not run.is_dir() or summarize(run).state != "finished":
        return None
    environment, rows = read_run(run)
    steps = [row for row in rows if "loss" in row]
    batch = environment["plan"]["batch_size"]
    spec = ModelSpec.from_settings(read_header(run / WEIGHTS).settings, source=run / WEIGHTS)
    gmacs = steps[-1]["step"] * batch * macs_of_clip(spec) / 1e9
    seconds = sum(batch / row["clips_per_second"] for row in steps if row.get("clips_per_second"))
    return WorkRow(metrics_of_run(work.stage, run, rows), gmacs, seconds / 3600)


def _numbers(document: Mapping[str, Any], place: str = "") -> Metrics:
    """The metrics of an evaluation, or of every probe, for each head."""
    names = (*METRICS, *CHANCES)
    found = {f"{place}{name}": document[name] for name in names if name in document}
    for probe, values in document.get("probes", {}).items():
        first = next(METRICS[name] for name in METRICS if name in values)  # has the chance of the document
        values = {**values, first.chance: document["chance"], "majority_top1": document.get("majority")}
        found |= {f"{place}{PROBE}.{probe}.{name}": values[name] for name in names if name in values}
    for head, of_head in document.get("heads", {}).items():
        found |= _numbers(of_head, f"{head}.")
    return found


def metrics_of_run(stage: str, run: Path, rows: list[dict[str, Any]]) -> Metrics:
    """The last losses of a pre-training, or the validation of the best weights of a fine-tuning.

    Args:
        rows: of its metrics.jsonl.
    """
    if stage == "pretrain":
        losses = [row["loss"] for row in rows if row.get("loss") is not None][-LAST_STEPS:]
        return {PRETRAIN_LOSS: sum(losses) / len(losses)} if losses else {}
    chosen_by = metric_of_run(run, rows)
    if chosen_by is None:
        return {}  # without data.val
    best = Validations(rows, chosen_by).best or {}
    found = {name: value for name, value in sorted(best.items()) if name.startswith(VALIDATION)}
    chance = chance_of_run(run, chosen_by)
    return found if chance is None else found | {f"{VALIDATION}{METRICS[chosen_by].chance}": chance}


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
    for seed in plan.request.seeds:
        names = [work.name for work in arm.works[seed]]
        done = [read[name] for name in names if name in read]
        metrics: Metrics = {}
        for row in done:
            metrics |= row.metrics
        row = {
            "seed": seed,
            "finished": len(done) == len(names),
            "gmacs": sum(row.gmacs for row in done),
            "hours": sum(row.hours for row in done),
            "metrics": metrics,
            "jobs": names,
        }
        rows.append(row)
    return {
        "arm": arm.name,
        "overrides": arm.overrides,
        "stages": list(arm.stages),
        "budgets": {stage: budget._asdict() for stage, budget in arm.budgets.items()},
        "seeds": rows,
    }


class Jobs(TypedDict):
    all: int
    finished: int


class SeedRow(TypedDict):
    seed: int
    gmacs: Number
    hours: Number
    metrics: dict[str, Number | None]


class ArmRows(TypedDict):
    arm: str
    overrides: dict[str, str]
    seeds: list[SeedRow]


class FailedJob(TypedDict):
    arms: list[str]
    seed: int
    job: str
    error: str


class Results(TypedDict):
    """The keys of a sweep's results that its report reads."""

    recipe: str
    summary: str
    stages: list[str]
    against: str
    equal: str
    metric: str
    jobs: Jobs
    arms: Annotated[list[ArmRows], Field(min_length=1)]
    failures: list[FailedJob]


_RESULTS: Final = TypeAdapter(Results)


def read_results(folder: Path) -> dict[str, Any]:
    """Read `results.json`."""
    path = folder / RESULTS
    try:
        document = read_json(path)
        _RESULTS.validate_python(document, strict=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecipeError(f"{folder}: no {RESULTS}; name the folder of `everest sweep`") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RecipeError(
            f"{path}: damaged ({place}: {first['msg']}); repeat the command of the sweep"
        ) from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: damaged ({error}); repeat the command of the sweep") from error
    return document
