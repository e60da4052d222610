"""`everest weights`: the table of public weights, and a check of those that can be downloaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everest_cli import options as o
from everest_cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from everest.checkpoints.public_weights import PublicWeights
    from everest.foreign.timm_images import TimmFamily

NOT_DOWNLOADED = (
    "The project has downloaded none of these weights. The tests convert random weights of their names and "
    "shapes; `everest weights check NAME` downloads one and runs a clip."
)
TIMM = (
    "`--init timm:NAME` takes every name of a family that loads; `timm.list_pretrained(PATTERN)` lists them."
)
app = typer.Typer(help="Public weights: list, show, check; the card of your own.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A name of the table.")]

KINDS = {"pretrain": "pre-trained model", "classifier": "classifier", "encoder": "encoder"}


@app.command("list", epilog="Example: everest weights list")
def list_weights(
    as_json: o.AsJson = False,
    quiet: o.OnlyNames = False,
    only_timm: Annotated[
        bool, typer.Option("--timm", help="Only the image models of timm, by family.")
    ] = False,
) -> None:
    """Print the public weights that everest reads: method, backbone, data, license, what they give.

    Then the families of timm's image models: the names, their number, and why a family does not load.
    """
    from everest.checkpoints.public_weights import public_weights
    from everest.foreign.timm_images import timm_families

    table, families = public_weights(), timm_families()
    if only_timm and as_json:
        print_json([{**asdict(family), "loads": family.loads} for family in families])
    elif only_timm:
        _print_families(families, quiet=quiet)
    elif as_json:
        print_json([_document(weights) for weights in table])
    elif quiet:
        typer.echo("\n".join(weights.name for weights in table))
    else:
        rows = [(row.name, row.method, row.backbone, row.data, row.license, row.gives) for row in table]
        _print_table(("weights", "method", "backbone", "trained on", "license", "gives"), rows)
        say(NOT_DOWNLOADED)
        typer.echo()
        _print_families(families)


def _document(weights: PublicWeights) -> dict[str, Any]:
    return {**asdict(weights), "commands": weights.commands, "downloaded": False}


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.table import Column

    print_table([Column(name, overflow="fold") for name in columns], rows, box=None)


def _print_families(families: list[TimmFamily], *, quiet: bool = False) -> None:
    if quiet:
        typer.echo("\n".join(family.pattern for family in families if family.loads))
        return
    rows = [
        (row.family, row.pattern, str(row.names), "yes" if row.because is None else f"no: {row.because}")
        for row in families
    ]
    _print_table(("images (timm)", "names", "number", "loads"), rows)
    say(TIMM)


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


@app.command(epilog="Example: everest weights check timm:vit_small_patch14_dinov2.lvd142m")
def check(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A name of the table, a file, hf:OWNER/NAME or timm:NAME.")
    ],
    as_json: o.AsJson = False,
) -> None:
    """Download weights, encode one clip of noise on the CPU, and print a hash and the features' norm.

    The clip is the same everywhere, so two machines print the same hash, and norms equal to rounding.
    """
    from everest.checkpoints.public_weights import checkable
    from everest.inference.trial import try_weights

    trial = try_weights(checkable(name))
    if as_json:
        print_json(asdict(trial))
        return
    frames, height, width = trial.clip
    typer.echo(f"{trial.name}: {KINDS[trial.kind]} of {trial.parameters:,} parameters, sha256 {trial.sha256}")
    typer.echo(f"clip {frames} x {height} x {width}, {trial.tokens} tokens of width {trial.width}")
    typer.echo(f"feature norm {trial.feature_norm:.4f}")


@app.command(epilog="Example: everest weights card runs/finetune --evaluation eval.json --license cc-by-4.0")
def card(
    checkpoint: Annotated[str, typer.Argument(metavar="C", help=o.CHECKPOINT_HELP)],
    evaluation: o.Evaluation = None,
    license_name: o.License = None,
    output: o.OutputFile = None,
    which: o.WhichWeights = None,
    overwrite: o.OverwriteFile = False,
) -> None:
    """Print the model card of your weights: data, metrics with intervals, license, cost, use."""
    from everest.system.files import check_new_file, refuse_inputs, write_text

    if output is not None:
        check_new_file(output, option="--output", overwrite=overwrite)

    from everest.checkpoints.load import all_weights, find_weights, open_model
    from everest.evaluation.card import model_card, read_evaluation

    file = find_weights(checkpoint, which=which)
    opened = open_model(file, kind="transformer")
    document = None if evaluation is None else read_evaluation(evaluation)
    text = model_card(opened, evaluation=document, license_name=license_name)
    if output is None:
        typer.echo(text, nl=False)
        return
    refuse_inputs(output, [*all_weights(file), *filter(None, [evaluation])], option="--output")
    write_text(output, text)
    typer.echo(output)
