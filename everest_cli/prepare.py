"""`everest prepare`"""

from __future__ import annotations

import typer

from everest_cli import prepare_files

app = typer.Typer(no_args_is_help=True, help="Make a data set usable.", rich_markup_mode=None)
app.command("encode")(prepare_files.encode)
app.command("shard")(prepare_files.shard)
