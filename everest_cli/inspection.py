"""`everest runs`, `plot`, `doctor`, `select-frames` and `visualize-mask`; `runs` needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import typer

from everest.errors import DataError, EnvironmentProblem
from everest.system.files import check_new_file, refuse_inputs
from everest_cli import options as o
from everest_cli.options import argument, option, read_keep_ratios, refuse
from everest_cli.output import exit_if_failed, print_json, print_table, say

Read = TypeVar("Read")
AGE_UNITS = (("d", 86400), ("h", 3600), ("min", 60))  # units of ages, in seconds


def runs(
    folder: Path = argument("FOLDER", "Folder to search, at any depth.", Path("runs")),
    as_json: bool = o.AS_JSON,
) -> None:
    """List run folders with their recipe, progress and state.

    Example: everest runs
    """
    from rich.table import Column

    from everest.engine.listing import find_runs, summarize
    from everest.metrics.names import METRICS, value_text

    summaries = [summarize(run) for run in find_runs(folder)]
    if not summaries:
        say(f"{folder}: contains no run folders")
    say(*(f"damaged: {run.problem}" for run in summaries if run.problem))
    if as_json:
        print_json([asdict(run) for run in summaries])
        return
    rows = []
    for run in summaries:
        step = "-" if run.step is None else f"{run.step}/{'?' if run.steps is None else run.steps}"
        loss = "-" if run.loss is None else f"{run.loss:.4f}"
        best = "-"
        if run.best_metric is not None and run.best_value is not None:
            metric = METRICS[run.best_metric]
            best = f"{metric.short or metric.title} {value_text(run.best_metric, run.best_value)}"
        unit, seconds = next(((unit, n) for unit, n in AGE_UNITS if run.age_seconds >= n), ("s", 1))
        age = f"{run.age_seconds // seconds} {unit}"
        rows.append((run.path, run.command or "-", run.recipe or "-", run.state, step, loss, best, age))
    columns = [
        Column("run", overflow="fold"),  # never shortened, even if it takes two lines
        "command",
        "recipe",
        "state",
        *(Column(name, justify="right", no_wrap=True) for name in ("step", "loss", "best on val", "age")),
    ]
    if rows:
        print_table(columns, rows, box=None)


def plot(
    runs: list[Path] = argument("RUN…", "Run folders, or the folder of a sweep."),
    x: Literal["steps", "hours", "gmacs"] = option("--x", "Axis: steps, hours, or computation.", "steps"),
    stage: Literal["pretrain", "finetune"] | None = option("--stage", "Stage of a sweep [the last]."),
    out: Path = option("--output -o F", "The figure to write (.png, .pdf, .svg).", Path("curves.png")),
    overwrite: bool = o.OVERWRITE_FILES,
) -> None:
    """Draw losses, validations and learning rates of runs; prints the figure's path.

    A sweep has a line for each variant: the mean over its seeds, in a band from the lowest to the highest.

    Example: everest plot runs/pretrain runs/other --x gmacs
    """
    from everest.figures.curves import draw_curves, name_runs, read_curves
    from everest.figures.style import check_figure_path
    from everest_workflows.sweep.results import is_sweep_folder, list_runs

    check_figure_path(out, option="--output", overwrite=overwrite)
    named = name_runs([run for run in runs if not is_sweep_folder(run)])
    for sweep in filter(is_sweep_folder, runs):
        named += list_runs(sweep, stage)
    draw_curves(out, read_curves(named, x=x), x=x)
    typer.echo(out)


def doctor(as_json: bool = o.AS_JSON) -> None:
    """Check packages, devices and decoding; prints problems, fixes and a summary.

    Example: everest doctor
    """
    from everest.profiling.doctor import run_checks, summarize_results

    results = run_checks()
    healthy = all(result.state != "broken" for result in results)
    if as_json:
        findings = [asdict(result) for result in results]
        print_json({"healthy": healthy, "summary": summarize_results(results), "findings": findings})
    else:
        widest = max(len(result.name) for result in results)
        for result in results:
            typer.echo(f"{result.state:<8} {result.name:<{widest}} {result.found}")
            if result.fix is not None:
                typer.echo(f"{'':<8} {'':<{widest}} fix: {result.fix}")
        begin = " Begin with `everest train VIDEOS`." if healthy else ""
        typer.echo(f"{summarize_results(results)}{begin}")
    if not healthy:
        raise typer.Exit(EnvironmentProblem.exit_code)


def select_frames(
    videos: list[Path] = o.VIDEOS_OR_FOLDERS,
    alpha: float = option("--alpha A", "Candidate frames per selected frame.", 1.5, min=1.0, max=1000),
    keep: float = option("--keep SHARE", "Keep ratio over all candidate tokens.", 0.3),
    frames: int = option("--frames N", "Number of frames to select.", 16, min=2),
    stride: int | None = option("--stride N", "Candidates at most N frames apart [the whole video].", min=1),
    size: int = option("--size N", "Shorter side, without a checkpoint.", 224, min=16, max=o.MAX_LENGTH),
    checkpoint: str | None = o.EMBEDDING,
    picture: Path | None = option("--picture DIR", "Folder for VIDEO-frames.png."),
    seed: int = o.SEED,
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
) -> None:
    """Select the frames of a video that change most; prints their numbers.

    Example: everest select-frames video.mp4 --picture .
    """
    from everest.checkpoints.load import open_model
    from everest.figures.frame_selection import SelectionOptions, draw_selection, select_video_frames
    from everest.lists.inputs import find_videos, refuse_same_stems
    from everest.video.folders import video_name

    read_keep_ratios(str(keep))
    model = None if checkpoint is None else open_model(checkpoint, kind="transformer")
    options = SelectionOptions(keep=keep, frames=frames, stride=stride, alpha=alpha, size=size, seed=seed)
    selection_of = partial(select_video_frames, options=options, checkpoint=model)
    paths = find_videos(videos)
    if picture is not None:
        refuse_same_stems(paths)
        image_folders = [path for path in paths if path.resolve() == picture.resolve()]
        refuse_inputs(picture, image_folders, option="--picture")
    rows: list[dict[str, Any]] = []
    for video, selection in _read_each(paths, selection_of):
        row = selection.to_dict()
        if picture is not None:
            figure = picture / f"{video_name(video)}-frames.png"
            check_new_file(figure, option="--picture", overwrite=overwrite)
            draw_selection(figure, selection)
            row["picture"] = str(figure)
        rows.append(row)
        if not as_json:
            typer.echo(f"{row['video']}: {' '.join(map(str, row['frames']))}")
    if as_json:
        print_json(rows[0] if len(paths) == len(rows) == 1 else rows)
    exit_if_failed(len(rows) < len(paths))


def visualize_mask(
    videos: list[Path] = o.VIDEOS_OR_FOLDERS,
    checkpoint: str | None = o.EMBEDDING,
    recipe: str | None = option(
        "--recipe -r R", "Use the clips and tokens of a recipe.", callback=o.refuse_sweep
    ),
    strategy: str | None = option(
        "--strategy NAME,…", "Token selections to draw [redundancy-robust, or C's or R's]."
    ),
    keep: str | None = option("--keep SHARE,…", "Keep ratios to draw [0.3, or C's or R's]."),
    compare: bool = option("--compare", "Draw the common strategies, too.", False),
    frames: int | None = option(
        "--frames N", "Frames of a clip [16, or C's or R's].", min=2, max=o.MAX_LENGTH
    ),
    stride: int | None = option("--stride N", "Distance between frames [4, or C's or R's].", min=1),
    size: int | None = option(
        "--size N", "Shorter side in pixels [224, R's, or the model's].", min=16, max=o.MAX_LENGTH
    ),
    out: Path = option("--output -o DIR", "Folder for VIDEO-mask.png, or a file (.png, .pdf, .svg).", Path()),
    seed: int = option("--seed N", "Seed of random selections.", 0, min=0),
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
) -> None:
    """Draw the visible and predicted tokens of videos; prints the paths of the figures.

    Example: everest visualize-mask video.mp4 --keep 0.5,0.25,0.15
    """
    from everest.checkpoints.load import open_model
    from everest.config.recipe import recipe_for_run
    from everest.figures.masks import MaskSettings
    from everest.figures.style import FIGURE_SUFFIXES
    from everest.lists.inputs import find_videos, refuse_same_stems

    both = checkpoint is not None and recipe is not None
    refuse({"--recipe: a checkpoint has its own clips; leave out --recipe or --checkpoint": both})
    is_file = out.suffix.lower() in FIGURE_SUFFIXES and not out.is_dir()
    other = out.suffix.lower() in (".jpg", ".jpeg", ".gif", ".webp", ".tif", ".tiff", ".bmp")
    refuse({f"--output {out}: name a folder, or a file that ends in {', '.join(FIGURE_SUFFIXES)}": other})
    settings = MaskSettings()
    if recipe is not None:
        settings = MaskSettings.of_recipe(recipe_for_run(recipe))
    elif checkpoint is not None:
        settings = MaskSettings.of_checkpoint(open_model(checkpoint))
    settings = settings.with_clip(frames=frames, stride=stride, side=size)
    texts = map(str.strip, strategy.split(",")) if strategy else ()
    names = [name if ":" in name else name.replace("_", "-") for name in texts]
    ratios = () if keep is None else read_keep_ratios(keep)
    strategies = settings.list_strategies(names, ratios, compare=compare)
    paths = find_videos(videos)
    refuse({f"--output {out}: a file for {len(paths)} videos; name a folder": is_file and len(paths) > 1})
    refuse_same_stems(paths)
    files: dict[str, Any] = {"out": out, "is_file": is_file, "read": paths, "overwrite": overwrite}
    draw = partial(settings.draw, strategies=strategies, seed=seed, **files)
    figures: list[list[dict[str, Any]]] = []
    for _, rows in _read_each(paths, draw):
        figures.append(rows)
        if not as_json:
            typer.echo(rows[0]["written"][0])
    if as_json:
        print_json([row for rows in figures for row in rows])
    exit_if_failed(len(figures) < len(paths))


def _read_each(videos: Sequence[Path], read: Callable[[Path], Read]) -> Iterator[tuple[Path, Read]]:
    """Yield each video with the result of `read`; the error of a damaged video goes to stderr."""
    for video in videos:
        try:
            result = read(video)
        except DataError as error:
            say(f"error: {error}")
        else:
            yield video, result
