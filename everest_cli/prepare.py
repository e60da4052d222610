"""`everest prepare`: the commands that make a data set usable."""

from __future__ import annotations

import typer

from everest_cli import (
    prepare_annotations,
    prepare_check,
    prepare_files,
    prepare_lists,
    prepare_split,
    prepare_stats,
    prepare_tokens,
    prepare_windows,
)

app = typer.Typer(help="Make a data set usable: lists, splits, checks, faster files.", no_args_is_help=True)
app.command(short_help="Write lists from the annotations of a data set.")(prepare_lists.index)
app.command("annotations", short_help="Convert annotations of times; label windows.")(
    prepare_annotations.convert_annotations
)
app.command(short_help="Divide videos into train, val and test lists.")(prepare_split.split)
app.command(short_help="List windows of long videos.")(prepare_windows.windows)
app.command(short_help="Decode every video, verify labels, find copies.")(prepare_check.check)
app.command(short_help="Re-encode videos so that training reads them faster.")(prepare_files.encode)
app.command(short_help="Measure colors, lengths, class balance and motion.")(prepare_stats.stats)
app.command(short_help="Pack the videos of a list into tar files.")(prepare_files.shard)
app.command(short_help="Cache the outputs of LVMAE's tokenizer.")(prepare_tokens.tokens)
