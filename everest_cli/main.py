"""The app: its commands, and the only code that turns a UserError into a message and an exit code."""

from __future__ import annotations

import errno
import gc
import io
import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from everest.errors import (
    LESS_MEMORY,
    MAX_SHOWN_OF_PATH,
    EnvironmentProblem,
    OptionError,
    RecipeError,
    UserError,
    shorten,
)
from everest.system.launch import LostPeer, find_lost_peer
from everest.system.processes import adopt_slurm
from everest.system.signals import PARENT_VARIABLE, Stopped, end_with_parent
from everest.system.text import is_unicode
from everest_cli import (
    budget,
    evaluate,
    export,
    inspection,
    predict,
    prepare,
    profile,
    recipes,
    stages,
    sweep,
    timeline,
    weights,
)
from everest_cli.options import grouped, option
from everest_cli.output import Quiet, say

GARBAGE_AFTER = 10_000  # new objects; with Python 3.11's 700, a tenth of torch's import is garbage collection
MAX_LINE_LENGTH = 1000  # maximum number of letters in a line of an error
PYDANTIC_WORDS = {  # replacements for pydantic's words about an option
    "Value error, ": "",
    ", unable to parse string as an integer": "",
    ", unable to parse string as a number": "",
    "Input should be greater than or equal to": "must be at least",
    "Input should be less than or equal to": "must be at most",
    "Input should": "must",
}
QUIET = ("--quiet", "-q")
ALLOCATOR = "expandable_segments:True"  # batches of several sizes fragment a GPU's memory otherwise


class Commands(TyperGroup):
    """The group of all commands: lists them by subject, and prints a user's error as one message."""

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        widest = max(map(len, self.commands))
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<{widest}}", line) for name, (_, line) in commands.items()])

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        quiet = [word for word in args if word in QUIET]
        args = [*quiet[:1], *(word for word in args if word not in quiet)]  # wherever it was written
        if (odd := next((word for word in args if not is_unicode(word)), None)) is not None:
            raise typer.BadParameter(f"{odd!r} is not UTF-8; rename the file or folder")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        if isinstance(sys.stdout, io.TextIOWrapper):  # not in notebooks: escape unencodable characters
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            with suppress(OSError):  # the folder is gone
                if not is_unicode(here := str(Path.cwd())):
                    raise RecipeError(f"the working directory {here!r} is not UTF-8; rename it")
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(130) from None
        except Exception as error:
            problem = as_user_error(error)
            if problem is None:
                raise
            if ctx.params.get("debug"):
                traceback.print_exc()
            if isinstance(problem, Stopped):  # shown once for all processes
                say(str(problem))
            elif not (isinstance(problem, LostPeer) and PARENT_VARIABLE in os.environ):  # the peer is named
                prefix = "--" if isinstance(problem, OptionError) else ""
                say(f"error: {prefix}{shorten_lines(str(problem))}", everywhere=True)
            raise typer.Exit(problem.exit_code) from error


def shorten_lines(message: str) -> str:
    """Shorten the longest words and lines of a message in the middle; they repeat a user's value."""

    def short(text: str, most: int) -> str:
        return shorten(text, most=most) if len(text) > most else text

    lines = [[short(word, MAX_SHOWN_OF_PATH) for word in line.split(" ")] for line in message.split("\n")]
    return "\n".join(short(" ".join(words), MAX_LINE_LENGTH) for words in lines)


def as_user_error(error: Exception) -> UserError | None:
    """Translate an error into a problem that a user can fix; None for a bug."""
    match error:
        case UserError():
            return error
        case OSError() if error.filename is not None:
            return EnvironmentProblem(f"{error.filename}: {error.strerror}")
        case OSError(errno=errno.ENOSPC):
            return EnvironmentProblem(f"the output cannot be written: {error.strerror}")
        case MemoryError():
            return EnvironmentProblem("out of memory; try a smaller train.micro_batch or smaller clips")
    external = sys.modules.get("everest.methods.external")  # not loaded: no code of a user was imported
    own_error = None if external is None else external.find_own_error(error)
    if not isinstance(error, RuntimeError) or "torch" not in sys.modules:
        return own_error

    import torch

    from everest.system.private_apis import is_compiler_error

    text = str(error)
    # Besides torch.OutOfMemoryError, only the text shows it: "out of memory" from a driver or MPS, "can't
    # allocate memory" from the CPU's allocator.
    if isinstance(error, torch.OutOfMemoryError) or re.search("out of memory|can't allocate memory", text):
        return EnvironmentProblem(f"out of memory ({text.splitlines()[0]}); {LESS_MEMORY}")
    if is_compiler_error(error):
        why = " ".join(text.split("\n\n")[0].split())
        return EnvironmentProblem(
            f"train.compile: torch cannot compile the model ({why}); remove its cache "
            "(TORCHINDUCTOR_CACHE_DIR, else torchinductor_USER among the temporary files), or set "
            "train.compile=false"
        )
    return own_error or find_lost_peer(error)


