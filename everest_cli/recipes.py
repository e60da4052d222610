"""`everest recipes`: suggest, list, show and copy recipes. Listing and copying need no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from everest.errors import RecipeError, unknown_name
from everest.system.files import check_new_file, write_text, writing
from everest.system.text import counted
from everest_cli import options as o
from everest_cli.options import Task, argument, option
from everest_cli.output import print_json, print_result, print_table, say

if TYPE_CHECKING:
    from everest.config.settings import DataSettings

TEMPLATES: Final = ("custom", "small")  # recipes for any videos

app = typer.Typer(help="Recipes: list, show, copy, suggest.", no_args_is_help=True)


@app.command(epilog="Example: everest recipes suggest /data/mice -o mice.yaml")
def suggest(
    data: str = argument("DATA", "Folder of class folders, or of lists (train.csv, …)."),
    output: Path = option("--output -o FILE", "The recipe to write.", ...),
    train: str | None = option("--train LIST", "Training list [train.csv]."),
    val: str | None = option("--val LIST", "Validation list [val.csv]."),
    test: str | None = option("--test LIST", "Test list [test.csv]."),
    pretrain: str | None = option("--pretrain SOURCE", "Videos to pre-train on first: a folder or a list."),
    group: str | None = option("--group G", "Groups of class folders; see `everest prepare split`."),
    unlabeled: bool = option("--unlabeled", "Pre-train only, on videos without classes.", False),
    task: Task | None = o.TASK,
    device: str | None = option("--device cpu|8GB|24GB|80GB", "CPU or GPU memory [this machine's]."),
    hours: float | None = option("--hours H", "Maximum hours per stage.", min=0.01, max=10_000),
    overwrite: bool = option("--overwrite", "Replace the file and its lists.", False),
    as_json: bool = o.AS_JSON,
    quiet: bool = o.QUIET,
) -> None:
    """Write a recipe for a data set and a device, with the reason for each value; prints its path.

    Class folders without lists are split first, into FILE-lists.
    """
    from everest.config.settings import DataSettings
    from everest.suggest.data_section import data_section, has_class_folders, training_commands, with_task
    from everest.suggest.divided_folder import DividedFolder
    from everest.suggest.suggestion import suggest_recipe

    check_new_file(output, option="--output", overwrite=overwrite)
    for name, given in (("task", task), ("pretrain", pretrain)):
        if unlabeled and given is not None:
            raise RecipeError(f"--{name}: has no effect with --unlabeled")
    device, is_here = _read_device(device, hours)
    lists = {"train": train, "val": val, "test": test}
    lists = {name: given for name, given in lists.items() if given is not None}
    divided = None
    if not (lists or unlabeled) and has_class_folders(data):
        divided = DividedFolder(data, output, group=group, overwrite=overwrite)
        lists = divided.lists
    elif group is not None:
        raise RecipeError("--group: has no effect on lists; use it with class folders")
    try:
        section = data_section(data, **lists, pretrain=pretrain, labeled=not unlabeled)
        if not unlabeled:
            section, reason = with_task(section, task)
            if reason is not None:
                say(reason)
        if pretrain is not None or unlabeled:
            _check_held_out(pretrain, DataSettings(**section), data, divided=divided is not None)
        suggestion = suggest_recipe(
            section,
            device,
            purpose="pretrain" if unlabeled else "finetune" if pretrain else "scratch",
            output=output,
            hours=hours,
            measured=is_here and not (quiet and hours is None and not as_json),
        )
        text = suggestion.text
        if divided is not None:
            text = divided.move(text, notify=(lambda text: None) if quiet else say)
        write_text(output, text)
    finally:
        if divided is not None:
            divided.clear()
    if not unlabeled:
        _warn_of_missing_lists(section, divided=divided is not None)
    is_tested, is_pretrained = section.get("test") is not None, pretrain is not None
    commands = training_commands(output, labeled=not unlabeled, tested=is_tested, pretrained=is_pretrained)
    if not quiet:
        say(*map(str, suggestion.times), "\n  ".join(["next:", *commands]))
    stages = [time._asdict() for time in suggestion.times]
    print_result({"recipe": str(output), "stages": stages, "next": commands}, output, as_json=as_json)


def _read_device(name: str | None, hours: float | None) -> tuple[str, bool]:
    """The device of --device, and whether it is of this machine: only there, --hours can be measured."""
    from everest.suggest.rules import DEVICES
    from everest.suggest.suggestion import this_device

    device = name or this_device()
    if device not in DEVICES:
        raise unknown_name("--device", device, DEVICES)
    is_here = device in ("cpu", this_device())
    if hours is not None and not is_here:
        raise RecipeError(
            f"--hours: cannot measure the speed of --device {device} on this machine; leave it out"
        )
    return device, is_here


def _check_held_out(source: str | None, settings: DataSettings, data: str, *, divided: bool) -> None:
    """Refuse videos of class folders for pre-training, and warn if videos for testing are among them.

    Args:
        source: the option --pretrain; None: pre-training on the unlabeled videos of `data`.
    """
    from everest.suggest.data_section import held_out_lists, shared_videos

    keys = ("train", "val", "test") if divided else ("val", "test")
    lists = [name for key in keys if (name := getattr(settings, key)) is not None]
    shared = shared_videos(settings, "pretrain" if source else "train", lists or held_out_lists(data))
    if not shared:
        return
    videos = counted(len(shared), "video")
    if divided:
        raise RecipeError(
            f"--pretrain {source}: has {videos} of {data}, which will be split; name another folder, or make "
            "lists first (everest prepare split) and use --train train.csv --pretrain train.csv"
        )
    given, fix = (f"--pretrain {source}", "--pretrain") if source else (f"--unlabeled {data}", "--train")
    say(
        f"warning: {given} has {videos} of the validation or test list, such as {shared[0]}, so "
        f"results will be too good; leave them out by {fix} LIST"
    )


def _warn_of_missing_lists(section: Mapping[str, Any], *, divided: bool) -> None:
    """Warn if there is no validation or test list, with the way to one."""
    without = [name for name in ("val", "test") if section.get(name) is None]
    fix = "`everest prepare split LIST` divides a list first; its --group keeps persons apart"
    if without:
        fix = "label more videos, of further groups" if divided else fix
        say(f"warning: no {' or '.join(without)} list; {fix}")


@app.command("list", epilog="Example: everest recipes list --json")
def list_recipes(as_json: bool = option("--json", "One JSON list of names and summaries.", False)) -> None:
    """Name and summary of every shipped recipe."""
    from rich.table import Column

    from everest.config.recipe_files import shipped_names, shipped_recipe

    rows = [{"name": name, "summary": shipped_recipe(name).summary} for name in shipped_names()]
    if as_json:
        print_json(rows)
    else:
        columns = (Column("recipe", no_wrap=True), "summary")
        print_table(columns, [(row["name"], row["summary"]) for row in rows], box=None)


@app.command(epilog="Example: everest recipes show ucf101 --set data.frames=24 --resolved")
def show(
    name: str = argument("NAME", "A shipped recipe, or the path of a recipe or a sweep file."),
    overrides: list[str] | None = o.OVERRIDES,
    resolved: bool = option("--resolved", "All settings, with base and defaults filled in.", False),
) -> None:
    """Check a recipe or all arms of a sweep file; print it as written, or with all settings.

    --set changes the settings that --resolved prints. All problems are listed.
    """
    from everest.config.recipe_files import find_recipe
    from everest.sweep.request import is_sweep, read_request

    file = find_recipe(name)
    if is_sweep(file):
        from everest.config.recipe import recipe_values
        from everest.config.yaml import write_yaml
        from everest.sweep.plan import resolve_arms

        arms = resolve_arms(read_request(name, overrides=overrides or ()), data=None)
        text = write_yaml({arm: recipe_values(recipe) for arm, recipe in arms.items()})
    else:
        from everest.config.recipe import dump_recipe, load_recipe

        text = dump_recipe(load_recipe(file, overrides=overrides or ()))
    typer.echo(text if resolved else file.text, nl=False)


@app.command(epilog="Example: everest recipes copy custom my.yaml")
def copy(
    name: str = argument("NAME", "A shipped recipe."),
    destination: Path = argument("DEST", "A file or folder.", Path(), show_default="this folder"),
) -> None:
    """Copy a recipe to a file of your own, and print where it is."""
    from everest.config.recipe_files import shipped_recipe

    recipe = shipped_recipe(name)
    path = destination / f"{recipe.name}.yaml" if destination.is_dir() else destination
    if path.exists():
        raise RecipeError(f"{path}: exists already; name another file")
    with writing(path), path.open("x", encoding="utf-8") as file:
        file.write(recipe.text)
    if recipe.name in TEMPLATES:
        typer.echo("`everest recipes suggest VIDEOS` fits a recipe to your videos and your machine", err=True)
    typer.echo(path)
