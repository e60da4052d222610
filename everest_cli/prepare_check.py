"""`everest prepare check`: decodes every video of a data set."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everest.errors import EnvironmentProblem, RecipeError, first_names
from everest.system.text import counted
from everest_cli import options as o
from everest_cli.option_values import local_path, read_recipe
from everest_cli.output import Display, print_json, say

if TYPE_CHECKING:
    from everest.config.heads import Task
    from everest.lists.labels import LabelRules

SHOWN = 20  # problems of each kind on the screen
SAME = {"listed": "the same file", "file": "the same bytes", "frames": "the same first frames and length"}

Sources = Annotated[
    list[Path] | None,
    typer.Argument(parser=local_path, metavar="SOURCE…", help="Lists or folders [the recipe's]."),
]
RecipeOption = Annotated[
    str | None, typer.Option("--recipe", "-r", metavar="R", help="Recipe with the lists, classes and clips.")
]


def check(
    sources: Sources = None,
    recipe: RecipeOption = None,
    data: o.Root = None,
    overrides: o.Overrides = None,
    classes: o.ClassesFile = None,
    task: o.TaskName = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="For bad_videos.csv and the journal [the list's folder]."
        ),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write NAME.clean.csv next to each list that needs it.")
    ] = False,
    workers: o.PrepareWorkers = None,
    limit: o.Limit = 1800.0,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Decode every video whole, verify labels and lengths, find copies; exit code 4 if a check fails.

    A stopped check resumes when the same command is repeated.

    Example: everest prepare check --recipe ucf101 --data /data/ucf101
    """
    from everest.lists.checked import read_checked
    from everest.lists.label_facts import found_notice
    from everest.lists.writing import refuse_existing
    from everest.prepare.check import JOURNAL, check_sources
    from everest.prepare.clean import clean_path, write_clean_lists
    from everest.system.files import check_writable, write_table
    from everest.system.run_folder import BAD_VIDEOS
    from everest.video.folders import loose_videos_notice

    chosen = _choose_sources(sources, recipe, data, overrides, classes, task)
    lists, rules = read_checked(chosen.paths, root=chosen.root, rules=chosen.rules, task=chosen.task)
    notice = None if chosen.task or rules.heads else found_notice(lists[0].path, rules.task)
    if notice is not None:
        say(notice)
    for source in lists:
        if source.labeled and not source.is_list and (notice := loose_videos_notice(source.path)):
            say(notice)
    first = lists[0].path
    folder = output or (first.parent if first.is_file() else first)
    journal, bad_videos = folder / JOURNAL, folder / BAD_VIDEOS
    # Before hours of work: check that the output files can be written.
    read = [source.path for source in lists]
    refuse_existing([bad_videos], overwrite=overwrite or journal.exists(), read=read)
    targets = [clean_path(source) for source in lists] if fix else []
    refuse_existing(targets, overwrite=overwrite, read=read, fix="move it away")
    for path in (bad_videos, *targets):
        try:
            check_writable(path)
        except EnvironmentProblem as error:
            raise EnvironmentProblem(f"{error}; name another folder by --output") from error
    with Display(quiet=quiet) as display:
        result = check_sources(
            lists,
            rules,
            span=chosen.span,
            fps=chosen.fps,
            journal=journal,
            workers=workers or os.cpu_count() or 1,
            limit=limit,
            report=display.report,
            restart=overwrite,
            training=chosen.training,
        )
    write_table(bad_videos, [("path", "reason"), *result.bad.items()])
    cleaned = write_clean_lists(result, names=rules.names) if fix else []
    if as_json:
        print_json(result.to_dict() | {"written": [str(path) for path in (bad_videos, *cleaned)]})
    else:
        _print_check(result.to_dict(), chosen.span, chosen.fps)
        for path in cleaned:
            typer.echo(f"cleaned: {path}")
    if result.bad or result.labels or result.leaks:  # copies within one list are only reported
        raise typer.Exit(4)


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """The lists and folders to check, from the arguments or a recipe."""

    paths: dict[Path, bool]  # whether each is for pre-training
    root: Path | None  # that their paths are relative to
    rules: LabelRules
    task: Task | None = None  # None: as the labels show
    training: Path | None = None  # the source of `data.train`
    span: int | None = None  # frames from the first to the last of the longest clip
    fps: float | None = None  # that `span` counts (data.fps)


