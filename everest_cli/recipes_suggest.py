"""`everest recipes suggest`: writes a recipe for a data set and a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from everest.errors import RecipeError
from everest_cli import options as o
from everest_cli.output import say

SHARES: Final = "70/15/15"  # of the videos in class folders; our choice: enough to test on in small sets


def suggest(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A folder of class folders, or of the lists train.csv, …")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The recipe.")],
    train: Annotated[
        str | None, typer.Option("--train", metavar="LIST", help="Training list [train.csv].")
    ] = None,
    val: Annotated[
        str | None, typer.Option("--val", metavar="LIST", help="Validation list [val.csv].")
    ] = None,
    test: Annotated[str | None, typer.Option("--test", metavar="LIST", help="Test list [test.csv].")] = None,
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="G", help="Of class folders: as in `everest prepare split`."),
    ] = None,
    unlabeled: Annotated[
        bool, typer.Option("--unlabeled", help="For pre-training only: the videos have no classes.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="cpu|8GB|24GB|80GB", help="CPU or GPU memory [this machine's]."),
    ] = None,
    hours: Annotated[float, typer.Option("--hours", metavar="H", min=0.01, help="For both stages.")] = 1.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file and its lists.")] = False,
    quiet: o.Quiet = False,
) -> None:
    """Write a recipe for a data set and a device, with the reason for each value.

    Class folders without lists are split first, into FILE-lists.
    """
    from everest.config.recipe import load_recipe
    from everest.config.settings import DataSettings
    from everest.prepare.auto import this_device
    from everest.prepare.data_facts import data_section, examine_data, has_class_folders
    from everest.prepare.next_commands import training_commands
    from everest.prepare.suggest import DEVICES, recipe_text
    from everest.prepare.suggest import suggest as suggest_values
    from everest.system.files import check_new_file, write_text

    check_new_file(output, option="--output", overwrite=overwrite)
    lists = {name: given for name, given in (("train", train), ("val", val), ("test", test)) if given}
    device = device or this_device()
    if not (lists or unlabeled) and has_class_folders(data):
        lists = _split_folder(Path(data), output, group=group, overwrite=overwrite, quiet=quiet)
    elif group is not None:
        raise RecipeError("--group: has no effect on lists; it goes with a folder of class folders")
    section = data_section(data, **lists, labeled=not unlabeled)
    facts = examine_data(DataSettings(**section), labeled=not unlabeled)
    choices = suggest_values(facts, device, hours=hours, purpose="pretrain" if unlabeled else "scratch")
    text = recipe_text(choices, section, base=DEVICES[device].base, facts=facts)
    write_text(output, text)
    load_recipe(output, notify=say)
    without = [name for name in ("val", "test") if section.get(name) is None and not unlabeled]
    if without:
        parts = " or ".join(without)
        say(f"warning: no {parts} list; `everest prepare split LIST` divides one before training")
    if not quiet:
        commands = training_commands(output, labeled=not unlabeled, tested="test" not in without)
        say("\n  ".join(["next:", *commands]))
    typer.echo(output)


def _split_folder(
    data: Path, recipe: Path, *, group: str | None, overwrite: bool, quiet: bool
) -> dict[str, str]:
    """Split class folders into lists next to the recipe; returns the lists by their keys."""
    from everest_cli.prepare_split import print_split, split_source

    folder = recipe.absolute().with_name(f"{recipe.stem}-lists")
    document = split_source(
        data, shares=SHARES, group=group, root=data.absolute(), output=folder, overwrite=overwrite
    )
    if not quiet:
        print_split(document, group=group)
    return {name: str(folder / f"{name}.csv") for name in document["lists"]}
