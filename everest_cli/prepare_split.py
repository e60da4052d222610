"""`everest prepare split`: divides a list, and looks for groups that are in several lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everest.errors import RecipeError
from everest_cli import options as o
from everest_cli.option_values import local_path
from everest_cli.output import print_json, say
from everest_cli.split_text import print_split

if TYPE_CHECKING:
    from everest.config.heads import Task
    from everest.lists.sample import Sample

TEXTS = ("notices", "advice")  # of a summary, for people
NO_GROUPS = (
    "Without --group, nothing is known about leakage: clips of one recording, person or scene may be in "
    "several lists, and the test would measure memory. If files are named like anna_03.mp4, "
    r"--group '(\w+)_\d+' keeps the clips of anna together."
)
LISTED_GROUPS = "Without --group, the column 'group' is not used; --group column:group keeps groups together."


def split(
    sources: Annotated[
        list[Path],
        typer.Argument(
            parser=local_path,
            metavar="SOURCE…",
            help="A list or a folder of class folders; with --check lists.",
        ),
    ],
    shares: Annotated[
        str,
        typer.Option(
            "--shares", metavar="A/B/C", help="Shares of train, val and test, or of train and test."
        ),
    ] = "80/10/10",
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
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; look for groups in several lists.")
    ] = False,
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
    if check:
        if class_column is not None:
            raise RecipeError("--class-column has no effect with --check, which compares videos only")
        if task is not None:
            raise RecipeError("--task has no effect with --check, which compares videos only")
        _check_split(sources, data, group, as_json=as_json)
        return
    if len(sources) > 1:
        raise RecipeError(
            f"{len(sources)} sources given, but only one can be split; --check takes several lists"
        )
    (source,) = sources
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
        print_json({key: value for key, value in document.items() if key not in TEXTS})
    else:
        typer.echo("\n".join(document["written"]))


def _advice(group: str | None, samples: Iterable[Sample]) -> str | None:
    """A hint for a split without groups."""
    if group is not None:
        return None
    return NO_GROUPS if all(sample.group is None for sample in samples) else LISTED_GROUPS


def split_source(
    source: Path,
    *,
    shares: str,
    group: str | None,
    root: Path,
    output: Path | None,
    overwrite: bool,
    class_column: str | None = None,
    task: Task | None = None,
    seed: int = 0,
    classes: Path | None = None,
) -> dict[str, Any]:
    """Split a list, write the parts, and return a summary of them, with notices and the next commands."""
    from everest.lists.groups import COLUMN, FOLDER, grouping, with_groups
    from everest.lists.labeled import read_labeled
    from everest.lists.sample import ListSize
    from everest.prepare.split import read_shares, split_samples, write_split
    from everest.suggest.next_commands import commands_for_lists

    parts = read_shares(shares)
    grouped_by = group.removeprefix(COLUMN) if group is not None and group.startswith(COLUMN) else None
    labeled = read_labeled(
        source,
        root=root,
        classes=classes,
        class_column=class_column,
        task=task,
        used_columns=() if grouped_by is None else (grouped_by,),
    )
    data = labeled.data
    group_of = grouping(group, root=root, lists={source: data})
    lists = split_samples(data.samples, parts, group_of=group_of, seed=seed)
    if group is not None:
        base = root if group == FOLDER else None
        lists = {name: with_groups(samples, group_of, base=base) for name, samples in lists.items()}
    names = data.class_names or ()
    read = [source, *([classes] if classes else [])]
    folder = output or root
    written = write_split(
        lists, folder, root=root, names=names, heads=labeled.heads, read=read, overwrite=overwrite
    )
    return {
        "seed": seed,
        "shares": {name: round(share, 5) for name, share in parts.items()},
        "lists": {
            name: {
                "videos": len(samples),
                "share": round(len(samples) / len(data.samples), 5),
                "groups": len({group_of(sample) for sample in samples}),
                "group_names": [] if group is None else sorted({str(sample.group) for sample in samples}),
                **_label_counts(samples, names, labeled.task),
            }
            for name, samples in lists.items()
        },
        "unit": ListSize.of(data.samples).unit,
        "folder": str(folder),
        "written": [str(path) for path in written],
        "task": labeled.task,
        "next": commands_for_lists(lists, folder, root=root, heads=labeled.heads, task=labeled.task),
        "notices": [
            text for text in (data.notice, labeled.notice, labeled.without_labels(source)) if text is not None
        ],
        "advice": _advice(group, data.samples),
    }


def _label_counts(samples: Sequence[Sample], names: Sequence[str], task: Task) -> dict[str, Any]:
    """The samples of each class, and facts about the numbers if labels are numbers."""
    from everest.lists.label_facts import count_classes, number_facts

    labels = [sample.labels[0] for sample in samples if sample.labels]
    counts = {names[i] if names else str(i): count for i, count in sorted(count_classes(labels).items())}
    return {"classes": counts, **({"numbers": number_facts(labels)} if task == "regression" else {})}


def _check_split(lists: Sequence[Path], root: Path | None, group: str | None, *, as_json: bool) -> None:
    """Print groups that are in several lists; exit code 4 if there are any."""
    from dataclasses import asdict, replace

    from everest.lists.groups import COLUMN, find_leaks, grouping
    from everest.lists.reading import read_list, read_samples

    if len({path.resolve() for path in lists}) < len(lists):
        raise RecipeError("--check: a list is given twice; leave it out once")
    by_column = group is not None and group.startswith(COLUMN)
    listed = {
        path: replace(
            read_samples(path, root=root or path.parent, labeled=False),
            rows=read_list(path) if by_column else None,
        )
        for path in lists
    }
    folders = {path.parent for path in lists}
    base = root or (folders.pop() if len(folders) == 1 else None)
    group_of = grouping(group, root=base, lists=listed)
    leaks = find_leaks({str(path): data.samples for path, data in listed.items()}, group_of)
    if as_json:
        counts = {str(path): len(data.samples) for path, data in listed.items()}
        print_json({"lists": counts, "group": group, "leaks": [asdict(leak) for leak in leaks]})
    else:
        for leak in leaks:
            typer.echo(
                f"{leak.group}: " + ", ".join(f"{count} in {name}" for name, count in leak.lists.items())
            )
    what = "videos" if group is None else "groups"
    if leaks:
        say(f"{len(leaks)} {what} are in several lists")
        raise typer.Exit(4)
    advice = _advice(group, (sample for data in listed.values() for sample in data.samples))
    if advice:
        say(f"no video is in two of the {len(lists)} lists. {advice}")
    else:
        say(f"no group is in two of the {len(lists)} lists")
