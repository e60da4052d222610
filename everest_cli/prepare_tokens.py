"""`everest prepare tokens`: a cache of a tokenizer's or teacher's output for pre-training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from everest_cli import options as o
from everest_cli.option_groups import is_on_cpu
from everest_cli.option_values import read_recipe
from everest_cli.output import Display, print_json, say


def tokens(
    recipe: o.RecipeName,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the tokens.")],
    variants: Annotated[
        int,
        typer.Option(
            "--variants", metavar="N", min=1, max=10_000, help="Clips per video; later epochs repeat them."
        ),
    ] = 4,
    data: o.DataRoot = None,
    overrides: o.Overrides = None,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, help="Videos in one forward pass.")
    ] = 8,
    gpus: o.OneGpu = "auto",
    overwrite: o.Overwrite = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Cache a tokenizer's or teacher's output; prints the value for pretrain.target.cache.

    A repeated call resumes a stopped one, or adds more variants.

    Example: everest prepare tokens --recipe lvmae-128 --set tokenizer.checkpoint=RUN --output tokens
    """
    from everest.checkpoints.frozen import open_teacher
    from everest.engine.tokenizer_first import with_absolute_paths
    from everest.tokenizer.cache_writing import write_tokens

    changes = [*(overrides or []), f"pretrain.target.cache={json.dumps(str(output))}"]  # also checks the path
    settings = with_absolute_paths(read_recipe(recipe, data=data, overrides=changes))
    with Display(quiet=quiet) as display:
        document = write_tokens(
            settings,
            output,
            teacher=None if settings.pretrain.teacher is None else open_teacher(settings),
            variants=variants,
            batch=batch,
            cpu=is_on_cpu(gpus),
            overwrite=overwrite,
            report=display.report,
        )
    if not quiet:
        clips, skipped = document["videos"] * document["variants"], len(document["bad"])
        say(f"{clips} clips, {document['bytes'] / 1e6:.1f} MB; {skipped} videos skipped")
    print_json(document) if as_json else typer.echo(output)
