"""`everest eval` and `everest probe`: a model or an encoder on the test videos; `everest sweep`: many."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from everest.errors import RecipeError
from everest.system.events import ignore_event
from everest.system.launch import read_devices
from everest.system.processes import is_main
from everest.system.run_folder import RECIPE_FILE
from everest_cli import options as o
from everest_cli.options import argument, name_program, option, run_in_each_process
from everest_cli.output import Display, print_json, print_table, say

RUN_COMMAND = "run"  # the command for any other first word


def evaluate(
    run: o.LabeledListOptions,
    predictions: Path | None = option("--predictions F", "Write a CSV file with a row per video."),
    report: Path | None = option("--report DIR", "Write a page with figures to this folder."),
    group: str | None = option(
        "--group folder|REGEX", "Intervals over groups by folder or file name, as in training [the list's]."
    ),
    overwrite: bool = o.OVERWRITE_FILES,
    gpus: str = o.GPUS,
    processes: int | None = o.PROCESSES,
) -> None:
    """Evaluate a classifier on clips x crops views of every video of data.test.

    C may also be an ONNX file of `everest export`, next to the recipe.yaml of its run or with --recipe.

    Example: everest eval --checkpoint runs/finetune/ucf101 --data /data/ucf101
    """
    from everest.checkpoints.load import ONNX_SUFFIX
    from everest.config.merge import read_overrides

    weights, recipe = run.find()
    changed = {key[:2] for _, values in read_overrides(run.overrides or (), []) for key in values}
    selects = ("finetune", "selection") in changed
    if weights.suffix == ONNX_SUFFIX:  # an ONNX file cannot follow these options
        given = {
            "--set finetune.selection": selects,
            "--set train.precision": ("train", "precision") in changed,
            "--which": run.which is not None,
            "--gpus": gpus not in ("auto", "cpu"),
        }
        if refused := [name for name, is_given in given.items() if is_given]:
            raise RecipeError(
                f"{', '.join(refused)}: {weights} is exported and runs on the CPU as it is; evaluate its "
                "checkpoint, or export it again"
            )
        gpus = "cpu"
    on_cpu = run_in_each_process(gpus, processes)

    from everest.evaluation.evaluation import EvaluationFiles, evaluate
    from everest.metrics.names import measurement_rows, metric_rows, views_text
    from everest.system.accelerator import make_accelerator, make_runtime

    files = EvaluationFiles(predictions=predictions, page=report, overwrite=overwrite)
    accelerator = make_accelerator(recipe.train.precision, tf32=recipe.train.tf32, cpu=on_cpu)
    with Display(quiet=run.quiet or not is_main()) as display:
        result = evaluate(
            recipe,
            weights,
            make_runtime(accelerator),
            report=display.report,
            files=files,
            saved_selection=not (selects or (weights.parent / RECIPE_FILE).is_file()),
            group=group,
        )
    accelerator.end_training()
    if is_main() and run.as_json:
        print_json(result)
    elif is_main():
        print_table((views_text(result), "value", "95 % interval", "chance"), metric_rows(result))
        print_table(("", ""), measurement_rows(result), show_header=False)


def probe(
    run: o.LabeledListOptions,
    probes: str = option("--probes NAME,…", "Probes to train.", "knn,linear,attentive"),
    batch: int = o.BATCH,
    gpus: str = o.ONE_GPU,
) -> None:
    """Probe a frozen encoder: train simple classifiers on data.train, evaluate them on data.test.

    The features are of the central clip of each video.

    Example: everest probe --checkpoint runs/pretrain --recipe ucf101 --data /data/ucf101
    """
    weights, recipe = run.find()

    from everest.inference.opened_model import OpenedModel
    from everest.metrics.names import METRICS, value_text
    from everest.probes.probe import probe

    names = [name.strip() for name in probes.split(",")]
    model = OpenedModel.open(weights, kind="transformer", recipe=recipe, views=(1, 1), cpu=o.is_on_cpu(gpus))
    with Display(quiet=run.quiet) as display:
        result = probe(model, names, batch=batch, report=display.report)
    if run.as_json:
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
        shares = {"encoder": retrieval["precision@10"], **retrieval["baselines"]}
        measured = {name.replace("_", " "): share for name, share in shares.items() if share is not None}
        text = (
            ", ".join(f"{name} {share:.1f} %" for name, share in measured.items())
            or "no video has one of its class in another group"
        )
        yield f"{start}same class among the 10 nearest videos of other groups: {text}"


class SweepGroup(TyperGroup):
    """A group that takes `report` as a subcommand, and any other word as the recipe of a sweep."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if not args or args[0] not in self.commands:
            args = [RUN_COMMAND, *(args or ["--help"])]
        return super().parse_args(ctx, args)


