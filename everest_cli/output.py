"""Output of a command: results on stdout; progress on stderr, as a bar on a terminal, else as lines."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import typer

from everest.errors import DataError
from everest.system.processes import is_main
from everest.system.text import json_text

if TYPE_CHECKING:
    from rich.table import Column

PIPE_WIDTH = 1000  # width of a table without a terminal, so that a row stays on one line
LINE_INTERVAL = 10.0  # seconds between two progress lines without a terminal


class Quiet:
    """Whether the user wants no progress and no hints: --quiet, which `everest` takes before any command."""

    is_on = False


def say(*texts: str, everywhere: bool = False) -> None:
    """Print lines on stderr, in the first process only, unless `everywhere`."""
    if texts and (everywhere or is_main()):  # torchrun and Slurm show all processes
        with _even_unread():
            typer.echo("\n".join(texts), err=True)


def hint(*texts: str) -> None:
    """Print lines on stderr that --quiet leaves out, such as the next command."""
    if not Quiet.is_on:
        say(*texts)


@contextmanager
def _even_unread() -> Iterator[None]:
    """Ignore errors from a closed terminal, an ended pipe or a full disk behind stderr."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EPIPE, errno.ENOSPC):
            raise
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 2)
        os.close(nowhere)


def exit_if_failed(failed: object) -> None:
    """If any video failed, exit with the code for damaged videos; all other work is done by then."""
    if failed:
        raise typer.Exit(DataError.exit_code)


def print_json(document: Any) -> None:
    typer.echo(json_text(document, indent=2))


def print_result(document: Any, text: object, *, as_json: bool) -> None:
    """Print the result of a command on stdout: a JSON document, or a text instead of it."""
    if as_json:
        print_json(document)
    else:
        typer.echo(text)


def print_table(
    columns: Iterable[str | Column], rows: Iterable[Iterable[str]], *, title: str = "", **options: Any
) -> None:
    """Print a table on stdout; without a terminal, rows stay on one line.

    Brackets are printed as they are: paths and settings contain them.

    Args:
        options: options of rich's `Table`.
    """
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    heads = (Column(Text(column)) if isinstance(column, str) else column for column in columns)
    table = Table(*heads, title=Text(title) if title else None, title_justify="left", **options)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    (console if console.is_terminal else Console(width=PIPE_WIDTH)).print(table)


def format_validation(event: dict[str, Any]) -> str:
    """Format training and validation in one line; the metric that chooses the best weights comes first."""
    from everest.metrics.names import METRICS, find_metric, value_text

    train_loss = "-" if event["train_loss"] is None else f"{event['train_loss']:.3f}"
    chosen, chance, majority = f"val_{event['metric']}", event["chance"], event["majority"]
    notes: dict[str, list[str]] = {chosen: []}
    notes |= {name: [] for name in event if name.startswith("val_") and name != chosen}
    if majority is not None and majority > (chance or 0) + 0.1 and "val_top1" in notes:
        notes["val_top1"].append(f"most frequent class {value_text('top1', majority)}")
    if chance is not None:
        notes[chosen].append(f"chance {value_text(chosen, chance)}")
    notes[chosen].append(f"best {value_text(chosen, event['best'])} at step {event['best_step']}")
    shown = []
    for name, texts in notes.items():  # `val_METRIC`, or with several heads `val_HEAD_METRIC`
        metric = find_metric(name)
        assert metric is not None
        key = next(key for key, each in METRICS.items() if each is metric)
        head = name.removeprefix("val_").removesuffix(key).rstrip("_")
        text = f"{metric.short or metric.title} {value_text(name, event[name])}"
        shown.append(f"{head} {text}".lstrip() + (f" ({', '.join(texts)})" if texts else ""))
    return f"{_format_step(event)}: training loss {train_loss}; validation {', '.join(shown)}"


def _format_step(event: dict[str, Any]) -> str:
    return f"epoch {event['epoch'] + 1}/{event['epochs']} step {event['step']}/{event['steps']}"


class Display:
    """Shows the events that a loop reports. Use as a context."""

    def __init__(self) -> None:
        self._quiet = Quiet.is_on or not is_main()
        self._said_at = -LINE_INTERVAL
        self._began = (0.0, 0)  # time and finished steps when the stage started or resumed
        self._done = 0
        self._progress: Any = None

    def __enter__(self) -> Display:
        if sys.stderr.isatty() and not self._quiet:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.table import Column

            # Last and truncated, so that a narrow terminal shows the bar and the remaining time in full.
            truncated = Column(no_wrap=True, overflow="ellipsis", ratio=1)
            description = TextColumn("{task.description}", markup=False, table_column=truncated)
            columns = (BarColumn(bar_width=20), TextColumn("ETA"), TimeRemainingColumn(), description)
            self._progress = Progress(*columns, console=Console(stderr=True), expand=True)
            self._progress.start()
            self._task = self._progress.add_task("", total=None)
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            with _even_unread():
                self._progress.stop()

    def emit(self, event: dict[str, Any]) -> None:
        """Show one event; loops call this method."""
        match event["event"]:
            case "step":
                loss = "not finite" if event["loss"] is None else f"{event['loss']:.4f}"
                speed = f"{event['clips_per_second']:.1f} clips/s data-wait {event['data_wait']:.0%}"
                memory = f"memory {event['memory_bytes'] / 2**30:.1f} GiB"
                text = f"{_format_step(event)} loss {loss} lr {event['lr']:.2e} {speed} {memory}"
                self._advance(event["step"], event["steps"], text)
            case "video" | "window" as kind:
                done, total = event["done"], event[f"{kind}s"]
                self._advance(done, total, f"{kind} {done}/{total}")
            case "validation" | "heading" if self._quiet:
                pass
            case "validation":
                self._line(format_validation(event))
            case "notice" | "heading":
                self._line(event["text"])
            case "warning":
                self._line(f"warning: {event['text']}")
            case unknown:
                raise AssertionError(f"unknown event {unknown}")

    def _line(self, text: str) -> None:
        if self._progress is not None:
            with _even_unread():
                self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            say(text)

    def _advance(self, done: int, total: int, text: str) -> None:
        if self._quiet:
            return
        now = time.monotonic()
        if done <= self._done or self._done == 0:  # another stage
            self._began = (now, done)
        self._done = done
        if self._progress is not None:
            with _even_unread():
                self._progress.update(self._task, completed=done, total=total, description=text)
        elif done == total or now - self._said_at >= LINE_INTERVAL:
            self._said_at = now
            start, first = self._began
            if done > first:  # the time of a first step is not representative
                text += f" ETA {timedelta(seconds=round((now - start) / (done - first) * (total - done)))}"
            say(text)
