"""`everest prepare`: the commands that make a data set usable; here those that write and divide lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from everest.errors import first_names
from everest.system.text import counted
from everest_cli import options as o
from everest_cli import prepare_check, prepare_files, prepare_windows
from everest_cli.options import Task, argument, local_path, option, root_of
from everest_cli.output import print_json, print_result, say

if TYPE_CHECKING:
    from everest.lists.sample import Sample

app = typer.Typer(help="Make a data set usable: lists, splits, checks, faster files.", no_args_is_help=True)
MOST_NAMES: Final = 20  # our choice: groups that a line names


def index(
    folder: Path = argument("FOLDER", "The data set: data.root of a recipe.", parser=local_path),
    annotations: Path | None = option(
        "--annotations DIR", "Folder of the annotations, if not below FOLDER.", parser=local_path
    ),
    split: int = option("--split N", "Official split of UCF101 or HMDB51.", 1, min=1, max=3),
    output: Path | None = o.LISTS_FOLDER,
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
) -> None:
    """Write lists from the annotations of a data set; prints the lines for a recipe.

    Example: everest prepare index /data/ucf101
    """
    from everest.prepare.index import index_folder, write_index

    result = index_folder(folder, annotations=annotations, split=split)
    document = write_index(result, output or folder, overwrite=overwrite)
    lists = ", ".join(f"{name} {count}" for name, count in document["lists"].items())
    classes = f"; {counted(len(result.class_names), 'class')}" if result.class_names else ""
    say(f"{document['layout']}: {lists}{classes}")
    if result.notice is not None:
        say(result.notice)
    if document["missing"] or document["extra"]:
        missing = counted(document["missing"], "video")
        say(f"{missing} missing, {document['extra']} in no list: {document['written'][-1]}")
    if as_json:
        print_json(document)
    else:
        from everest.config.yaml import write_yaml

        typer.echo(write_yaml({"data": document["data"]}, width=1000), nl=False)


def split(
    source: Path = argument("SOURCE", "A list or a folder of class folders.", parser=local_path),
    shares: str | None = option(
        "--shares A/B/C", "Shares of train, val and test, or of train and test [70/15/15]."
    ),
    group: str | None = option(
        "--group folder|column:NAME|REGEX",
        "Keep videos together by folder, by a column, or by the match of (…) in the file name; "
        "path:REGEX, or a REGEX with /, matches the path below --data.",
    ),
    class_column: str | None = option("--class-column NAME", "Column with the classes [found by name]."),
    task: Task | None = o.TASK,
    seed: int = option("--seed N", "Equal seeds give equal splits.", 0, min=0),
    classes: Path | None = option("--classes FILE", "Class names in order, one per line.", parser=local_path),
    data: Path | None = o.LOCAL_ROOT,
    output: Path | None = o.LISTS_FOLDER,
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
) -> None:
    """Split a data set into train, val and test: equal shares of every class, groups kept together.

    Example: everest prepare split all.csv --shares 80/20 --group '_g(\\d+)_'
    """
    from everest.lists.sample import ListSize
    from everest.prepare.index import CLASSES
    from everest.prepare.split import SHARES, LabeledVideos, read_shares

    parts = SHARES if shares is None else read_shares(shares)
    root = root_of(source, data).absolute()
    videos = LabeledVideos.read(
        source, root=root, group=group, class_column=class_column, task=task, classes=classes
    )
    lists = videos.split(parts, seed=seed)
    folder = output or root
    written = list(videos.write(lists, folder, overwrite=overwrite).values())
    document = {
        "seed": seed,
        "shares": {name: round(share, 5) for name, share in parts.items()},
        "lists": {name: _summary(part, videos.names) for name, part in lists.items()},
        "written": [*written, *([str(folder / CLASSES)] if videos.names else [])],
        "task": videos.task,
    }
    say(*videos.notices)
    _print_lists(document["lists"], ListSize.of(videos.samples).unit)
    say(f"lists: {folder}")
    print_result(document, "\n".join(document["written"]), as_json=as_json)


def _summary(samples: Sequence[Sample], names: Sequence[str]) -> dict[str, Any]:
    """The facts of a list in the document of --json."""
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


# In the order of help.
for name, command, line in (
    ("index", index, "Write lists from the annotations of a data set."),
    ("annotations", prepare_windows.convert_annotations, "Convert annotations of times; label windows."),
    ("split", split, "Divide videos into train, val and test lists."),
    ("windows", prepare_windows.windows, "List windows of long videos."),
    ("check", prepare_check.check, "Decode every video, verify labels, find copies."),
    ("encode", prepare_files.encode, "Re-encode videos so that training reads them faster."),
    ("stats", prepare_check.stats, "Measure colors, lengths, class balance and motion."),
    ("shard", prepare_files.shard, "Pack the videos of a list into tar files."),
    ("tokens", prepare_files.tokens, "Cache the outputs of LVMAE's tokenizer."),
):
    app.command(name, short_help=line)(command)