def _choose_sources(
    sources: list[Path] | None,
    recipe: str | None,
    data: Path | None,
    overrides: list[str] | None,
    classes: Path | None,
    task: Task | None,
) -> _Chosen:
    from everest.config.heads import named_heads
    from everest.lists.class_folders import read_names
    from everest.lists.labels import LabelRules

    if recipe is None:
        if not sources:
            raise RecipeError("nothing to check: name lists or folders, or a --recipe")
        if overrides:
            raise RecipeError("--set changes a recipe, and there is none; give one by --recipe")
        if classes and task == "regression":
            raise RecipeError("--classes: has no effect with --task regression, whose labels are numbers")
        rules = LabelRules(names=read_names(classes) if classes else ())
        return _Chosen(paths=dict.fromkeys(sources, False), root=data, rules=rules, task=task)
    if task is not None:
        raise RecipeError(f"--task: --recipe {recipe} has data.task; set it by --set data.task={task}")
    settings = read_recipe(recipe, data=None if data is None else str(data), overrides=overrides)
    root = local_path(settings.data.root)
    known = settings.data
    file = classes or (root / known.classes if known.classes else None)
    rules = LabelRules(
        names=read_names(file) if file else (),
        num_classes=known.num_classes,
        task=known.task,
        heads=named_heads(known.heads or {}),
    )
    named = [known.train, known.val, known.test]
    labeled = sources or [root / name for name in named if name is not None]
    paths = dict.fromkeys([root / known.pretrain] if known.pretrain and not sources else [], True)
    if not labeled and not paths:
        raise RecipeError(f"{recipe}: its data names no list; name lists or folders to check")
    stages = (settings.pretrain, settings.finetune)  # only dense sampling skips frames
    return _Chosen(
        paths=paths | dict.fromkeys(labeled, False),
        root=root,
        rules=rules,
        task=known.task,
        training=root / known.train if known.train else None,
        span=known.frames * max(stage.stride if stage.sampling == "dense" else 1 for stage in stages),
        fps=known.fps,
    )


def _print_check(document: dict[str, Any], span: int | None, fps: float | None) -> None:
    from everest.prepare.label_checks import RARE

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
    for name, facts in document["numbers"].items():
        typer.echo(f"{name}: {facts['min']:g} to {facts['max']:g}, mean {facts['mean']:g}")
    _print_some("bad", [f"{row['path']}: {row['reason']}" for row in document["bad"]])
    _print_some("labels", document["labels"])
    _print_some("classes without a video", document["unused_classes"])
    for leak, title in ((True, "in several lists"), (False, "twice in one list")):
        lines = []
        for row in document["duplicates"]:
            if row["leak"] == leak:
                reason = SAME[row["kind"]]
                if row["labels_differ"]:
                    reason += f", other labels: {' and '.join(row['rows'])}"
                lines.append(f"{' = '.join(row['videos'])} ({reason}; {', '.join(row['lists'])})")
        _print_some(title, lines)
    if document["short"]:
        rows = [f"{row['path']}: {row['frames']} frames" for row in document["short"]]
        rate = "" if fps is None else f" at {fps:g} per second"
        _print_some(f"shorter than a clip of {span} frames{rate}; some frames are repeated", rows)


def _print_some(title: str, lines: list[str]) -> None:
    if lines:
        typer.echo(f"{title}: {len(lines)}")
        for line in lines[:SHOWN]:
            typer.echo(f"  {line}")
        if len(lines) > SHOWN:
            typer.echo(f"  … {len(lines) - SHOWN} more; --json lists all")
