"""`everest prepare check`: decodes every video of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everest.errors import EnvironmentProblem, RecipeError, first_names
from everest.system.machine import num_cores
from everest.system.text import counted
from everest_cli import options as o
from everest_cli.option_values import local_path, read_recipe
from everest_cli.output import Display, print_json, say

if TYPE_CHECKING:
    from everest.config.heads import Task
    from everest.lists.reading import SampleList

SHOWN = 20  # problems of each kind on the screen

Sources = Annotated[
    list[Path] | None,
    typer.Argument(parser=local_path, metavar="SOURCE…", help="Lists or folders, the training list first."),
]
RecipeOption = Annotated[
    str | None, typer.Option("--recipe", "-r", metavar="R", help="Recipe with the lists, classes and clips.")
]


def check(
    sources: Sources = None,
    recipe: RecipeOption = None,
    data: o.Root = None,
    overrides: o.Overrides = None,
    task: o.TaskName = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder for bad_videos.csv and progress [the list's]."
        ),
    ] = None,
    limit: Annotated[
        float,
        typer.Option(
            "--timeout", metavar="SECONDS", min=0.01, help="Longest time before a video counts as bad."
        ),
    ] = 1800.0,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Check labels, decode every video, find short ones and duplicates; exit code 4 on failure.

    A stopped check resumes when the same command is repeated.

    Example: everest prepare check --recipe ucf101 --data /data/ucf101
    """
    from everest.lists.writing import refuse_existing
    from everest.prepare.check import JOURNAL, check_lists
    from everest.system.files import check_writable, write_table
    from everest.system.run_folder import BAD_VIDEOS

    if recipe is None:
        chosen = _read_sources(sources or [], data, task, overrides)
    else:
        if sources or task:
            raise RecipeError(f"--recipe {recipe} sets the lists and the task; leave out SOURCE and --task")
        chosen = _read_recipe(recipe, data, overrides)
    for listed in chosen.lists.values():
        if listed.notice is not None:
            say(listed.notice)
    folder = output or (chosen.paths[0] if chosen.paths[0].is_dir() else chosen.paths[0].parent)
    journal, bad_videos = folder / JOURNAL, folder / BAD_VIDEOS
    # Before hours of work: check that the output can be written.
    refuse_existing([bad_videos], overwrite=overwrite or journal.exists(), read=chosen.paths)
    try:
        check_writable(bad_videos)
    except EnvironmentProblem as error:
        raise EnvironmentProblem(f"{error}; name another folder by --output") from error
    with Display(quiet=quiet) as display:
        document = check_lists(
            chosen.lists,
            span=chosen.span,
            fps=chosen.fps,
            apart=chosen.apart,
            journal=journal,
            workers=num_cores(),
            limit=limit,
            report=display.report,
            restart=overwrite,
        )
    bad = [(row["path"], row["reason"]) for row in document["bad"]]
    write_table(bad_videos, [("path", "reason"), *bad])
    document |= {"written": [str(bad_videos)]}
    print_json(document) if as_json else _print_check(document, chosen)
    if bad or document["leaks"]:  # copies within one list are only reported
        raise typer.Exit(4)


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """The lists and folders to check, from the arguments or a recipe."""

    lists: dict[str, SampleList]  # by name, the training list first
    paths: list[Path]  # of the lists
    span: int | None = None  # frames from the first to the last of the longest clip
    fps: float | None = None  # that `span` counts (data.fps)
    apart: str | None = None  # the list for pre-training, which may repeat other lists


def _read_sources(
    sources: list[Path],
    data: Path | None,
    task: Task | None,
    overrides: list[str] | None,
) -> _Chosen:
    from everest.lists.reading import read_labeled

    if not sources:
        raise RecipeError("nothing to check: give a list or a folder, or --recipe")
    if overrides:
        raise RecipeError("--set needs --recipe, whose values it changes")
    lists: dict[str, SampleList] = {}
    for source in sources:
        first = next(iter(lists.values()), None)
        lists[str(source)] = read_labeled(
            source,
            root=data or (source if source.is_dir() else source.parent),
            classes=None if first is None else first.class_names,
            task=first.task if first is not None and first.heads else task,
            heads=() if first is None else first.heads,
            names_classes=first is None or not first.heads,
            may_miss=True,
        )
    return _Chosen(lists=lists, paths=sources)


def _read_recipe(recipe: str, data: Path | None, overrides: list[str] | None) -> _Chosen:
    """The lists as the stages of a recipe read them."""
    from everest.lists.classes import Classes
    from everest.lists.stage import read_stage

    settings = read_recipe(recipe, data=None if data is None else str(data), overrides=overrides)
    known, root = settings.data, local_path(settings.data.root)
    named: dict[str, str] = {}
    for key in ("train", "val", "test", "pretrain"):
        path = getattr(known, key)
        if path is not None and path not in named.values():  # data.test may be data.val
            named[key] = path
    if not named:
        raise RecipeError(f"{recipe}: names no lists; give lists or folders to check")
    lists: dict[str, SampleList] = {}
    classes = None
    for key in named:
        labeled = key != "pretrain"
        lists[key] = read_stage(known, key, labeled=labeled, classes=classes, may_miss=True)
        if key == "train":
            classes = Classes.of(lists[key], known)
    stages = (settings.pretrain, settings.finetune)  # only dense sampling skips frames
    return _Chosen(
        lists=lists,
        paths=[root / path for path in named.values()],
        span=known.frames * max(stage.stride if stage.sampling == "dense" else 1 for stage in stages),
        fps=known.fps,
        apart="pretrain",
    )


def _print_check(document: dict[str, Any], chosen: _Chosen) -> None:
    from everest.prepare.check import RARE

    checked = counted(document["checked"], "video")
    typer.echo(f"{checked} checked, {document['ok']} can be decoded whole")
    if document["frames"]:
        frames, seconds = document["frames"], document["seconds"]
        lengths = f", {seconds['min']:.2f} to {seconds['max']:.2f} s" if seconds else ""
        typer.echo(f"frames: {frames['min']} to {frames['max']}, median {frames['median']:g}{lengths}")
    counts = [row["videos"] for row in document["classes"]]
    if counts:
        typer.echo(f"classes: {len(counts)}, of {min(counts)} to {counted(max(counts), 'video')}")
    if document["rare_classes"]:
        rare = [f"{row['class']} ({row['videos']})" for row in document["rare_classes"]]
        typer.echo(f"warning: fewer than {RARE} training videos: {first_names(rare, SHOWN)}")
    _print_some("bad", [f"{row['path']}: {row['reason']}" for row in document["bad"]])
    for leak, title in ((True, "in several lists"), (False, "twice in one list")):
        lines = [
            f"{' = '.join(row['videos'])} ({', '.join(row['lists'])})"
            + (", with other labels" if row["labels_differ"] else "")
            for row in document["duplicates"]
            if row["leak"] == leak
        ]
        _print_some(title, lines)
    rows = [f"{row['path']}: {row['frames']} frames" for row in document["short"]]
    rate = "" if chosen.fps is None else f" at {chosen.fps:g} per second"
    _print_some(f"shorter than a clip of {chosen.span} frames{rate}; some frames are repeated", rows)


def _print_some(title: str, lines: list[str]) -> None:
    if lines:
        typer.echo(f"{title}: {len(lines)}")
        for line in lines[:SHOWN]:
            typer.echo(f"  {line}")
        if len(lines) > SHOWN:
            typer.echo(f"  … {len(lines) - SHOWN} more; --json lists all")