def _usage(command: TyperCommand, context: typer.Context) -> list[str]:
    """Return the words of a command's usage: its arguments and required options, then `[OPTIONS]`."""
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.required and each not in arguments]
    return [
        *(str(each.metavar) if each.required else f"[{each.metavar}]" for each in arguments),
        *(f"{each.opts[0]} {each.metavar}" for each in options),
        "[OPTIONS]",
    ]


def _print_usage_error(error: Any, file: object = None) -> None:
    """Print an error about a wrong or missing word of a command like any other error."""
    message = error.format_message()
    for words, plain in PYDANTIC_WORDS.items():
        message = message.replace(words, plain)
    message = " ".join(message.rstrip(".").split())
    command = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
    say(f"error: {shorten_lines(message[:1].lower() + message[1:])}{command}", everywhere=True)


setattr(TyperCommand, "collect_usage_pieces", _usage)  # noqa: B010
# The class of all usage errors, which typer does not export.
setattr(typer.BadParameter.__base__, "show", _print_usage_error)  # noqa: B010
# The name of an argument says what it is; help does not need its Python type.
setattr(TyperArgument, "display_type_rich", lambda self, ctx: None)  # noqa: B010

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        # --out is accepted for --output.
        "token_normalize_func": lambda name: "output" if name == "out" else name,
    },
)
# The commands of most users, then the others by subject, with the line that `everest --help` shows: up to 59
# characters, to fit 80 columns.
GROUPS: dict[str, dict[str, tuple[Callable[..., None] | typer.Typer, str]]] = {
    "Start here": {
        "train": (stages.train, "Train and test a model of your videos."),
        "pretrain": (stages.pretrain, "Train an encoder on unlabeled videos."),
        "finetune": (stages.finetune, "Train a classifier from a pre-trained encoder."),
        "eval": (evaluate.evaluate, "Evaluate a classifier on the test videos."),
        "predict": (predict.predict, "Predict classes or numbers of videos."),
        "timeline": (timeline.timeline, "Predict classes over time; bouts, scores, files, figures."),
        "visualize-mask": (inspection.visualize_mask, "Draw the visible and predicted tokens of videos."),
        "profile": (profile.profile, "Estimate cost, memory and hours before a run."),
    },
    "Train": {
        "demo": (stages.demo, "Try everything on rendered videos, without a download."),
        "recipes": (recipes.app, "Make a recipe for your videos; list and check recipes."),
        "probe": (evaluate.probe, "Evaluate a frozen encoder: k-NN, linear and others."),
        "sweep": (sweep.app, "Compare settings over seeds, with intervals."),
        "train-tokenizer": (stages.train_tokenizer, "Train LVMAE's tokenizer."),
    },
    "Look": {
        "runs": (inspection.runs, "List runs with their progress."),
        "plot": (inspection.plot, "Draw the curves of runs."),
        "select-frames": (inspection.select_frames, "Find the frames of a video that change most."),
        "doctor": (inspection.doctor, "Check this machine; print a fix for each problem."),
    },
    "Use": {
        "budget": (budget.budget, "Estimate time and bouts of each class, with intervals."),
        "extract": (predict.extract, "Write features of videos or windows to a file."),
        "export": (export.export, "Export a model to transformers or ONNX."),
        "convert": (weights.convert, "Convert a checkpoint of another program."),
        "weights": (weights.app, "List public weights to start from."),
    },
    "Data": {"prepare": (prepare.app, "Make lists; split, check, measure and re-encode videos.")},
}
for group in GROUPS.values():
    for name, (command, line) in group.items():
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, short_help=line)
        else:
            app.command(name, short_help=line)(grouped(command))


def _show_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"everest {version('everest-video')}")
        raise typer.Exit


@app.callback()
def everest(
    debug: bool = option("--debug", "Show the traceback of an error.", False),
    imports: list[str] | None = option("--import MODULE", "Import your module that weights or runs need."),
    quiet: bool = option("--quiet -q", "No progress and no hints on stderr; at any place.", False),
    version: bool = option("--version", "Show the version.", False, callback=_show_version, is_eager=True),
) -> None:
    """Train video classifiers and encoders on your own videos, and use them.

    Example: everest train VIDEOS --output runs/mine
    """
    Quiet.is_on = quiet
    for module in imports or ():
        from everest.methods.external import import_code

        import_code(module)


def main() -> None:
    """The `everest` program: run the command in `sys.argv`; raise SystemExit, or an error for a bug."""
    gc.set_threshold(GARBAGE_AFTER)
    end_with_parent()
    adopt_slurm(os.environ)
    if "PYTORCH_ALLOC_CONF" not in os.environ:  # the name in newer releases of torch
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", ALLOCATOR)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
