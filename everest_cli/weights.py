"""`everest weights`: the table of public weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everest_cli import options as o
from everest_cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from everest.checkpoints.public_weights import PublicWeights

NOTES = (
    "The project has downloaded none of these weights. The tests convert random weights of their names and "
    "shapes. Image models of timm: `--init timm:NAME`; docs/starting.md lists the families that load."
)
app = typer.Typer(help="Public weights: list, show.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A name from `everest weights list`.")]


@app.command("list", epilog="Example: everest weights list")
def list_weights(as_json: o.AsJson = False) -> None:
    """List the public weights that everest reads: method, backbone, data, license, use."""
    from rich.table import Column

    from everest.checkpoints.public_weights import public_weights

    table = public_weights()
    if as_json:
        print_json([_document(weights) for weights in table])
    else:
        rows = [
            (row.name, f"{row.method}, {row.backbone}, {row.data}; {row.license}; {row.gives}")
            for row in table
        ]
        print_table(
            [Column("weights", no_wrap=True), "method, backbone, data; license; gives"], rows, box=None
        )
        say(NOTES)


def _document(weights: PublicWeights) -> dict[str, Any]:
    return {**asdict(weights), "commands": weights.commands, "downloaded": False}


@app.command(epilog="Example: everest weights show videomae-base")
def show(name: Name, as_json: o.AsJson = False) -> None:
    """Print all that is known about public weights, and the commands to begin with."""
    from everest.checkpoints.public_weights import USE, find_public_weights

    weights = find_public_weights(name)
    if as_json:
        print_json(_document(weights))
        return
    facts = {
        "weights": weights.name,
        "from": weights.page or "downloaded by its name",
        "method": f"{weights.method}, {weights.backbone}, trained on {weights.data}",
        "license": f"{weights.license} (as its publisher states it; the one shown on download counts)",
        "input": f"{weights.frames} x {weights.size} x {weights.size}",
        "gives": USE[weights.gives],
        "tested": f"random weights of the names and shapes of {weights.layout}; never downloaded",
    }
    for key, value in facts.items():
        typer.echo(f"{key + ':':<9} {value}")
    typer.echo("commands:")
    for command in weights.commands:
        typer.echo(f"  {command}")
