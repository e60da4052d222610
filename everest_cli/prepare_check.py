"""`everest prepare check` and `everest prepare stats`: decode the videos of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from everest.errors import EnvironmentProblem, RecipeError, first_names
from everest.system.files import check_writable, write_table
from everest.system.processes import num_cores
from everest.system.run_folder import BAD_COLUMNS, BAD_VIDEOS
from everest.system.text import counted
from everest_cli import options as o
from everest_cli.options import Task, argument, local_path, option, refuse, root_of
from everest_cli.output import Display, exit_if_failed, print_json, say

if TYPE_CHECKING:
    from everest.lists.reading import SampleList

SHOWN = 20  # problems of each kind on the screen
DIGITS = 4  # heuristic, of a mean and std: a fortieth of a level of a byte


def check(
    sources: list[Path] | None = argument(
        "SOURCE…", "Lists or folders, the training list first.", None, parser=local_path
    ),
    recipe: str | None = option("--recipe -r R", "Recipe with the lists and classes."),
    data: Path | None = o.LOCAL_ROOT,
    overrides: list[str] | None = o.OVERRIDES,
    task: Task | None = o.TASK,
    output: Path | None = option("--output -o DIR", "Folder for bad_videos.csv and progress [the list's]."),
    limit: float = option(
        "--timeout SECONDS", "Longest time before a video counts as bad.", 1800.0, min=0.01
    ),
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
    quiet: bool = o.QUIET,
) -> None:
    """Check labels, decode every video, find duplicates; exit code 4 on failure.

    A stopped check resumes when the same command is repeated.

    Example: everest prepare check --recipe ucf101 --data /data/ucf101
    """
    from everest.lists.writing import refuse_existing
    from everest.prepare.check import JOURNAL, check_lists

    lists, paths = _read_lists(sources or [], recipe, data=data, task=task, overrides=overrides)
    say(*(samples.notice for samples in lists.values() if samples.notice is not None))
    folder = root_of(paths[0], output)
    journal, bad_videos = folder / JOURNAL, folder / BAD_VIDEOS
    # Before hours of work: check that the output can be written.
    refuse_existing([bad_videos], overwrite=overwrite or journal.exists(), read=paths)
    try:
        check_writable(bad_videos)
    except EnvironmentProblem as error:
        raise EnvironmentProblem(f"{error}; name another folder by --output") from error
    with Display(quiet=quiet) as display:
        document = check_lists(
            lists,
            may_repeat=None if recipe is None else "pretrain",
            journal=journal,
            workers=num_cores(),
            limit=limit,
            report=display.report,
            restart=overwrite,
        )
    bad = [(row["path"], row["reason"]) for row in document["bad"]]
    write_table(bad_videos, [BAD_COLUMNS, *bad])
    document |= {"written": [str(bad_videos)]}
    if as_json:
        print_json(document)
    else:
        _print_check(document)
    exit_if_failed(bad or document["leaks"])  # copies within one list are only reported


def _read_lists(
    sources: list[Path],
    recipe: str | None,
    *,
    data: Path | None,
    task: Task | None,
    overrides: list[str] | None,
) -> tuple[dict[str, SampleList], list[Path]]:
    """Read the named lists and folders, or the lists of a recipe as its stages read them.

    Returns:
        The lists by name, the training list first, and their paths.
    """
    from everest.config.recipe import recipe_for_run
    from everest.lists.classes import Classes
    from everest.lists.reading import read_labeled
    from everest.lists.sources import read_source

    refuse(
        {
            "nothing to check: give a list or a folder, or --recipe": recipe is None and not sources,
            "--set needs --recipe, whose values it changes": recipe is None and overrides,
            f"--recipe {recipe} sets the lists and the task; leave out SOURCE and --task": (
                recipe and (sources or task)
            ),
        }
    )
    lists: dict[str, SampleList] = {}
    if recipe is None:
        known: dict[str, Any] = {"task": task}  # from the first list
        for source in sources:
            listed = read_labeled(source, root=root_of(source, data), **known, may_miss=True)
            if not lists:
                heads = {"task": listed.task, "heads": listed.heads, "of_model": True}
                known |= {"class_names": listed.class_names, **(heads if listed.heads else {})}
            lists[str(source)] = listed
        return lists, sources
    settings = recipe_for_run(recipe, data=data, overrides=overrides)
    section, classes = settings.data, None
    root, paths = local_path(section.root), []
    for key in ("train", "val", "test", "pretrain"):
        path = getattr(section, key)
        if path is None or path in paths:  # data.test may be data.val
            continue
        paths.append(path)
        lists[key] = read_source(section, key, labeled=key != "pretrain", classes=classes, may_miss=True)
        if key == "train":
            classes = Classes.of(lists[key], section)
    if not lists:
        raise RecipeError(f"{recipe}: names no lists; give lists or folders to check")
    return lists, [root / path for path in paths]


def _print_check(document: dict[str, Any]) -> None:
    from everest.prepare.check import RARE

    checked = counted(document["checked"], "video")
    typer.echo(f"{document['ok']} of {checked} decode completely")
    if document["frames"]:
        frames, seconds = document["frames"], document["seconds"]
        lengths = f", {seconds['min']:.2f} to {seconds['max']:.2f} s" if seconds else ""
        typer.echo(f"frames: {frames['min']} to {frames['max']}, median {frames['median']:g}{lengths}")
    counts = [row["videos"] for row in document["classes"]]
    if counts:
        fewest = "" if min(counts) == max(counts) else f"{min(counts)} to "
        typer.echo(f"classes: {len(counts)}, with {fewest}{counted(max(counts), 'video')} each")
    if document["rare_classes"]:
        rare = [f"{row['class']} ({row['videos']})" for row in document["rare_classes"]]
        typer.echo(f"warning: fewer than {RARE} training videos: {first_names(rare, SHOWN)}")
    problems = {"bad": [f"{row['path']}: {row['reason']}" for row in document["bad"]]}
    for leak, title in ((True, "in several lists"), (False, "twice in one list")):
        problems[title] = [
            f"{' = '.join(row['videos'])} ({', '.join(row['lists'])})"
            + (", with other labels" if row["labels_differ"] else "")
            for row in document["duplicates"]
            if row["leak"] == leak
        ]
    for title, lines in problems.items():
        if lines:
            typer.echo("\n  ".join([f"{title}: {len(lines)}", *lines[:SHOWN]]))
        if len(lines) > SHOWN:
            typer.echo(f"  … {len(lines) - SHOWN} more; --json lists all")


def stats(
    source: Path = argument("SOURCE", "A list, or a folder of videos.", parser=local_path),
    most: int | None = option("--videos N", "Use N random videos of each class [all].", min=1),
    data: Path | None = o.LOCAL_ROOT,
    task: Task | None = o.TASK,
    as_json: bool = o.AS_JSON,
    quiet: bool = o.QUIET,
) -> None:
    """Print mean and std of the colors, lengths, class balance and camera motion.

    Motion is the mean absolute difference of neighboring gray frames, from 0 (still) to 1.

    Example: everest prepare stats train.csv
    """
    from everest.lists.reading import read_labeled
    from everest.prepare.stats import MOTION, take_stats

    listed = read_labeled(source, root=root_of(source, data), task=task)
    if listed.notice is not None:
        say(listed.notice)
    with Display(quiet=quiet) as display:
        document = take_stats(listed, most=most, workers=num_cores(), report=display.report)
    if as_json:
        print_json(document)
        return
    typer.echo(f"{document['measured']} of {document['videos']} videos measured")
    options = []
    for name in ("mean", "std"):
        typer.echo(f"{name} of red, green, blue: " + ", ".join(f"{value:.4f}" for value in document[name]))
        options.append(f"--set 'data.{name}={[round(value, DIGITS) for value in document[name]]}'")
    typer.echo(f"for a recipe: {' '.join(options)}")
    for name in ("seconds", "frames"):
        if document[name]:
            least, middle, most = (document[name][key] for key in ("min", "median", "max"))
            typer.echo(f"{name}: {least:.4g} to {most:.4g}, median {middle:.4g}")
    strides = ", ".join(f"{clip} frames: {stride or 'none'}" for clip, stride in document["strides"].items())
    typer.echo(f"largest stride that fits 95 % of the videos, for clips of {strides}")
    if document["numbers"]:
        facts = (f"{name} {value:g}" for name, value in document["numbers"].items())
        typer.echo(f"labels: {', '.join(facts)}")
    camera = document["camera"]
    typer.echo(
        f"camera: of the neighboring frames sampled, it moves in {camera['moving']:.0%}; in "
        f"{camera['unexplained']:.0%}, the change has another cause (cuts, fast motion, large objects)"
    )
    typer.echo(f"motion: {document['motion']:.4f} ({MOTION})")
    if document["classes"]:
        typer.echo(f"largest class / smallest: {document['imbalance']:g}")
    for row in document["classes"]:
        motion = "" if row["motion"] is None else f", motion {row['motion']:.4f}"
        typer.echo(f"  {row['class']}: {counted(row['videos'], 'video')}{motion}")
