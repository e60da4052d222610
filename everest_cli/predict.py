"""`everest predict` and `everest extract`: classes and features of videos."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, get_args

import typer

from everest.errors import RecipeError
from everest.system.files import refuse_inputs, write_text
from everest.system.text import json_text
from everest_cli import options as o
from everest_cli.model_options import ModelOptions
from everest_cli.options import option, read_views
from everest_cli.output import Display, exit_if_failed

PredictionFormat = Literal["table", "json", "csv"]
Rows = list[dict[str, Any]]  # rows of everest.inference.predictions
COLUMNS: Final = (
    *("video", "head", "rank", "label", "index"),
    *("probability", "present", "threshold", "value", "error"),
)


def predict(
    model: ModelOptions,
    videos: list[Path] = o.VIDEOS,
    top: int | None = option("--top -k K", "Classes per video [5, and all present].", min=1),
    kind: PredictionFormat | None = option("--format", "Output format [as --output, else table]."),
    views: str | None = o.VIEWS,
    output: Path | None = o.OUTPUT_FILE,
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
) -> None:
    """Predict classes or numbers for videos or for the segments of a list.

    Example: everest predict match.mp4 --checkpoint runs/finetune --top 3
    """
    from everest.inference.predictions import check_top, open_predictions
    from everest.inference.videos import Batching
    from everest.lists.inputs import find_samples

    if as_json and kind not in (None, "json"):
        raise RecipeError(f"--json and --format {kind}: choose one")
    opened = model.open(read_views(views))
    check_top(opened.classes, top)  # also refuses an autoencoder before videos are listed
    samples = find_samples(videos, root=model.data)
    if output is not None:
        refuse_inputs(output, [*model.inputs, *videos])
    suffix = "" if output is None else output.suffix.removeprefix(".").lower()
    by_suffix = suffix if suffix in get_args(PredictionFormat) else "table"
    options = {"top": top, "output": output, "overwrite": overwrite}
    display = Display()
    batching = Batching(batch=model.batch, emit=display.emit)
    with display, open_predictions(opened, samples, batching, **options) as rows:
        if rows is None:
            return
        text = TEXTS["json" if as_json else kind or by_suffix](rows)
        if output is not None:
            write_text(output, text)
    if output is None:
        typer.echo(text, nl=False)
    else:
        typer.echo(output)
    exit_if_failed(any("error" in row for row in rows))


def format_table(rows: Rows) -> str:
    """Format a table with a line per class of each video.

    Multi-label classes are marked as present, or with the threshold that they do not reach.
    """
    lines: list[str] = []
    for row in rows:
        lines.append(row["video"])
        for head, _, each in _list_predictions(row):
            name, mark = " ".join(filter(None, [head, each.get("label")])), ""
            if "value" in each:
                lines.append("  " + f"{name} {each['value']:.6g}".lstrip())
                continue
            if "present" in each:
                mark = " (present)" if each["present"] else f" (below its threshold, {each['threshold']:.1%})"
            lines.append(f"  {each['probability']:6.1%}  {name}{mark}")
        if "error" in row:
            lines.append(f"  {row['error']}")
    return "".join(f"{line}\n" for line in lines)


def format_csv(rows: Rows) -> str:
    """Format a line per predicted class, number or unreadable video; columns that stay empty are dropped."""
    lines: list[dict[str, Any]] = []
    for row in rows:
        for head, rank, each in _list_predictions(row):
            rank = None if "value" in each else rank
            line = {"video": row["video"], "head": head or None, "rank": rank, **each}
            lines.append(line | ({"present": int(each["present"])} if "present" in each else {}))
        if "error" in row:
            lines.append({"video": row["video"], "error": row["error"]})
    columns = [name for name in COLUMNS if any(line.get(name) is not None for line in lines)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _list_predictions(row: dict[str, Any]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield head, rank and values of each prediction of a video; the name of a single head is empty."""
    for head, predictions in row.get("heads", {"": row.get("predictions", [])}).items():
        yield from ((head, rank, each) for rank, each in enumerate(predictions, start=1))


TEXTS: Final[dict[str, Callable[[Rows], str]]] = {
    "table": format_table,
    "json": lambda rows: json_text(rows, indent=2) + "\n",
    "csv": format_csv,
}


def extract(
    *,
    videos: list[Path] = o.VIDEOS,
    model: ModelOptions,
    out: Path = option("--output -o F", "The .safetensors or .npz file to write.", ...),
    features: Literal["video", "views", "tokens"] = option(
        "--features", "Features per video, per view or per token.", "video"
    ),
    views: str | None = o.VIEWS,
    window: float | None = option(
        "--window SECONDS", "A row per window of this length [a video].", min=0.001
    ),
    step: float | None = option("--step SECONDS", "Time between window starts [--window].", min=0.001),
    overwrite: bool = o.OVERWRITE_FILES,
) -> None:
    """Write features of videos or windows to a file; repeat the command to resume.

    Example: everest extract VIDEOS --checkpoint runs/pretrain --output features.safetensors
    """
    from everest.inference.features import write_features
    from everest.inference.videos import Batching
    from everest.lists.inputs import find_samples

    opened = model.open(read_views(views or (None if window is None else "1x1")))
    samples = find_samples(videos, root=model.data)
    refuse_inputs(out, [*videos, *model.inputs])
    with Display() as display:
        batching = Batching(batch=model.batch, window=window, step=step, emit=display.emit)
        skipped = write_features(opened, samples, out, batching, level=features, overwrite=overwrite)
    if skipped is not None:
        typer.echo(out)
    exit_if_failed(skipped)
