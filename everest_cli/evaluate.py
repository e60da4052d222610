"""`everest eval`"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from everest.launch import is_main
from everest_cli import options as o
from everest_cli import stages
from everest_cli.output import Display, print_json


def evaluate(
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint", "-c", metavar="C", help="Run folder of finetune, or a .safetensors file."
        ),
    ],
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", metavar="R", help="Another recipe than that of the run.")
    ] = None,
    data: o.DataRoot = None,
    overrides: o.Overrides = None,
    which: Annotated[
        o.Which, typer.Option("--which", help="Of a run folder: newest or best weights.")
    ] = o.Which.newest,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", metavar="F", help="Write a CSV row for every video.")
    ] = None,
    gpus: o.Gpus = "auto",
    processes: o.Processes = None,
    precision: o.PrecisionMode = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Test a classifier on clips x crops views of every video of data.test.

    Example: everest eval --checkpoint runs/finetune/ucf101 --data /data/ucf101
    """
    from everest.load import find_weights, recipe_beside

    weights = find_weights(checkpoint, which=which.value)
    settings = o.read_recipe(
        recipe or str(recipe_beside(weights)), data=data, overrides=overrides, precision=precision
    )

    devices = stages.launch(gpus, processes)

    from everest.devices import make_accelerator
    from everest.evaluate import evaluate

    accelerator = make_accelerator(settings.train, cpu=devices.kind == "cpu")
    with Display(quiet=quiet or not is_main()) as display:
        result = evaluate(settings, weights, accelerator, report=display.report, predictions=predictions)
    accelerator.end_training()
    if is_main():
        print_json(result) if as_json else _print_table(result)


def _print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", show_header=False)
    for name, value in _flat(result):
        table.add_row(name.replace("_", " "), str(value))
    Console(soft_wrap=True).print(table, markup=False, highlight=False)


def _flat(result: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of the table's rows; those of a head begin with its name."""
    for name, value in result.items():
        if name == "heads":
            yield from (
                (f"{head} {key}", share) for head, told in value.items() for key, share in told.items()
            )
        else:
            yield name, f"{value['clips']} x {value['crops']}" if name == "views" else value
