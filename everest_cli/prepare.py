"""`everest prepare`: the commands that make a data set usable."""

from __future__ import annotations

import typer

from everest_cli import (
    prepare_check,
    prepare_files,
    prepare_lists,
    prepare_split,
    prepare_stats,
    prepare_tokens,
)

app = typer.Typer(help="Make a data set usable: lists, splits, checks, faster files.", no_args_is_help=True)
app.command()(prepare_lists.index)
app.command()(prepare_split.split)
app.command()(prepare_check.check)
app.command()(prepare_files.encode)
app.command()(prepare_stats.stats)
app.command()(prepare_files.shard)
app.command()(prepare_tokens.tokens)