class SweepCommand(TyperCommand):
    """A command that shows its usage without the name of the subcommand."""

    def format_usage(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        assert ctx.parent is not None
        formatter.write_usage(ctx.parent.command_path, " ".join(self.collect_usage_pieces(ctx)))


app = typer.Typer(cls=SweepGroup, help="Compare settings over seeds, with intervals.")


@app.command(RUN_COMMAND, cls=SweepCommand)
def sweep(
    context: typer.Context,
    recipe: str = argument("RECIPE", "A shipped recipe, a recipe file, or a sweep file."),
    output: Path = option("--output -o DIR", "Folder of the sweep.", ...),
    over: list[str] | None = option("--over KEY=A,B,…", "Values to compare; repeat for all combinations."),
    overrides: list[str] | None = option("--set KEY=VALUE", "Override a value for all arms; repeatable."),
    seeds: str | None = option("--seeds N|A,B,…", "Number or list of seeds. [1]"),
    stages: str | None = option(
        "--stages STAGE,…", "pretrain, finetune, eval, probe. [pretrain,finetune,eval]"
    ),
    init: str | None = option("--init C", "Weights that the first stage starts from, or none. [none]"),
    data: str | None = o.DATA_ROOT,
    jobs: int = option("--jobs N", "Jobs at once.", 1, min=1),
    gpus: str = o.GPUS,
    dry_run: bool = option("--dry-run", "Check all arms and list the jobs; write nothing.", False),
    quiet: bool = o.QUIET,
) -> None:
    """Run variants (arms) of a recipe over several seeds; prints the folder.

    Example: everest sweep small --over finetune.steps=300,600 --seeds 3 --data VIDEOS -o runs/steps

    The same command resumes. `everest sweep report DIR` compares the arms.
    """
    from everest_workflows.sweep.request import read_request

    changes = {"overrides": overrides or (), "over": over or ()}
    request = read_request(recipe, **changes, seeds=seeds, stages=stages, init=init)

    from everest_workflows.sweep.run import JOB_FAILED, JobLauncher, check_folder, run_sweep
    from everest_workflows.sweep.sweep_plan import plan_sweep

    plan = plan_sweep(request, data=data)
    check_folder(output)
    if dry_run:
        for job in plan.jobs().values():
            typer.echo(f"{job.name}  {', '.join(plan.users(job))}, seed {job.seed}")
        return
    modules = context.find_root().params.get("imports") or []
    program = [*name_program(), *(word for module in modules for word in ("--import", module))]
    launcher = JobLauncher(program=program, devices=read_devices(gpus, None), parallel=jobs)
    with Display(quiet=quiet) as display:
        results = run_sweep(plan, output, launcher, ignore_event if quiet else display.report)
    typer.echo(output)
    say(*map(_format_failure, results["failures"]))
    if results["failures"]:
        raise typer.Exit(JOB_FAILED)
    if not quiet:
        say(f"next:\n  {shlex.join(['everest', 'sweep', 'report', str(output)])}")


def _format_failure(failure: dict[str, Any]) -> str:
    return f"{', '.join(failure['arms'])}, seed {failure['seed']}: {failure['job']}, {failure['error']}"


@app.command()
def report(
    folder: Path = argument("DIR", "The folder of a sweep."),
    metric: str | None = option("--metric NAME", "Metric to compare, such as macro_f1 or HEAD.top1."),
    against: str | None = option("--against ARM", "Arm to compare with. [the sweep's]"),
    as_json: bool = o.AS_JSON,
) -> None:
    """Compare the arms of a sweep: means, 95 % intervals, differences by seed. Draws DIR/report.png.

    Example: everest sweep report runs/steps
    """
    from everest.system.text import damage_errors
    from everest_workflows.sweep.report import draw_report, list_report_notes, make_report, make_report_table
    from everest_workflows.sweep.results import RESULTS_FILE, RESULTS_FIX, read_results

    with damage_errors(folder / RESULTS_FILE, fix=RESULTS_FIX):
        document = make_report(read_results(folder), metric=metric, against=against)
        columns, *rows = make_report_table(document)
        lines = [*list_report_notes(document), *map(_format_failure, document["failures"])]
    figure = folder / ("report.png" if metric is None else f"report-{metric}.png")
    draw_report(figure, document)
    document["figure"] = str(figure)
    if as_json:
        print_json(document)
        return
    if document["summary"]:
        typer.echo(document["summary"])
    print_table(columns, rows)
    typer.echo("\n".join([*lines, document["figure"]]))
