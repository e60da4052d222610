"""`everest recipes suggest`: writes a recipe for a data set and a device."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everest.errors import RecipeError, unknown_name
from everest.system.text import counted
from everest_cli import options as o
from everest_cli.output import print_json, say

if TYPE_CHECKING:
    from everest.config.settings import DataSettings


def suggest(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Folder of class folders, or of lists (train.csv, …).")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The recipe to write.")],
    train: Annotated[
        str | None, typer.Option("--train", metavar="LIST", help="Training list [train.csv].")
    ] = None,
    val: Annotated[
        str | None, typer.Option("--val", metavar="LIST", help="Validation list [val.csv].")
    ] = None,
    test: Annotated[str | None, typer.Option("--test", metavar="LIST", help="Test list [test.csv].")] = None,
    pretrain: Annotated[
        str | None,
        typer.Option(
            "--pretrain", metavar="SOURCE", help="Videos to pre-train on first: a folder or a list."
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="G", help="Groups of class folders; see `everest prepare split`."),
    ] = None,
    unlabeled: Annotated[
        bool, typer.Option("--unlabeled", help="Pre-train only, on videos without classes.")
    ] = False,
    task: o.TaskName = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="cpu|8GB|24GB|80GB", help="CPU or GPU memory [this machine's]."),
    ] = None,
    hours: Annotated[
        float | None,
        typer.Option("--hours", metavar="H", min=0.01, max=10_000, help="Maximum hours per stage."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file and its lists.")] = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Write a recipe for a data set and a device, with the reason for each value; prints its path.

    Class folders without lists are split first, into FILE-lists.
    """
    from everest.config.settings import DataSettings
    from everest.suggest.data_section import data_section, has_class_folders, training_commands, with_task
    from everest.suggest.rules import DEVICES
    from everest.suggest.suggestion import suggest_recipe, this_device
    from everest.system.files import check_new_file, write_text

    check_new_file(output, option="--output", overwrite=overwrite)
    for option, given in (("--train", train), ("--val", val), ("--test", test), ("--pretrain", pretrain)):
        if given == "":
            raise RecipeError(f"{option}: empty; name a list or a folder")
    for option, given in (("--task", task), ("--pretrain", pretrain)):
        if unlabeled and given is not None:
            raise RecipeError(f"{option}: has no effect with --unlabeled")
    device = device or this_device()
    if device not in DEVICES:
        raise unknown_name("--device", device, DEVICES)
    is_here = device in ("cpu", this_device())
    if hours is not None and not is_here:
        raise RecipeError(
            f"--hours: cannot measure the speed of --device {device} on this machine; leave it out"
        )
    lists = {name: given for name, given in (("train", train), ("val", val), ("test", test)) if given}
    divided = None
    if not (lists or unlabeled) and has_class_folders(data):
        divided = _DividedFolder(data, output, group=group, overwrite=overwrite)
        lists = divided.lists
    elif group is not None:
        raise RecipeError("--group: has no effect on lists; use it with class folders")
    try:
        section = data_section(data, **lists, pretrain=pretrain, labeled=not unlabeled)
        if not unlabeled:
            section, found = with_task(section, task)
            if found is not None:
                say(found)
        if pretrain is not None or unlabeled:
            _check_held_out(pretrain, DataSettings(**section), data, divided=divided is not None)
        suggestion = suggest_recipe(
            section,
            device,
            purpose="pretrain" if unlabeled else "finetune" if pretrain else "scratch",
            output=output,
            hours=hours,
            measured=is_here and not (quiet and hours is None and not as_json),
            notify=say,
        )
        text = suggestion.text
        if divided is not None:
            text = divided.move(text, quiet=quiet)
        write_text(output, text)
    finally:
        if divided is not None:
            divided.clear()
    without = [name for name in ("val", "test") if section.get(name) is None and not unlabeled]
    if without:
        fix = "`everest prepare split LIST` divides a list first; its --group keeps persons apart"
        if divided is not None:
            fix = "label more videos, of further groups"
        say(f"warning: no {' or '.join(without)} list; {fix}")
    commands = training_commands(
        output, labeled=not unlabeled, tested="test" not in without, pretrained=pretrain is not None
    )
    if not quiet:
        for time in suggestion.times:
            say(str(time))
        say("\n  ".join(["next:", *commands]))
    if as_json:
        stages = [time._asdict() for time in suggestion.times]
        print_json({"recipe": str(output), "stages": stages, "next": commands})
    else:
        typer.echo(output)


def _check_held_out(source: str | None, settings: DataSettings, data: str, *, divided: bool) -> None:
    """Refuse videos of class folders for pre-training, and warn if videos for testing are among them.

    Args:
        source: the option --pretrain; None: pre-training on the unlabeled videos of `data`.
    """
    from everest.suggest.data_section import held_out_lists, shared_videos

    keys = ("train", "val", "test") if divided else ("val", "test")
    lists = [name for key in keys if (name := getattr(settings, key)) is not None]
    shared = shared_videos(settings, "pretrain" if source else "train", lists or held_out_lists(data))
    videos = counted(len(shared), "video")
    if shared and divided:
        raise RecipeError(
            f"--pretrain {source}: has {videos} of {data}, which will be split; name another folder, or make "
            "lists first (everest prepare split) and use --train train.csv --pretrain train.csv"
        )
    if shared:
        option = f"--pretrain {source}" if source else f"--unlabeled {data}"
        fix = "--pretrain" if source else "--train"
        say(
            f"warning: {option} has {videos} of the validation or test list, such as {shared[0]}, so "
            f"results will be too good; leave them out by {fix} LIST"
        )


class _DividedFolder:
    """The lists of class folders, made in a folder of their own and moved next to the recipe at the end."""

    def __init__(self, data: str, recipe: Path, *, group: str | None, overwrite: bool) -> None:
        from everest.prepare.split import LabeledVideos
        from everest.system.storage import parse_location

        root = parse_location(data)
        if not isinstance(root, Path):
            raise RecipeError(f"{data}: remote class folders cannot be split; make lists of them")
        self._folder = recipe.absolute().with_name(f"{recipe.name.removesuffix('.yaml')}-lists")
        if recipe.absolute().parent == root.absolute():
            raise RecipeError(
                f"--output {recipe}: its lists would look like a class in this folder; name another folder"
            )
        if self._folder.exists() and not overwrite:
            raise RecipeError(f"{self._folder}: exists; name another recipe, or use --overwrite")
        self._part = self._folder.with_name(f"{self._folder.name}.part")
        self.clear()
        self._videos = LabeledVideos.read(root, root=root.absolute(), group=group)
        self._lists = self._videos.split()
        self.lists = self._videos.write(self._lists, self._part)

    def move(self, recipe: str, *, quiet: bool) -> str:
        """Move the lists to their folder, and print their sizes; returns the recipe with their new paths."""
        from everest.lists.sample import ListSize

        self._folder.mkdir(exist_ok=True)
        for name in ("train.csv", "val.csv", "test.csv", "classes.txt"):  # of an earlier recipe
            (self._folder / name).unlink(missing_ok=True)
        for file in self._part.iterdir():
            file.replace(self._folder / file.name)
        sizes = [f"{name}: {ListSize.of(samples)}" for name, samples in self._lists.items()]
        for text in () if quiet else (*self._videos.notices, *sizes, f"lists: {self._folder}"):
            say(text)
        return recipe.replace(str(self._part), str(self._folder))

    def clear(self) -> None:
        """Remove the lists that were not moved."""
        shutil.rmtree(self._part, ignore_errors=True)
