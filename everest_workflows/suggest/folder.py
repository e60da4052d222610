"""`everest recipes suggest`: a recipe for a folder of videos, with lists of its class folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from everest.checkpoints.describe import read_weight_settings
from everest.config.heads import Task
from everest.config.settings import DataSettings
from everest.errors import RecipeError
from everest.lists.sample import ListSize, Sample
from everest.lists.sources import LIST_FILES
from everest.lists.writing import CLASSES_FILE
from everest.prepare.split import LabeledVideos
from everest.system.events import Emit, notice, warning
from everest.system.files import make_folder, write_text
from everest.system.moved_folder import move_files
from everest.system.storage import parse_location
from everest.system.text import plural
from everest_workflows.suggest.data_section import (
    find_named_lists,
    find_shared_videos,
    has_class_folders,
    make_data_section,
    with_task,
)
from everest_workflows.suggest.rules import RecipePurpose
from everest_workflows.suggest.suggestion import Suggestion, suggest_recipe


@dataclass(frozen=True, kw_only=True)
class SuggestRequest:
    data: str  # a folder with class folders or lists
    output: Path
    lists: Mapping[str, str]  # by their keys of the data section; empty: those in the folder
    device: str  # one of `DEVICE_VALUES`
    pretrain: str | None  # a folder or a list of videos to pre-train on first
    unlabeled: bool  # pre-train only, on `pretrain` or `data`
    task: Task | None  # None: as the labels show
    group: str | None  # of the videos of class folders
    init: str | None  # the weights to start from; None: from scratch
    hours: float | None  # at most for each stage
    measured: bool  # whether the stages are timed on this machine
    overwrite: bool

    @property
    def folder(self) -> Path:
        """The folder for the lists of class folders, next to the recipe."""
        return self.output.absolute().with_name(f"{self.output.name.removesuffix('.yaml')}-lists")


def suggest_for_folder(request: SuggestRequest, emit: Emit) -> tuple[Suggestion, list[str]]:
    """Write a recipe for a folder; returns it, and lines about new lists, which class folders get."""
    on_cpu = request.device == "cpu"
    # Before the videos are read: a mistake in --init is found at once.
    start = None if request.init is None else read_weight_settings(request.init, on_cpu=on_cpu)
    has_new_lists = not (request.lists or request.unlabeled) and has_class_folders(request.data)
    if request.group is not None and not has_new_lists:
        raise RecipeError("--group: has no effect on lists; use it with class folders")
    videos, parts = _split_class_folders(request) if has_new_lists else (None, {})
    folder = request.folder
    # Temporary lists until the recipe is written; made beside their folder to check that it is writable.
    with (
        make_folder(folder.parent),
        TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as dry_run,
    ):
        lists = request.lists if videos is None else videos.write(parts, Path(dry_run))
        section = _check_section(request, lists, has_new_lists=has_new_lists, emit=emit)
        purpose: RecipePurpose = "finetune" if request.pretrain else "scratch"
        purpose = "pretrain" if request.unlabeled else purpose
        suggestion = suggest_recipe(
            section, request.device, purpose=purpose, output=request.output, start=start
        )
        suggestion = suggestion.timed() if request.measured else suggestion
        if request.hours is not None:
            suggestion = suggestion.within(3600 * request.hours)
        lines = []
        if videos is not None:
            for name in (*LIST_FILES.values(), CLASSES_FILE):  # of an earlier recipe
                (folder / name).unlink(missing_ok=True)
            suggestion = replace(suggestion, section=move_files(Path(dry_run), folder, section))
            sizes = (f"{name}: {ListSize.of(samples)}" for name, samples in parts.items())
            lines = [*videos.notices, *sizes, f"lists: {folder}"]
    write_text(request.output, suggestion.text)
    missing = [name for name in ("val", "test") if section.get(name) is None]
    if missing and not request.unlabeled:
        fix = "`everest prepare split LIST` divides a list first; its --group keeps people apart"
        if has_new_lists:
            fix = "label more videos, of further groups"
        emit(warning(f"no {' or '.join(missing)} list; {fix}"))
    return suggestion, lines


def _check_section(
    request: SuggestRequest, lists: Mapping[str, str], *, has_new_lists: bool, emit: Emit
) -> dict[str, Any]:
    """The data section of a recipe with `lists`, which were given or made from class folders.

    Refuses videos of class folders for pre-training, and warns if videos for testing are among them.
    """
    source = request.pretrain
    section = make_data_section(request.data, **lists, pretrain=source, labeled=not request.unlabeled)
    if not request.unlabeled:
        section, reason = with_task(section, request.task)
        if reason is not None:
            emit(notice(reason))
        if source is None:
            return section
    settings = DataSettings(**section)
    keys = ("train", "val", "test") if has_new_lists else ("val", "test")
    held_out = [name for key in keys if (name := getattr(settings, key)) is not None]
    held_out = held_out or [name for key in ("val", "test") for name in find_named_lists(request.data, key)]
    shared = find_shared_videos(settings, "pretrain" if source else "train", held_out)
    videos = plural(len(shared), "video")
    if shared and has_new_lists:
        raise RecipeError(
            f"--pretrain {source}: has {videos} of {request.data}, which will be split; name another folder, "
            "or make lists first (everest prepare split) and use --train train.csv --pretrain train.csv"
        )
    if shared:
        given, fix = (
            (f"--pretrain {source}", "--pretrain") if source else (f"--unlabeled {request.data}", "--train")
        )
        text = f"{given} has {videos} of the validation or test list, such as {shared[0]}, so results"
        emit(warning(f"{text} will be too good; leave them out by {fix} LIST"))
    return section


def _split_class_folders(request: SuggestRequest) -> tuple[LabeledVideos, dict[str, list[Sample]]]:
    """The videos of class folders, and their parts for the lists in `request.folder`."""
    folder = request.folder
    root = parse_location(request.data)
    if not isinstance(root, Path):
        raise RecipeError(f"{request.data}: remote class folders cannot be split; make lists of them")
    if folder.parent == root.absolute():
        raise RecipeError(
            f"--output {request.output}: its lists would look like a class in this folder; name another "
            "folder"
        )
    if folder.exists() and not request.overwrite:
        raise RecipeError(f"{folder}: exists; name another recipe, or use --overwrite")
    videos = LabeledVideos.read(root, root=root.absolute(), group=request.group)
    return videos, videos.split()
