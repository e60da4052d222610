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
    from everest.config.heads import Task
    from everest.lists.sample import Sample

SHARES: Final = "70/15/15"  # our choice: enough to test on in small sets
MOST_NAMES: Final = 20  # our choice: groups that a line names
NO_GROUPS: Final = (
    "Without --group, nothing is known about leakage: clips of one recording, person or scene may be in "
    "several lists, and the test would measure memory. If files are named like anna_03.mp4, "
    r"--group '(\w+)_\d+' keeps the clips of anna together."
)
LISTED_GROUPS: Final = (
    "Without --group, the column 'group' is not used; --group column:group keeps groups together."
)


def split(
    source: Annotated[
        Path,
        typer.Argument(parser=local_path, metavar="SOURCE", help="A list or a folder of class folders."),
    ],
    shares: Annotated[
        str,
        typer.Option(
            "--shares", metavar="A/B/C", help="Shares of train, val and test, or of train and test."
        ),
    ] = SHARES,
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            metavar="folder|column:NAME|REGEX",
            help="Videos of one folder, with one value in a column, or with the same match of (…) in their "
            "file name stay together; path:REGEX, or a REGEX with /, matches the path from --data on.",
        ),
    ] = None,
    class_column: Annotated[
        str | None,
        typer.Option("--class-column", metavar="NAME", help="Column of a sheet with the classes [by name]."),
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
    quiet: o.Quiet = False,
) -> None:
    """Split a data set into train, val and test: equal shares of every class, groups kept together.

    Example: everest prepare split all.csv --shares 80/20 --group '_g(\\d+)_'
    """
    document = split_source(
        source,
        shares=shares,
        group=group,
        class_column=class_column,
        task=task,
        seed=seed,
        classes=classes,
        root=(data or (source if source.is_dir() else source.parent)).absolute(),
        output=output,
        overwrite=overwrite,
    )
    if not quiet:
        print_split(document, group=group)
        say("\n  ".join(["next:", *document["next"]]))
    if as_json:
        print_json({key: value for key, value in document.items() if key != "notices"})
    else:
        typer.echo("\n".join(document["written"]))


def split_source(
    source: Path,
    *,
    group: str | None,
    root: Path,
    output: Path | None,
    overwrite: bool,
    shares: str = SHARES,
    class_column: str | None = None,
    task: Task | None = None,
    seed: int = 0,
    classes: Path | None = None,
) -> dict[str, Any]:
    """Split a list, write the parts, and return a summary of them, with notices and the next commands."""
    from dataclasses import replace

    from everest.lists.labels import read_class_names
    from everest.lists.reading import read_labeled
    from everest.lists.sample import ListSize
    from everest.prepare.split import COLUMN, groups_of, read_shares, split_samples, write_split
    from everest.suggest.next_commands import commands_for_lists

    parts = read_shares(shares)
    data = read_labeled(
        source,
        root=root,
        classes=read_class_names(classes) if classes else None,
        task=task,
        class_column=class_column,
        group_column=group.removeprefix(COLUMN) if group and group.startswith(COLUMN) else None,
    )
    samples, names = data.samples, data.class_names or ()
    groups = groups_of(samples, group, root=root)
    if group is not None:
        pairs = zip(samples, groups, strict=True)
        samples = tuple(replace(sample, group=name) for sample, name in pairs)
    lists = split_samples(samples, parts, groups=groups, seed=seed)
    heads = [head.name for head in data.heads if head.name]
    read = [source, *([classes] if classes else [])]
    folder = output or root
    written = write_split(lists, folder, root=root, names=names, heads=heads, read=read, overwrite=overwrite)
    notices = [data.notice]
    if group is None:
        notices.append(NO_GROUPS if all(sample.group is None for sample in samples) else LISTED_GROUPS)
    return {
        "seed": seed,
        "shares": {name: round(share, 5) for name, share in parts.items()},
        "lists": {
            name: {
                "videos": len(part),
                "share": round(len(part) / len(samples), 5),
                "groups": [] if group is None else sorted({str(sample.group) for sample in part}),
                **_label_counts(part, names),
            }
            for name, part in lists.items()
        },
        "unit": ListSize.of(samples).unit,
        "folder": str(folder),
        "written": [str(path) for path in written],
        "task": data.task,
        "next": commands_for_lists(lists, folder, root=root, heads=heads, task=data.task),
        "notices": [text for text in notices if text is not None],
    }


def _label_counts(samples: Sequence[Sample], names: Sequence[str]) -> dict[str, Any]:
    """The samples of each class, and facts about the numbers if labels are numbers."""
    from everest.lists.label_facts import count_classes, number_facts

    labels = [sample.labels[0] for sample in samples if sample.labels]
    counts = {names[i] if names else str(i): count for i, count in sorted(count_classes(labels).items())}
    return {"classes": counts, "numbers": number_facts(labels)}


def print_split(document: dict[str, Any], *, group: str | None) -> None:
    """Print the notices and the counts of a split to stderr."""
    unit = document["unit"]
    every_class = {name for row in document["lists"].values() for name in row["classes"]}
    for name, row in document["lists"].items():
        groups, numbers = row["groups"], row["numbers"]
        text = f"{name}: {counted(row['videos'], unit)} ({row['share']:.1%})"
        if numbers:
            text += f", labels from {numbers['min']:g} to {numbers['max']:g}, mean {numbers['mean']:g}"
        if groups:
            text += f" of {counted(len(groups), 'group')}: {first_names(groups, MOST_NAMES)}"
        say(text)
        empty = sorted(every_class - row["classes"].keys())
        if empty:
            reason = f"which have too few {unit if group is None else 'group'}s to be in every list"
            say(f"{name} has no {unit} of {counted(len(empty), 'class')}, {reason}: {first_names(empty)}")
    say(f"lists: {document['folder']}")
    for text in document["notices"]:
        say(text)
