"""The numbers of every variant and seed, read from the finished jobs of a sweep, and the file `results.json`.

The name of a metric is that of `everest eval --json`, after `HEAD.` if there are several heads. Metrics of
probes have `probe.NAME.` before it, metrics of data.val `val_`; `pretrain_loss` is the mean of the last steps
of a pre-training. The first metric of a job is the one that it is judged by.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from everest.config.heads import BACKGROUND, BACKGROUND_METRIC
from everest.config.stage_settings import STAGES
from everest.config.values import StageName
from everest.engine.health import ValidationHistory
from everest.engine.listing import hours_of_steps, metric_of_run, read_run, summarize
from everest.errors import RecipeError
from everest.metrics.names import CHANCE_NAMES, METRICS, Metric, find_metric
from everest.models.cost import count_frozen_macs, count_macs
from everest.models.spec import read_model_spec
from everest.system.run_folder import WEIGHTS_FILE
from everest.system.text import MALFORMED_ERRORS, damage_errors, load_json, nonfinite_as_null, read_json
from everest.system.weights_header import read_header
from everest_workflows.sweep.sweep_jobs import Job, SweepJobs

RESULTS_FILE: Final = "results.json"
RESULTS_FIX: Final = "repeat the command of the sweep"
VALIDATION_PREFIX: Final = "val_"
# The first one that a variant has judges it.
STAGES_BY_PRIORITY: Final = ("eval", "probe", "finetune", "pretrain")
Metrics = dict[str, float | None]


class JobNumbers(NamedTuple):
    """The numbers of a finished job."""

    metrics: Metrics
    gmacs: float = 0.0  # of the forward passes of all its steps; 0 of an evaluation
    hours: float = 0.0
    memory_bytes: int = 0  # the peak of a process
    view_gmacs: float | None = None  # of the forward pass of a view in an evaluation


def read_job(job: Job, folder: Path) -> JobNumbers | None:
    """The numbers of a job; None if its run is not finished, or its evaluation has no result."""
    if job.stage not in STAGES:
        with suppress(OSError, *MALFORMED_ERRORS):  # missing or damaged
            document = read_json(job.file(folder, "json"))
            return JobNumbers(_read_evaluation_metrics(document), view_gmacs=document.get("gmacs"))
        return None
    run = folder / job.name
    if not run.is_dir() or summarize(run).state != "finished":
        return None
    spec = read_model_spec(read_header(run / WEIGHTS_FILE).settings, source=run / WEIGHTS_FILE)
    macs = count_macs(spec).total + (count_frozen_macs(spec) or 0)  # of a clip
    environment, rows = read_run(run)
    with damage_errors(run, fix="remove it"):
        batch = environment.plan.batch_size
        steps = [row for row in rows if "loss" in row]
        metrics = read_run_metrics(job.stage, run, rows)
        gmacs = steps[-1]["step"] * batch * macs / 1e9
        memory = max(row.get("memory_bytes") or 0 for row in steps)
        return JobNumbers(metrics, gmacs, hours_of_steps(steps, batch)[-1], memory)


def _read_evaluation_metrics(document: Mapping[str, Any], prefix: str = "") -> Metrics:
    """The metrics of an evaluation, or of every probe, for each head."""
    names = [*METRICS, *CHANCE_NAMES]
    if any(row["name"] == BACKGROUND for row in document.get("per_class") or ()):
        names.insert(0, BACKGROUND_METRIC)
    metrics = {f"{prefix}{name}": document[name] for name in names if name in document}
    probes = document.get("probes", {})
    for probe in sorted(probes, key=lambda probe: probe != "linear"):  # it judges an encoder
        first, *_ = (METRICS[name] for name in METRICS if name in probes[probe])  # `chance` is of this one
        values = {**probes[probe], first.chance: document["chance"]}
        if "majority" in document:
            values["majority_top1"] = document["majority"]
        metrics |= {f"{prefix}probe.{probe}.{name}": values[name] for name in names if name in values}
    for head, of_head in document.get("heads", {}).items():
        metrics |= _read_evaluation_metrics(of_head, f"{head}.")
    return metrics


def read_run_metrics(stage: StageName, run: Path, rows: list[dict[str, Any]]) -> Metrics:
    """The last losses in the rows of a pre-training; of a fine-tuning, the validation of the best weights."""
    if stage == "pretrain":
        losses = [row["loss"] for row in rows if row.get("loss") is not None][-50:]  # heuristic
        return {"pretrain_loss": sum(losses) / len(losses)} if losses else {}
    chosen_by = metric_of_run(run, rows)
    if chosen_by is None:
        return {}  # without data.val
    best = ValidationHistory(rows, chosen_by).best or {}
    names = sorted(best, key=lambda name: (name != f"{VALIDATION_PREFIX}{chosen_by}", name))
    return {name: best[name] for name in names if name.startswith(VALIDATION_PREFIX)}


def split_metric(name: str) -> tuple[str, Metric | None]:
    """What a name has before its metric, such as `HEAD.` or `probe.linear.`, and the metric."""
    metric = find_metric(name)
    known = next((key for key in METRICS if METRICS[key] is metric), "")
    return name.removesuffix(known), metric


def make_metric_title(name: str) -> str:
    """A name as tables and figures show it: `top-1`, `verb top-1`, `probe linear top-1`."""
    prefix, metric = split_metric(name)
    prefix = prefix.replace(".", " ").replace("_", " ").strip()
    return f"{prefix} {metric.title}".strip() if metric is not None else prefix


def collect(sweep: SweepJobs, rows: Mapping[str, JobNumbers], failures: Mapping[str, str]) -> dict[str, Any]:
    """The document of `results.json`, from finished jobs and the errors of failed ones by their names."""
    jobs = sweep.jobs()
    request = sweep.request
    variants = []
    for variant in sweep.variants:
        seeds = []
        for seed, planned in variant.jobs.items():
            done = {job.stage: rows[job.name] for job in planned if job.name in rows}
            metrics: Metrics = {}
            for stage in STAGES_BY_PRIORITY:
                metrics |= done[stage].metrics if stage in done else {}
            row = {"seed": seed, "finished": len(done) == len(planned)}
            row["gmacs"] = sum(part.gmacs for part in done.values())
            row["hours"] = sum(part.hours for part in done.values())
            row["view_gmacs"] = done["eval"].view_gmacs if "eval" in done else None
            row["memory_bytes"] = max((part.memory_bytes for part in done.values()), default=0)
            seeds.append({**row, "metrics": metrics, "jobs": [job.name for job in planned]})
        about = {"variant": variant.name, "overrides": variant.overrides, "stages": list(variant.stages)}
        variants.append({**about, "init": variant.init, "seeds": seeds})
    # The first metric that was measured: where all jobs have finished, if possible of the variant `against`.
    tested = [(variant["variant"], row) for variant in variants for row in variant["seeds"]]
    tested.sort(key=lambda pair: (not pair[1]["finished"], pair[0] != request.against))
    measured = (name for _, row in tested for name, value in row["metrics"].items() if value is not None)
    document = {
        "recipe": request.recipe.name,
        "summary": request.summary,
        "stages": list(request.stages),
        "seeds": list(request.seeds),
        "against": request.against,
        "metric": next(measured, None),
        "jobs": {"all": len(jobs), "finished": len(rows)},
        "variants": variants,
        "failures": [
            {"variants": sweep.variants_using(job), "seed": job.seed, "job": name, "error": failures[name]}
            for name, job in jobs.items()
            if name in failures
        ],
    }
    return nonfinite_as_null(document)


def read_results(folder: Path) -> dict[str, Any]:
    if not (folder / RESULTS_FILE).exists():
        raise RecipeError(f"{folder}: no {RESULTS_FILE}; name the folder of `everest sweep`")
    return load_json(folder / RESULTS_FILE, fix=RESULTS_FIX)


def is_sweep_folder(folder: Path) -> bool:
    return (folder / RESULTS_FILE).is_file()


def list_runs(folder: Path, stage: StageName | None) -> list[tuple[str, Path]]:
    """List the runs of a stage (None: the last one that trains) that have a step, each with its variant."""
    runs = []
    with damage_errors(folder / RESULTS_FILE, fix=RESULTS_FIX):
        for variant in read_results(folder)["variants"]:
            for row in variant["seeds"]:
                trained = (name for name in row["jobs"] if name.startswith(stage or STAGES))
                last = [folder / name for name in trained][-1:]
                runs += [
                    (variant["variant"], run)
                    for run in last
                    if run.is_dir() and summarize(run).step is not None
                ]
    if not runs:
        raise RecipeError(f"{folder}: no run of {stage or 'a stage that trains'} has a step yet")
    return runs
