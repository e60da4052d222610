"""`everest sweep`: run the arms of a sweep, and report them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from everest.system.events import silent
from everest.system.launch import read_devices
from everest_cli import options as o
from everest_cli.options import argument, option
from everest_cli.output import Display, print_json, print_table, say
from everest_cli.processes import this_program

RUN = "run"  # the command of any other first word


class SweepGroup(TyperGroup):
    """Takes `report` as a subcommand, and anything else as the recipe of a sweep."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if not args or args[0] not in self.commands:
            args = [RUN, *(args or ["--help"])]
        return super().parse_args(ctx, args)


class SweepCommand(TyperCommand):
    """Shows its usage without the name of the subcommand."""

    def format_usage(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        assert ctx.parent is not None
        formatter.write_usage(ctx.parent.command_path, " ".join(self.collect_usage_pieces(ctx)))


app = typer.Typer(cls=SweepGroup, help="Compare settings over seeds, with intervals.")


@app.command(RUN, cls=SweepCommand)
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
    from everest.sweep.request import read_request

    request = read_request(
        recipe, overrides=overrides or (), over=over or (), seeds=seeds, stages=stages, init=init
    )

    from everest.sweep.plan import make_plan
    from everest.sweep.run import JOB_FAILED, Processes, check_folder, run_sweep

    plan = make_plan(request, data=data)
    check_folder(output)
    if dry_run:
        for work in plan.works().values():
            typer.echo(f"{work.name}  {', '.join(plan.users(work))}, seed {work.seed}")
        return
    modules = context.find_root().params.get("imports") or []
    program = [*this_program(), *(word for module in modules for word in ("--import", module))]
    processes = Processes(program=program, devices=read_devices(gpus, None), jobs=jobs)
    with Display(quiet=quiet) as display:
        results = run_sweep(plan, output, processes, silent if quiet else display.report)
    typer.echo(output)
    say(*map(_failure_line, results["failures"]))
    if results["failures"]:
        raise typer.Exit(JOB_FAILED)
    if not quiet:
        say(f"next:\n  {shlex.join(['everest', 'sweep', 'report', str(output)])}")


def _failure_line(failure: dict[str, Any]) -> str:
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
    from everest.sweep.report import FIGURE, draw_report, make_report, notes, table
    from everest.sweep.results import FIX, RESULTS, read_results
    from everest.system.text import reading_own

    with reading_own(folder / RESULTS, fix=FIX):
        document = make_report(read_results(folder), metric=metric, against=against)
        columns, *rows = table(document)
        lines = [*notes(document), *map(_failure_line, document["failures"])]
    draw_report(folder / FIGURE, document)
    document["figure"] = str(folder / FIGURE)
    if as_json:
        print_json(document)
        return
    if document["summary"]:
        typer.echo(document["summary"])
    print_table(columns, rows)
    typer.echo("\n".join([*lines, document["figure"]]))
