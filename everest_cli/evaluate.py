"""`everest eval`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from everest.errors import RecipeError
from everest.system.processes import is_main
from everest_cli import options as o
from everest_cli import training_command
from everest_cli.option_groups import LabeledListOptions, grouped
from everest_cli.output import Display, print_json


@grouped
def evaluate(
    run: LabeledListOptions,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", metavar="F", help="Write a CSV file with a row per video.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="DIR", help="Write a page with figures to this folder.")
    ] = None,
    overwrite: o.OverwriteFile = False,
    gpus: o.Gpus = "auto",
    processes: o.Processes = None,
) -> None:
    """Evaluate a classifier on clips x crops views of every video of data.test.

    C may also be an ONNX file of `everest export`, next to the recipe.yaml of its run or with --recipe.

    Example: everest eval --checkpoint runs/finetune/ucf101 --data /data/ucf101
    """
    from everest.checkpoints.load import ONNX_SUFFIX
    from everest.config.merge import read_overrides
    from everest.system.run_folder import RECIPE

    weights, recipe = run.find()
    changed = {key[:2] for _, values in read_overrides(run.overrides or (), []) for key in values}
    selects = ("finetune", "selection") in changed
    if weights.suffix == ONNX_SUFFIX:  # which cannot follow these options
        given = {
            "--set finetune.selection": selects,
            "--set train.precision": ("train", "precision") in changed,
            "--which": run.which is not None,
            "--gpus": gpus not in ("auto", "cpu"),
        }
        if refused := [option for option, is_given in given.items() if is_given]:
            raise RecipeError(
                f"{', '.join(refused)}: {weights} is exported and runs on the CPU as it is; evaluate its "
                "checkpoint, or export it again"
            )
        gpus = "cpu"
    devices = training_command.launch(gpus, processes)

    from everest.evaluation.evaluation import EvaluationFiles, evaluate
    from everest.system.accelerator import make_accelerator

    files = EvaluationFiles(predictions=predictions, page=report, overwrite=overwrite)
    accelerator = make_accelerator(recipe.train.precision, tf32=recipe.train.tf32, cpu=devices.kind == "cpu")
    with Display(quiet=run.quiet or not is_main()) as display:
        result = evaluate(
            recipe,
            weights,
            accelerator,
            report=display.report,
            files=files,
            saved_selection=not (selects or (weights.parent / RECIPE).is_file()),
        )
    accelerator.end_training()
    if is_main():
        print_json(result) if run.as_json else _print_table(result)


def _print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from everest.evaluation.metric_text import fact_rows, metric_rows, views_text

    console = Console(soft_wrap=True)
    for columns, rows in (
        ((views_text(result), "value", "95 % interval", "chance"), metric_rows(result)),
        (("", ""), fact_rows(result)),
    ):
        table = Table(*columns, show_header=any(columns))
        for row in rows:
            table.add_row(*row)
        console.print(table, markup=False, highlight=False)
