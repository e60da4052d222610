"""`everest prepare split`: divides a list or class folders into train, val and test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from everest.errors import first_names
from everest.system.text import counted
from everest_cli import options as o
from everest_cli.option_values import local_path
from everest_cli.output import print_json, say

if TYPE_CHECKING:
    from everest.lists.sample import Sample

MOST_NAMES: Final = 20  # our choice: groups that a line names


def split(
    source: Annotated[
        Path,
        typer.Argument(parser=local_path, metavar="SOURCE", help="A list or a folder of class folders."),
    ],
    shares: Annotated[
        str | None,
        typer.Option(
            "--shares",
            metavar="A/B/C",
            help="Shares of train, val and test, or of train and test [70/15/15].",
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            metavar="folder|column:NAME|REGEX",
            help="Keep videos together by folder, by a column, or by the match of (…) in the file name; "
            "path:REGEX, or a REGEX with /, matches the path below --data.",
        ),
    ] = None,
    class_column: Annotated[
        str | None,
        typer.Option("--class-column", metavar="NAME", help="Column with the classes [found by name]."),
    ] = None,
    task: o.TaskName = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Equal seeds give equal splits.")
    ] = 0,
    classes: o.ClassesFile = None,
    data: o.Root = None,
    output: o.ListsFolder = None,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
) -> None:
    """Split a data set into train, val and test: equal shares of every class, groups kept together.

    Example: everest prepare split all.csv --shares 80/20 --group '_g(\\d+)_'
    """
    from everest.lists.sample import ListSize
    from everest.prepare.index import CLASSES
    from everest.prepare.split import SHARES, LabeledVideos, read_shares
    from everest.suggest.data_section import commands_for_lists

    parts = SHARES if shares is None else read_shares(shares)
    root = (data or (source if source.is_dir() else source.parent)).absolute()
    videos = LabeledVideos.read(
        source, root=root, group=group, class_column=class_column, task=task, classes=classes
    )
    lists = videos.split(parts, seed=seed)
    folder = output or root
    written = list(videos.write(lists, folder, overwrite=overwrite).values())
    commands = commands_for_lists(lists, folder, root=root, heads=videos.heads, task=videos.task)
    document = {
        "seed": seed,
        "shares": {name: round(share, 5) for name, share in parts.items()},
        "lists": {name: _about(part, videos.names) for name, part in lists.items()},
        "written": [*written, *([str(folder / CLASSES)] if videos.names else [])],
        "task": videos.task,
        "next": commands,
    }
    for text in videos.notices:
        say(text)
    _print_lists(document["lists"], ListSize.of(videos.samples).unit)
    say(f"lists: {folder}")
    say("\n  ".join(["next:", *commands]))
    print_json(document) if as_json else typer.echo("\n".join(document["written"]))


def _about(samples: Sequence[Sample], names: Sequence[str]) -> dict[str, Any]:
    """The number of samples of a list, their groups, and their classes or numbers."""
    from everest.lists.labels import count_classes, number_facts

    labels = [sample.labels[0] for sample in samples if sample.labels]
    counts = sorted(count_classes(labels).items())
    return {
        "videos": len(samples),
        "groups": sorted({sample.group for sample in samples if sample.group is not None}),
        "classes": {names[index] if names else str(index): count for index, count in counts},
        "numbers": number_facts(labels),
    }


def _print_lists(lists: dict[str, dict[str, Any]], unit: str) -> None:
    total = sum(row["videos"] for row in lists.values())
    every_class = {name for row in lists.values() for name in row["classes"]}
    for name, row in lists.items():
        groups, numbers = row["groups"], row["numbers"]
        text = f"{name}: {counted(row['videos'], unit)} ({row['videos'] / total:.1%})"
        if numbers:
            text += f", labels from {numbers['min']:g} to {numbers['max']:g}, mean {numbers['mean']:g}"
        if groups:
            text += f" of {counted(len(groups), 'group')}: {first_names(groups, MOST_NAMES)}"
        say(text)
        empty = sorted(every_class - row["classes"].keys())
        if empty:
            reason = f"which have too few {unit}s or groups to be in every list"
            say(f"{name} has no {unit} of {counted(len(empty), 'class')}, {reason}: {first_names(empty)}")
