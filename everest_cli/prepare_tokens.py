"""`everest prepare tokens`: what a frozen tokenizer says of the clips of pre-training, kept on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from everest_cli import options as o
from everest_cli.output import Display, print_json, say
from everest_cli.tokenizer_first import with_files


def tokens(
    recipe: o.RecipeName,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the tokens go.")],
    variants: Annotated[
        int, typer.Option("--variants", metavar="N", min=1, help="Clips of each video: those of N epochs.")
    ] = 4,
    data: o.DataRoot = None,
    overrides: o.Overrides = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Videos in one pass.")] = 8,
    overwrite: o.Overwrite = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Run LVMAE's tokenizer once over the clips, so that pretrain need not; prints pretrain.target.cache.

    Called again after it was stopped, or with more variants, it goes on.

    Example: everest prepare tokens --recipe lvmae-128 --set tokenizer.checkpoint=RUN --output tokens
    """
    from everest.prepare.tokens import write_tokens

    meant = [*(overrides or []), f"pretrain.target.cache={json.dumps(str(output))}"]  # so it is checked
    settings = with_files(o.read_recipe(recipe, data=data, overrides=meant))
    with Display(quiet=quiet) as display:
        told = write_tokens(
            settings,
            output,
            variants=variants,
            batch=batch,
            overwrite=overwrite,
            report=display.report,
        )
    if not quiet:
        clips, left_out = told["videos"] * told["variants"], len(told["bad"])
        say(f"{clips} clips, {told['bytes'] / 1e6:.1f} MB; {left_out} videos left out")
    print_json(told) if as_json else typer.echo(output)
