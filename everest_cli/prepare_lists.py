"""`everest prepare index` and `everest prepare split`: lists from archives, and splits of lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everest_cli import options as o
from everest_cli.output import print_json, say

if TYPE_CHECKING:
    from everest.prepare.split import GroupOf

OutputFolder = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Folder for the lists [the videos' folder]."),
]


def index(
    folder: Annotated[
        Path,
        typer.Argument(parser=o.local_path, metavar="FOLDER", help="The data set: data.root of a recipe."),
    ],
    layout: Annotated[
        str | None,
        typer.Option("--layout", metavar="NAME", help="ucf101, hmdb51, ssv2, kinetics, … [detected]."),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(
            "--annotations",
            parser=o.local_path,
            metavar="DIR",
            help="Folder of the annotations, if not below FOLDER.",
        ),
    ] = None,
    split: Annotated[
        int, typer.Option("--split", min=1, max=3, help="The official split of UCF101, HMDB51.")
    ] = 1,
    output: OutputFolder = None,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Write lists from the annotations of a data set; prints the lines for a recipe.

    Example: everest prepare index /data/ucf101
    """
    from everest.prepare.index import read_index, recipe_lines, write_index

    result = read_index(folder, annotations=annotations, layout=layout, split=split)
    target = output or folder
    written = write_index(result, target, overwrite=overwrite)
    data, document = recipe_lines(result, target), result.to_dict()
    if not quiet:
        lists = ", ".join(f"{name} {len(samples)}" for name, samples in result.lists.items())
        classes = f"; {len(result.class_names)} classes" if result.class_names else ""
        say(f"{result.layout}: {lists}{classes}")
        if document["missing"] or document["extra"] or document["unlistable"]:
            say(
                f"{document['missing']} videos missing, {document['extra']} in no list, "
                f"{document['unlistable']} with names that no list can hold: {written[-1]}"
            )
    if as_json:
        print_json(document | {"written": [str(path) for path in written], "data": data})
    else:
        from everest.config.yaml import write_yaml

        typer.echo(write_yaml({"data": dict(data)}, width=1000), nl=False)


def split(
    sources: Annotated[
        list[Path],
        typer.Argument(
            parser=o.local_path,
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
            metavar="folder|REGEX",
            help="Videos of one folder, or with the same match of (…) in their names, stay together.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Equal seeds give equal splits.")
    ] = 0,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; look for groups in several lists.")
    ] = False,
    classes: o.ClassesFile = None,
    data: o.Root = None,
    output: OutputFolder = None,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Split a data set into train, val and test: equal shares of every class, groups kept together.

    Example: everest prepare split all.csv --shares 80/20 --group '_g(\\d+)_'
    """
    from everest.errors import RecipeError
    from everest.prepare.split import grouping

    group_of = grouping(group)
    if check:
        _check_split(sources, data, group_of, as_json=as_json)
        return
    if len(sources) > 1:
        raise RecipeError(
            f"{len(sources)} sources given, but only one can be split; --check takes several lists"
        )
    (source,) = sources
    document = _split_source(
        source,
        shares=shares,
        group_of=group_of,
        seed=seed,
        classes=classes,
        root=(data or (source if source.is_dir() else source.parent)).absolute(),
        output=output,
        overwrite=overwrite,
    )
    if not quiet:
        every_class = {name for row in document["lists"].values() for name in row["classes"]}
        for name, row in document["lists"].items():
            say(f"{name}: {row['videos']} videos ({row['share']:.1%}) of {row['groups']} groups")
            empty = sorted(every_class - row["classes"].keys())
            if empty:
                some = ", ".join(empty[:5]) + (", …" if len(empty) > 5 else "")
                say(f"{name} has no video of {len(empty)} classes, which have too few groups: {some}")
    if as_json:
        print_json(document)
    else:
        typer.echo("\n".join(document["written"]))


def _split_source(
    source: Path,
    *,
    shares: str,
    group_of: GroupOf,
    seed: int,
    classes: Path | None,
    root: Path,
    output: Path | None,
    overwrite: bool,
) -> dict[str, Any]:
    """Split a list, write the parts, and return a summary of them."""
    from everest.prepare.sources import read_labeled
    from everest.prepare.split import read_shares, split_samples, write_split

    parts = read_shares(shares)
    data, heads = read_labeled(source, root=root, classes=classes)
    lists = split_samples(data.samples, parts, group_of=group_of, seed=seed)
    names = data.class_names or ()
    read = [source, *([classes] if classes else [])]
    written = write_split(
        lists, output or root, root=root, names=names, heads=heads, read=read, overwrite=overwrite
    )
    summaries = {}
    for name, samples in lists.items():
        labels = Counter(sample.labels[0] for sample in samples if sample.labels)
        summaries[name] = {
            "videos": len(samples),
            "share": round(len(samples) / len(data.samples), 5),
            "groups": len({group_of(sample) for sample in samples}),
            "classes": {names[i] if names else str(i): count for i, count in sorted(labels.items())},
        }
    return {
        "seed": seed,
        "lists": summaries,
        "written": [str(path) for path in written],
    }


def _check_split(lists: Sequence[Path], root: Path | None, group_of: GroupOf, *, as_json: bool) -> None:
    """Print groups that are in several lists; exit code 4 if there are any."""
    from dataclasses import asdict

    from everest.data.samples import read_samples
    from everest.errors import RecipeError
    from everest.prepare.split import find_leaks

    if len({path.resolve() for path in lists}) < len(lists):
        raise RecipeError("--check: a list is given twice; leave it out once")
    samples = {
        str(path): read_samples(
            path, root=root or path.parent, classes=None, num_classes=None, heads=None, labeled=False
        ).samples
        for path in lists
    }
    leaks = find_leaks(samples, group_of)
    if as_json:
        counts = {name: len(members) for name, members in samples.items()}
        print_json({"lists": counts, "leaks": [asdict(leak) for leak in leaks]})
    else:
        for leak in leaks:
            typer.echo(
                f"{leak.group}: " + ", ".join(f"{count} in {name}" for name, count in leak.lists.items())
            )
    if leaks:
        say(f"{len(leaks)} groups are in several lists")
        raise typer.Exit(4)
    say(f"no group is in two of the {len(lists)} lists")
