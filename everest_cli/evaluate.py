"""`everest eval` and `everest probe`: a model or an encoder on the test videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import typer

from everest.errors import RecipeError
from everest.system.processes import is_main
from everest.system.run_folder import RECIPE_FILE
from everest.system.text import plural
from everest_cli import options as o
from everest_cli.model_options import LabeledListOptions, refuse_exported
from everest_cli.options import option, run_in_each_process
from everest_cli.output import Display, print_json, print_table

MAX_CHANGED: Final = 10  # default: changed predictions that are printed


def evaluate(
    options: LabeledListOptions,
    predictions: Path | None = option("--predictions F", "Write a CSV file with a row per video."),
    report: Path | None = option("--report DIR", "Write a page with figures to this folder."),
    group: str | None = option(
        "--group folder|REGEX", "Intervals over groups by folder or file name, as in training [the list's]."
    ),
    against: str | None = option(
        "--against OLD", "Compare with this checkpoint or .onnx file on the videos."
    ),
    overwrite: bool = o.OVERWRITE_FILES,
    gpus: str = o.GPUS,
    processes: int | None = o.PROCESSES,
) -> None:
    """Evaluate a classifier on clips x crops views of every video of data.test.

    C may also be an ONNX file of `everest export`, with the recipe.yaml of its run, --recipe or --data.

    Example: everest eval --checkpoint runs/finetune/ucf101 --data /data/ucf101
    """
    from everest.checkpoints.load import ONNX_SUFFIX
    from everest.config.merge import read_overrides

    weights, recipe = options.find()
    if recipe.data.test is None:
        _refuse_folds(weights)
    changed = {key[:2] for _, values in read_overrides(options.overrides or (), []) for key in values}
    selects = ("finetune", "selection") in changed
    refuse_exported(
        weights,
        {
            "--set finetune.selection": selects,
            "--set train.precision": ("train", "precision") in changed,
            "--which": options.which is not None,
            "--gpus": gpus not in ("auto", "cpu"),
        },
    )
    if weights.suffix == ONNX_SUFFIX:
        gpus = "cpu"
    compared = None if against is None else replace(options, checkpoint=against).find()
    on_cpu = run_in_each_process(gpus, processes)

    from everest.evaluation.evaluation import EvaluationFiles, evaluate_checkpoint
    from everest.metrics.names import measurement_rows, metric_rows, views_text
    from everest.system.accelerator import make_accelerator, make_runtime

    files = EvaluationFiles(predictions=predictions, page=report, overwrite=overwrite)
    accelerator = make_accelerator(recipe.train.precision, cpu=on_cpu)
    with Display() as display:
        result = evaluate_checkpoint(
            recipe,
            weights,
            make_runtime(accelerator),
            emit=display.emit,
            files=files,
            saved_selection=not (selects or (weights.parent / RECIPE_FILE).is_file()),
            group=group,
            against=compared,
        )
    accelerator.end_training()
    if is_main() and options.as_json:
        print_json(result)
    elif is_main():
        print_table((views_text(result), "value", "95 % interval", "chance"), metric_rows(result))
        print_table(("", ""), measurement_rows(result), show_header=False)
        if against is not None:
            typer.echo("\n".join(list_changes(result)))


def _refuse_folds(weights: Path) -> None:
    """Raise RecipeError for a project that was tested in folds: its final model has no test list."""
    from everest_workflows.project.result import read_project_result

    result = read_project_result(weights)
    if result is not None and result.folds:
        fix = "name new labeled videos: --data DIR --set data.test=LIST"
        raise RecipeError(f"{weights}: was tested in folds, see {result.report}; {fix}")


def list_changes(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of `eval --against`: the difference, and the videos whose prediction changed."""
    from everest.metrics.names import METRICS

    metric = METRICS[result["difference_of"]]
    unit = " points" if metric.is_percent else ""
    ends = "" if result["interval"] is None else "{:+.3g} to {:+.3g}".format(*result["interval"])
    interval = f" (95 % CI of the paired difference: {ends})" if ends else " (one group: no interval)"
    size = plural(result["compared"], "video")
    yield f"{metric.title} {result['difference']:+.3g}{unit} against {result['against']} on {size}{interval}"
    changed = result["changed"]
    right, wrong = (sum(row[key] == row["label"] for row in changed) for key in ("new", "old"))
    yield f"{plural(len(changed), 'prediction')} changed: {right} now right, {wrong} now wrong"
    for row in changed[:MAX_CHANGED]:
        old, new, label = (row[key] or "none" for key in ("old", "new", "label"))
        yield f"  {row['video']}: {old} -> {new} (true {label})"
    if len(changed) > MAX_CHANGED:
        yield f"  and {len(changed) - MAX_CHANGED} more: --json has all"


def probe(
    options: LabeledListOptions,
    probes: str = option("--probes NAME,…", "Probes to train.", "knn,linear,attentive"),
    batch: int = o.BATCH,
    gpus: str = o.ONE_GPU,
) -> None:
    """Probe a frozen encoder: train simple classifiers on data.train, evaluate them on data.test.

    The features are of the central clip of each video.

    Example: everest probe --checkpoint runs/pretrain --recipe ucf101 --data /data/ucf101
    """
    weights, recipe = options.find()

    from everest.inference.opened_model import OpenedModel
    from everest.metrics.names import METRICS, value_text
    from everest.probes.probe import probe

    names = [name.strip() for name in probes.split(",")]
    model = OpenedModel.open(weights, kind="transformer", recipe=recipe, views=(1, 1), cpu=o.is_on_cpu(gpus))
    with Display() as display:
        result = probe(model, names, batch=batch, emit=display.emit)
    if options.as_json:
        print_json(result)
        return
    tables: dict[tuple[str, ...], list[tuple[str, ...]]] = {}  # heads with the same task share a table
    by_head = result.get("heads", {"": result})
    for head, measured in by_head.items():
        rows = dict(measured["probes"])
        for baseline, probed in measured["baselines"].items():
            rows |= {f"{name}, {baseline.replace('_', ' ')}": row for name, row in probed.items()}
        metrics = tuple(name for name in METRICS if name in next(iter(rows.values())))
        rows |= {name: {metrics[0]: measured[name]} for name in ("majority", "chance") if name in measured}
        for name, row in rows.items():
            texts = ("" if row.get(key) is None else value_text(key, row[key]) for key in metrics)
            tables.setdefault(metrics, []).append((f"{head} {name}".strip(), *texts))
    for metrics, lines in tables.items():
        print_table(("probe", *(METRICS[name].title for name in metrics)), lines)
    for text in describe_nearest(by_head):
        typer.echo(text)
    skipped = f", {result['skipped']} skipped" if result["skipped"] else ""
    typer.echo(f"{result['train']} training videos, {result['test']} test videos{skipped}")


def describe_nearest(by_head: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Yield what the nearest videos in `everest probe` have in common; a single head has the name ""."""
    for head, result in by_head.items():
        start, retrieval = f"{head}: " if head else "", result.get("retrieval")
        if retrieval is None:
            continue
        fractions = {"encoder": retrieval["precision@10"], **retrieval["baselines"]}
        measured = {
            name.replace("_", " "): fraction for name, fraction in fractions.items() if fraction is not None
        }
        text = (
            ", ".join(f"{name} {fraction:.1f} %" for name, fraction in measured.items())
            or "no video has one of its class in another group"
        )
        yield f"{start}same class among the 10 nearest videos of other groups: {text}"
