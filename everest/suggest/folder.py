"""`everest recipes suggest`: a recipe for a folder of lists, or of class folders, which are divided first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from everest.config.heads import Task
from everest.config.settings import DataSettings
from everest.errors import RecipeError
from everest.lists.sample import ListSize, Sample
from everest.lists.sources import LIST_FILES
from everest.prepare.index import CLASSES
from everest.prepare.split import LabeledVideos
from everest.suggest.data_section import (
    data_section,
    has_class_folders,
    named_lists,
    shared_videos,
    with_task,
)
from everest.suggest.suggestion import Suggestion, suggest_recipe
from everest.system.files import write_text
from everest.system.storage import parse_location
from everest.system.text import counted


def suggest_for_folder(
    data: str,
    output: Path,
    *,
    lists: Mapping[str, str],
    device: str,
    pretrain: str | None,
    unlabeled: bool,
    task: Task | None,
    group: str | None,
    hours: float | None,
    measured: bool,
    overwrite: bool,
    notify: Callable[[str], None],
) -> tuple[Suggestion, list[str]]:
    """Write a recipe for a folder; class folders without lists get lists beside it, which lines describe.

    Args:
        lists: by their keys of the data section; empty: those in the folder.
        pretrain, unlabeled: videos to pre-train on first, a folder or a list; or pre-train only.
        task, group: None: as the labels and lists show.
        device, hours, measured: see `suggest_recipe`.
    """
    divides = not (lists or unlabeled) and has_class_folders(data)
    if group is not None and not divides:
        raise RecipeError("--group: has no effect on lists; use it with class folders")
    folder = output.absolute().with_name(f"{output.name.removesuffix('.yaml')}-lists")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Lists for as long as there is no recipe; beside their folder, as YAML may quote other paths.
    with TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as trial:
        videos, parts = None, {}
        if divides:
            videos, parts = _divide(data, output, folder, group=group, overwrite=overwrite)
            lists = videos.write(parts, Path(trial))
        section = data_section(data, **lists, pretrain=pretrain, labeled=not unlabeled)
        if not unlabeled:
            section, reason = with_task(section, task)
            if reason is not None:
                notify(reason)
        if pretrain is not None or unlabeled:
            _compare_videos(DataSettings(**section), data, pretrain, divided=divides, notify=notify)
        purpose = "pretrain" if unlabeled else "finetune" if pretrain else "scratch"
        suggestion = suggest_recipe(
            section, device, purpose=purpose, output=output, hours=hours, measured=measured
        )
    lines = []
    if videos is not None:
        for name in (*LIST_FILES.values(), CLASSES):  # of an earlier recipe
            (folder / name).unlink(missing_ok=True)
        videos.write(parts, folder)
        sizes = (f"{name}: {ListSize.of(samples)}" for name, samples in parts.items())
        lines = [*videos.notices, *sizes, f"lists: {folder}"]
    write_text(output, suggestion.text.replace(trial, str(folder)))
    missing = [name for name in ("val", "test") if section.get(name) is None]
    if missing and not unlabeled:
        fix = "`everest prepare split LIST` divides a list first; its --group keeps people apart"
        fix = "label more videos, of further groups" if divides else fix
        notify(f"warning: no {' or '.join(missing)} list; {fix}")
    return suggestion, lines


def _divide(
    data: str, output: Path, folder: Path, *, group: str | None, overwrite: bool
) -> tuple[LabeledVideos, dict[str, list[Sample]]]:
    """The videos of class folders, and their parts for the lists in `folder`."""
    root = parse_location(data)
    if not isinstance(root, Path):
        raise RecipeError(f"{data}: remote class folders cannot be split; make lists of them")
    if folder.parent == root.absolute():
        raise RecipeError(
            f"--output {output}: its lists would look like a class in this folder; name another folder"
        )
    if folder.exists() and not overwrite:
        raise RecipeError(f"{folder}: exists; name another recipe, or use --overwrite")
    videos = LabeledVideos.read(root, root=root.absolute(), group=group)
    return videos, videos.split()


def _compare_videos(
    settings: DataSettings, data: str, source: str | None, *, divided: bool, notify: Callable[[str], None]
) -> None:
    """Refuse videos of class folders for pre-training, and warn if videos for testing are among them.

    Args:
        source: the option --pretrain; None: pre-training on the unlabeled videos of `data`.
    """
    keys = ("train", "val", "test") if divided else ("val", "test")
    lists: Sequence[str] = [name for key in keys if (name := getattr(settings, key)) is not None]
    lists = lists or [*named_lists(data, "val"), *named_lists(data, "test")]
    shared = shared_videos(settings, "pretrain" if source else "train", lists)
    videos = counted(len(shared), "video")
    if shared and divided:
        raise RecipeError(
            f"--pretrain {source}: has {videos} of {data}, which will be split; name another folder, or make "
            "lists first (everest prepare split) and use --train train.csv --pretrain train.csv"
        )
    if shared:
        given, fix = (f"--pretrain {source}", "--pretrain") if source else (f"--unlabeled {data}", "--train")
        notify(
            f"warning: {given} has {videos} of the validation or test list, such as {shared[0]}, so "
            f"results will be too good; leave them out by {fix} LIST"
        )
