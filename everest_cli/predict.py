"""`everest predict`"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, Literal, get_args

import typer

from everest.errors import RecipeError
from everest.system.text import json_text
from everest_cli import options as o
from everest_cli.option_groups import ModelOptions, grouped
from everest_cli.option_values import read_views
from everest_cli.output import Display

PredictionFormat = Literal["table", "json", "csv"]
Rows = list[dict[str, Any]]  # as everest.inference.predictions returns them

COLUMNS: Final = (
    *("video", "head", "rank", "label", "index", "probability", "present", "threshold", "value", "error"),
)


@grouped
def predict(
    model: ModelOptions,
    videos: o.Videos,
    top: Annotated[
        int | None,
        typer.Option("--top", "-k", metavar="K", min=1, help="Classes per video [5, and all present]."),
    ] = None,
    kind: Annotated[
        PredictionFormat | None, typer.Option("--format", help="Output format [as --output, else table].")
    ] = None,
    views: o.Views = None,
    output: o.OutputFile = None,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
) -> None:
    """Predict classes or numbers for videos or for the segments of a list.

    Example: everest predict match.mp4 --checkpoint runs/finetune --top 3
    """
    from everest.checkpoints.load import all_weights
    from everest.inference.predictions import check_top, predict
    from everest.lists.inputs import named_samples
    from everest.system.files import check_new_file, refuse_inputs, write_text

    if as_json and kind not in (None, "json"):
        raise RecipeError(f"--json and --format {kind}: choose one")
    if output is not None:
        check_new_file(output, option="--output", overwrite=overwrite)
    opened = model.open(**read_views(views))
    check_top(opened.classes, top)  # also refuses an autoencoder, before the videos are listed
    samples = named_samples(videos, root=model.data)
    if output is not None:
        inputs = [*all_weights(opened.file), *model.inputs, *videos, *(sample.video for sample in samples)]
        refuse_inputs(output, inputs, option="--output")
    with Display(quiet=model.quiet) as display:
        rows = predict(opened, samples, top=top, batch=model.batch, report=display.report)
    suffix = "" if output is None else output.suffix.removeprefix(".").lower()
    by_suffix = suffix if suffix in get_args(PredictionFormat) else "table"
    text = TEXTS["json" if as_json else kind or by_suffix](rows)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)
        typer.echo(output)
    if any("error" in row for row in rows):
        raise typer.Exit(4)


def as_table(rows: Rows) -> str:
    """The classes of a video below each other.

    Multi-label classes are marked as present, or with the threshold that they do not reach.
    """
    lines: list[str] = []
    for row in rows:
        lines.append(row["video"])
        lines += [f"  {_line(head, each)}" for head, each in _predictions(row)]
        if "error" in row:
            lines.append(f"  {row['error']}")
    return "".join(f"{line}\n" for line in lines)


def _line(head: str, part: dict[str, Any]) -> str:
    name = " ".join(filter(None, [head, part.get("label")]))
    if "value" in part:
        return f"{name} {part['value']:.6g}".lstrip()
    mark = ""
    if "present" in part:
        mark = " (present)" if part["present"] else f" (below its threshold, {part['threshold']:.1%})"
    return f"{part['probability']:6.1%}  {name}{mark}"


def as_csv(rows: Rows) -> str:
    """A line per predicted class, number or unreadable video; columns that are always empty are left out."""
    lines: list[dict[str, Any]] = []
    for row in rows:
        ranks: dict[str, int] = {}
        for head, each in _predictions(row):
            ranks[head] = ranks.get(head, 0) + 1
            rank = {} if "value" in each else {"rank": ranks[head]}
            present = {"present": int(each["present"])} if "present" in each else {}
            lines.append(
                {"video": row["video"], **({"head": head} if head else {}), **rank, **each, **present}
            )
        if "error" in row:
            lines.append({"video": row["video"], "error": row["error"]})
    columns = [name for name in COLUMNS if any(name in line for line in lines)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _predictions(row: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the predictions of a video, each after its head; the name of the only head is empty."""
    for head, predictions in row.get("heads", {"": row.get("predictions", [])}).items():
        yield from ((head, each) for each in predictions)


TEXTS: Final[dict[str, Callable[[Rows], str]]] = {
    "table": as_table,
    "json": lambda rows: json_text(rows, indent=2) + "\n",
    "csv": as_csv,
}
