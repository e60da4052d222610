"""`everest recipes suggest`: a recipe for a folder of lists, or of class folders, which are divided first."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from everest.config.heads import Task
from everest.config.settings import DataSettings
from everest.errors import RecipeError
from everest.lists.sample import ListSize
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
    lists: Mapping[str, str],
    *,
    device: str,
    pretrain: str | None,
    unlabeled: bool,
    task: Task | None,
    group: str | None,
    hours: float | None,
    measured: bool,
    overwrite: bool,
    quiet: bool,
    notify: Callable[[str], None],
) -> Suggestion:
    """Write a recipe for a folder; class folders without lists get lists beside it.

    Args:
        lists: by their keys of the data section; empty: those in the folder.
        pretrain: videos to pre-train on first: a folder or a list.
        unlabeled: pre-train only.
        task: what a label is; None: as the labels show.
        group: of class folders, as `everest prepare split --group`.
        device, hours, measured: see `suggest_recipe`.
        quiet: do not notify of the lists.
    """
    divides = not (lists or unlabeled) and has_class_folders(data)
    if group is not None and not divides:
        raise RecipeError("--group: has no effect on lists; use it with class folders")
    suggest = partial(
        _suggest_for_lists,
        data,
        output,
        device=device,
        pretrain=pretrain,
        unlabeled=unlabeled,
        task=task,
        divided=divides,
        hours=hours,
        measured=measured,
        notify=notify,
    )
    if not divides:
        suggestion = suggest(lists)
        write_text(output, suggestion.text)
        return suggestion
    root = parse_location(data)
    folder = output.absolute().with_name(f"{output.name.removesuffix('.yaml')}-lists")
    if not isinstance(root, Path):
        raise RecipeError(f"{data}: remote class folders cannot be split; make lists of them")
    if output.absolute().parent == root.absolute():
        raise RecipeError(
            f"--output {output}: its lists would look like a class in this folder; name another folder"
        )
    if folder.exists() and not overwrite:
        raise RecipeError(f"{folder}: exists; name another recipe, or use --overwrite")
    part = folder.with_name(f"{folder.name}.part")  # until there is a recipe
    shutil.rmtree(part, ignore_errors=True)
    try:
        videos = LabeledVideos.read(root, root=root.absolute(), group=group)
        divided = videos.split()
        suggestion = suggest(videos.write(divided, part))
        folder.mkdir(exist_ok=True)
        for name in (*LIST_FILES.values(), CLASSES):  # of an earlier recipe
            (folder / name).unlink(missing_ok=True)
        for file in part.iterdir():
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sizes = (f"{name}: {ListSize.of(samples)}" for name, samples in divided.items())
    for text in () if quiet else (*videos.notices, *sizes, f"lists: {folder}"):
        notify(text)
    write_text(output, suggestion.text.replace(str(part), str(folder)))
    return suggestion


def _suggest_for_lists(
    data: str,
    output: Path,
    lists: Mapping[str, str],
    *,
    device: str,
    pretrain: str | None,
    unlabeled: bool,
    task: Task | None,
    divided: bool,
    notify: Callable[[str], None],
    **measuring: Any,
) -> Suggestion:
    """Suggest a recipe for lists; videos for pre-training must not be those of class folders, or of tests."""
    section = data_section(data, **lists, pretrain=pretrain, labeled=not unlabeled)
    if not unlabeled:
        section, reason = with_task(section, task)
        if reason is not None:
            notify(reason)
    if pretrain is not None or unlabeled:
        keys = ("train", "val", "test") if divided else ("val", "test")
        held = [section[key] for key in keys if section.get(key) is not None]
        held = held or [*named_lists(data, "val"), *named_lists(data, "test")]
        shared = shared_videos(DataSettings(**section), "train" if unlabeled else "pretrain", held)
        videos = counted(len(shared), "video")
        if shared and divided:
            raise RecipeError(
                f"--pretrain {pretrain}: has {videos} of {data}, which will be split; name another folder, "
                "or make lists first (everest prepare split) and use --train train.csv --pretrain train.csv"
            )
        given, fix = (
            (f"--unlabeled {data}", "--train") if unlabeled else (f"--pretrain {pretrain}", "--pretrain")
        )
        if shared:
            notify(
                f"warning: {given} has {videos} of the validation or test list, such as {shared[0]}, so "
                f"results will be too good; leave them out by {fix} LIST"
            )
    suggestion = suggest_recipe(
        section,
        device,
        purpose="pretrain" if unlabeled else "finetune" if pretrain else "scratch",
        output=output,
        **measuring,
    )
    missing = [name for name in ("val", "test") if section.get(name) is None]
    if missing and not unlabeled:
        fix = "`everest prepare split LIST` divides a list first; its --group keeps persons apart"
        fix = "label more videos, of further groups" if divided else fix
        notify(f"warning: no {' or '.join(missing)} list; {fix}")
    return suggestion
