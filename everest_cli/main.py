"""The app: its commands, and the one place that turns a UserError into a line and its exit code."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from everest.errors import UserError
from everest_cli import demo, evaluate, finetune, pretrain, recipes
from everest_cli.output import say


class Commands(TyperGroup):
    """Lists commands in the order of the work, and tells a user's error in one message."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return list(self.commands)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except UserError as error:
            if ctx.params.get("debug"):
                raise
            say(f"error: {error}")
            raise typer.Exit(error.exit_code) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command("pretrain")(pretrain.pretrain)
app.command("finetune")(finetune.finetune)
app.command("eval")(evaluate.evaluate)
app.add_typer(recipes.app, name="recipes")
app.command("demo")(demo.demo)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"everest {version('everest-video')}")
        raise typer.Exit


@app.callback()
def everest(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Efficient masked video autoencoders: pretrain, fine-tune and test a video encoder.

    Example: everest pretrain --recipe ucf101 --data /data/ucf101
    """


def main() -> None:
    """The `everest` command."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
