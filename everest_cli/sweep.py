"""`everest sweep`: many runs, compared."""

from __future__ import annotations

import shlex
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from everest.system.events import ignore_event
from everest.system.launch import read_devices
from everest_cli import options as o
from everest_cli.options import argument, name_program, option
from everest_cli.output import Display, Quiet, hint, print_json, print_table, say

RUN_COMMAND = "run"  # the command for any other first word
TableFormat = Literal["markdown", "csv", "latex"]


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
    overrides: list[str] | None = option("--set KEY=VALUE", "Override a value for all variants; repeatable."),
    seeds: str | None = option("--seeds N|A,B,…", "Number or list of seeds. [1]"),
    stages: str | None = option(
        "--stages STAGE,…", "pretrain, finetune, eval, probe. [pretrain,finetune,eval]"
    ),
    init: str | None = option("--init C", "Weights that the first stage starts from, or none. [none]"),
    data: str | None = o.DATA_ROOT,
    jobs: int = option("--jobs N", "Jobs at once.", 1, min=1),
    gpus: str = o.GPUS,
    dry_run: bool = option("--dry-run", "Check all variants and list the jobs; write nothing.", False),
) -> None:
    """Run variants of a recipe over several seeds; prints the folder.

    Example: everest sweep small --over finetune.steps=300,600 --seeds 3 --data VIDEOS -o runs/steps

    The same command resumes. `everest sweep report DIR` compares the variants.
    """
    from everest_workflows.sweep.request import read_request

    changes = {"overrides": overrides or (), "over": over or ()}
    request = read_request(recipe, **changes, seeds=seeds, stages=stages, init=init)

    from everest_workflows.sweep.run import JOB_FAILED, JobLauncher, check_folder, run_sweep
    from everest_workflows.sweep.sweep_jobs import plan_sweep

    plan = plan_sweep(request, data=data)
    check_folder(output)
    if dry_run:
        from everest.engine.schedule import MIN_STEPS, describe_few

        for job in plan.jobs().values():
            steps = f", {job.steps} steps" if job.steps else ""
            typer.echo(f"{job.name}  {', '.join(plan.variants_using(job))}, seed {job.seed}{steps}")
        few = sorted({job.steps for job in plan.jobs().values() if job.steps and job.steps < MIN_STEPS})
        say(*(f"warning: {describe_few(steps)}" for steps in few))
        return
    modules = context.find_root().params.get("imports") or []
    program = [*name_program(), *(word for module in modules for word in ("--import", module))]
    launcher = JobLauncher(program=program, devices=read_devices(gpus, None), parallel=jobs)
    with Display() as display:
        results = run_sweep(plan, output, launcher, ignore_event if Quiet.is_on else display.emit)
    typer.echo(output)
    say(*map(_format_failure, results["failures"]))
    if results["failures"]:
        raise typer.Exit(JOB_FAILED)
    hint(f"next:\n  {shlex.join(['everest', 'sweep', 'report', str(output)])}")


def _format_failure(failure: dict[str, Any]) -> str:
    return f"{', '.join(failure['variants'])}, seed {failure['seed']}: {failure['job']}, {failure['error']}"


@app.command()
def report(
    folder: Path = argument("DIR", "The folder of a sweep."),
    metrics: list[str] | None = option("--metric NAME", "Metric, such as macro_f1 or HEAD.top1; repeatable."),
    against: str | None = option("--against VARIANT", "Variant to compare with. [the sweep's]"),
    tuned: str | None = option(
        "--tuned KEY", "Of the variants that differ only in this setting, report the best on data.val."
    ),
    kind: TableFormat | None = option("--format", "Print only the table in this format. [terminal]"),
    as_json: bool = o.AS_JSON,
) -> None:
    """Compare variants: means, 95 % intervals, differences by seed. Writes DIR/report.html, .png, .pdf.

    Example: everest sweep report runs/steps
    """
    from everest.evaluation.page import write_summary_page
    from everest.system.text import damage_errors
    from everest_workflows.sweep.page import summarize_sweep
    from everest_workflows.sweep.report import draw_report, list_report_notes, make_report
    from everest_workflows.sweep.results import RESULTS_FILE, RESULTS_FIX, read_results
    from everest_workflows.sweep.table import format_rows, make_report_table

    choices = {"against": against, "tuned": tuned, "folder": folder}
    with damage_errors(folder / RESULTS_FILE, fix=RESULTS_FIX):
        results = read_results(folder)
        documents = [make_report(results, metric=metric, **choices) for metric in metrics or [None]]
        columns, *rows = make_report_table(*documents)
        notes = dict.fromkeys(chain.from_iterable(map(list_report_notes, documents)))
        failures = list(map(_format_failure, results["failures"]))
    for document, metric in zip(documents, metrics or [None], strict=True):
        figure = folder / ("report.png" if metric is None else f"report-{metric}.png")
        draw_report(figure, document)
        draw_report(figure.with_suffix(".pdf"), document)
        document["figure"] = str(figure)
    page = folder / "report.html"
    write_summary_page(page, summarize_sweep(documents, [columns, *rows], list(notes)))
    if as_json:
        print_json(documents[0] if len(documents) == 1 else documents)
    elif kind is not None:
        typer.echo(format_rows([columns, *rows], kind, [results["summary"], *notes]), nl=False)
        say(*notes)
    else:
        if results["summary"]:
            typer.echo(results["summary"])
        print_table(columns, rows)
        figures = (document["figure"] for document in documents)
        typer.echo("\n".join([*notes, *failures, *figures, f"page: {page}"]))
