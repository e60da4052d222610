"""`everest prepare index` and `everest prepare split`: lists from archives, and their cuts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everest_cli import options as o
from everest_cli.output import print_json, say

if TYPE_CHECKING:
    from everest.data.samples import Sample
    from everest.prepare.index import Index
    from everest.prepare.split import GroupOf

OutputFolder = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Folder for the lists [that of the videos]."),
]


def index(
    folder: Annotated[
        Path,
        typer.Argument(parser=o.local_path, metavar="FOLDER", help="The data set: data.root of a recipe."),
    ],
    layout: Annotated[
        str | None,
        typer.Option("--layout", metavar="NAME", help="ucf101, hmdb51, ssv2, kinetics, … [what fits]."),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(
            "--annotations", parser=o.local_path, metavar="DIR", help="Where they are, if not below FOLDER."
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
    """Write lists from what the archives of a data set contain; prints the lines for a recipe.

    Example: everest prepare index /data/ucf101
    """
    from everest.prepare.index import read_index, recipe_lines, write_index

    found = read_index(folder, annotations=annotations, layout=layout, split=split)
    target = output or folder
    written = write_index(found, target, overwrite=overwrite)
    data = recipe_lines(found, target)
    if not quiet:
        _tell_index(found, written)
    if as_json:
        print_json(found.to_dict() | {"written": [str(path) for path in written], "data": data})
    else:
        _print_recipe(data)


def _tell_index(found: Index, written: Sequence[Path]) -> None:
    lists = ", ".join(f"{name} {len(samples)}" for name, samples in found.lists.items())
    say(f"{found.layout}: {lists}" + (f"; {len(found.class_names)} classes" if found.class_names else ""))
    told = found.to_dict()
    if told["missing"] or told["extra"] or told["unlistable"]:
        say(
            f"{told['missing']} videos missing, {told['extra']} in no list, {told['unlistable']} with names "
            f"that no list can hold: {written[-1]}"
        )


def _print_recipe(data: Mapping[str, Any]) -> None:
    import yaml

    typer.echo(
        yaml.safe_dump({"data": dict(data)}, sort_keys=False, allow_unicode=True, width=1000), nl=False
    )


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
        str, typer.Option("--shares", metavar="A/B/C", help="Of train, val and test, or of train and test.")
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
        int, typer.Option("--seed", metavar="N", min=0, help="The same cut for the same number.")
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
    """Cut a data set into train, val and test: every class in the same shares, groups whole.

    Example: everest prepare split all.csv --shares 80/20 --group '_g(\\d+)_'
    """
    from everest.errors import RecipeError
    from everest.prepare.split import grouping

    group_of = grouping(group)
    if check:
        _check_split(sources, data, group_of, as_json=as_json)
        return
    if len(sources) > 1:
        raise RecipeError(f"{len(sources)} sources given and one is cut; --check takes several lists")
    (source,) = sources
    told = _cut(
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
        _tell_split(told)
    if as_json:
        print_json(told)
    else:
        typer.echo("\n".join(told["written"]))


def _cut(
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
    """Cut, write, and tell what is where."""
    from everest.prepare.sources import read_labelled
    from everest.prepare.split import read_shares, split_samples, write_split

    parts = read_shares(shares)
    found, heads = read_labelled(source, root=root, classes=classes)
    lists = split_samples(found.samples, parts, group_of=group_of, seed=seed)
    names = found.class_names or ()
    written = write_split(
        lists, output or root, root=root, names=names, heads=heads, source=source, overwrite=overwrite
    )
    groups = {name: len({group_of(sample) for sample in samples}) for name, samples in lists.items()}
    return {
        "seed": seed,
        "lists": {
            name: {
                "videos": len(samples),
                "share": round(len(samples) / len(found.samples), 5),
                "groups": groups[name],
                "classes": _count_classes(samples, names),
            }
            for name, samples in lists.items()
        },
        "written": [str(path) for path in written],
    }


def _count_classes(samples: Sequence[Sample], names: Sequence[str]) -> dict[str, int]:
    counts = Counter(sample.labels[0] for sample in samples if sample.labels)
    return {names[label] if names else str(label): count for label, count in sorted(counts.items())}


def _tell_split(told: Mapping[str, Any]) -> None:
    every = {name for row in told["lists"].values() for name in row["classes"]}
    for name, row in told["lists"].items():
        say(f"{name}: {row['videos']} videos ({row['share']:.1%}) of {row['groups']} groups")
        without = sorted(every - row["classes"].keys())
        if without:
            shown = ", ".join(without[:5]) + (", …" if len(without) > 5 else "")
            say(f"{name} has nothing of {len(without)} classes, whose groups are too few: {shown}")


def _check_split(lists: Sequence[Path], root: Path | None, group_of: GroupOf, *, as_json: bool) -> None:
    """Tell groups that stand in several lists; exit code 4 when there are any."""
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
        say(f"{len(leaks)} groups stand in several lists")
        raise typer.Exit(4)
    say(f"no group stands in two of the {len(lists)} lists")
