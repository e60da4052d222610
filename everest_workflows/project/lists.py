"""The lists of a project: from class folders, lists, or recordings with annotations."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, Final

from everest.config.settings import DataSettings
from everest.errors import DataError, RecipeError, join_first
from everest.lists.groups import COLUMN_PREFIX, find_group
from everest.lists.inputs import find_samples
from everest.lists.sample import Sample
from everest.lists.sources import LIST_FILES
from everest.prepare.split import DEFAULT_FRACTIONS, LabeledVideos
from everest.system.events import Emit, heading, notice, warning
from everest.system.text import plural
from everest.video.folders import split_folders, videos_under
from everest.video.reader import video_info
from everest.video.stream import VideoError
from everest_workflows.annotations.bout import BACKGROUND, UNSCORED, Bout, Bouts
from everest_workflows.annotations.codings import VideoAnnotations
from everest_workflows.project.options import MIN_FOLDS
from everest_workflows.project.request import WINDOWS, ProjectLists, Request
from everest_workflows.recordings.groups import SUBJECT
from everest_workflows.recordings.window_labels import read_bouts
from everest_workflows.recordings.window_lists import WindowSettings, write_windows
from everest_workflows.suggest.data_section import (
    find_shared_videos,
    has_class_folders,
    make_data_section,
    with_task,
)

# Heuristic, in seconds. Windows of 1 s were measured (benchmarks/timelines.md).
SHORTEST_WINDOW: Final = 0.5
LONGEST_WINDOW: Final = 2.0
STEP: Final = 0.5  # of a window: from the start of one to the next
SUGGESTED_FOLDS: Final = 5  # default: each is tested on a fifth of the groups
WORDS: Final = (r"^([^\W_]+)", r"([^\W_]+)\.\w+$")  # values of --group: first and last word of a file name


def make_lists(request: Request, folder: Path, emit: Emit) -> ProjectLists:
    """Find the lists of a request, or write them into a folder."""
    lists = _read_lists(request) or _make_new_lists(request, folder, emit)
    if request.unlabeled is not None:
        data = DataSettings(**lists.section)
        held_out = list(chain.from_iterable(fold.values() for fold in lists.folds))
        shared = find_shared_videos(data, "pretrain", [*held_out, *filter(None, (data.val, data.test))])
        if shared:
            problem = (
                f"has {plural(len(shared), 'video')} of the validation or test list, such as {shared[0]}"
            )
            fix = "name a folder or list without them"
            raise RecipeError(f"--unlabeled {request.unlabeled}: {problem}; {fix}")
    return lists


def _read_lists(request: Request) -> ProjectLists | None:
    """The user's training and test lists; None if the videos have yet to be divided."""
    source = Path(request.videos)
    if request.annotations or (source.is_dir() and has_class_folders(str(source))):
        return None
    if source.is_file() and not source.name.endswith(LIST_FILES["train"]):
        return None
    root, train = (source, None) if source.is_dir() else (source.parent, source.name)
    if train is None and not (source / LIST_FILES["train"]).exists() and not split_folders(source):
        videos = plural(len(list(videos_under(source))), "video")
        fix = "put each class into a folder of its own, or give a list or --annotations"
        raise DataError(f"{source}: {videos}, no train.csv and fewer than two class folders; {fix}")
    section = make_data_section(str(root), train=train, pretrain=request.unlabeled)
    if section.get("test") is None:
        if train is not None:
            return None
        listed = source / LIST_FILES["train"]
        divided = f", or let `everest train {listed}` divide the training list" if listed.exists() else ""
        raise DataError(f"{source}: has no test list; add {LIST_FILES['test']}{divided}")
    for option, value in (("--group", request.group), ("--folds", request.folds)):
        if value is not None:
            raise RecipeError(f"{source}: has train and test lists; omit {option}, or move one elsewhere")
    section, _ = with_task(section, request.task)
    return ProjectLists(section=section, folds=[], window=None, possible_folds=None, are_given=True)


def _make_new_lists(request: Request, folder: Path, emit: Emit) -> ProjectLists:
    """Write lists of class folders, of a list, or of the windows of recordings."""
    window, labels = None, None
    if request.group == SUBJECT and not request.annotations:
        raise RecipeError(f"--group {SUBJECT}: needs --annotations that name subjects; give a pattern")
    if request.annotations and (request.group or "").startswith(COLUMN_PREFIX):
        raise RecipeError(
            f"--group {request.group}: annotations have no columns; give '{SUBJECT}' or a pattern"
        )
    if request.annotations:
        videos, window, labels = _make_windows(request, folder, emit)
        if request.group is None and (text := check_animals(labels.bouts)):
            emit(warning(text))
    else:
        videos = _find_readable_videos(request, emit)
    _refuse_unusable(request, videos)
    for text in videos.notices:
        emit(notice(text))
    lists = {"train": list(videos.samples)}
    folds = []
    if request.folds is None:  # two groups give no validation list
        fraction = max(DEFAULT_FRACTIONS["test"], 1 / len(videos.groups))
        fractions = {"train": 1 - 2 * fraction, "val": fraction, "test": fraction}
        lists = videos.split(fractions if len(videos.groups) > 2 else {"train": fraction, "test": fraction})
    else:  # each tests a part of the groups, and validates on the next part
        fractions = {str(number): 1 / request.folds for number in range(request.folds)}
        parts = list(videos.split(fractions).values())
        for number, test in enumerate(parts):
            val, *others = [*parts[number + 1 :], *parts[:number]]
            fold_lists = {"train": list(chain(*others)), "val": val, "test": test}
            _refuse_few(fold_lists, request)
            folds.append(videos.write(fold_lists, folder / f"fold{number + 1}"))
    _refuse_few(lists, request)
    paths: dict[str, Any] = videos.write(lists, folder)
    section = make_data_section(str(videos.root), **paths, pretrain=request.unlabeled)
    groups = len(videos.groups)
    may_fold = request.folds is None and videos.task != "regression" and groups >= MIN_FOLDS
    return ProjectLists(
        section=with_task(section, videos.task)[0],
        folds=folds,
        window=window,
        possible_folds=min(SUGGESTED_FOLDS, groups) if may_fold else None,
        left_out={} if labels is None else labels.left_out,
        subjects=[] if labels is None else labels.merged_subjects,
    )


def _refuse_unusable(request: Request, videos: LabeledVideos) -> None:
    """Raise UserError for labels that `everest train` cannot learn, and for fewer groups than lists."""
    if videos.head_names:
        raise RecipeError(f"{request.videos}: has several labels for each video; use `everest finetune`")
    labels = {label for sample in videos.samples for label in sample.labels}
    if len(labels) < 2:
        problem = "all readable videos have the same label" if labels else "no labeled video can be read"
        raise DataError(f"{request.videos}: {problem}; two classes or more are needed")
    if request.folds is not None and videos.task == "regression":  # each fold would have a scale of its own
        raise RecipeError("--folds: needs classes, but the labels are numbers; omit it")
    groups = len(videos.groups)
    if groups >= (request.folds or 2):
        return
    unit, fix = "group", "check --group, or add videos of other people or places"
    if request.annotations and request.group is None:
        unit, fix = "recording", "annotate more recordings"
    need = "but training and test need 2" if request.folds is None else f"fewer than --folds {request.folds}"
    if groups >= MIN_FOLDS:
        fix = f"use --folds {groups}, or {fix}"
    names = f" ({', '.join(videos.groups)})" if groups == 1 else ""
    raise DataError(f"{request.videos}: only {plural(groups, unit)}{names}, {need}; {fix}")


def _refuse_few(lists: Mapping[str, Sequence[Sample]], request: Request) -> None:
    """Raise DataError for an empty list, and for a training list of one class."""
    if not all(lists.values()) or len({sample.labels for sample in lists["train"]}) < 2:
        problem = "the rarest class has too few videos or groups to train and test"
        raise DataError(f"{request.videos}: {problem}; add videos of other people or places")


def _make_windows(
    request: Request, folder: Path, emit: Emit
) -> tuple[LabeledVideos, float, VideoAnnotations]:
    """Write a list of the labeled windows of recordings; returns them, their seconds, and the labels.

    Recordings that cannot be read have no windows.
    """
    recordings = find_samples([Path(request.videos)], root=None)
    annotations = list(map(Path, request.annotations))
    paths = [sample.path for sample in recordings]
    labels = read_bouts(annotations, paths, emit, bout_filter=request.bout_filter)
    window = training_window_seconds(chain.from_iterable(labels.bouts.values()))
    settings = WindowSettings(seconds=window, step=STEP * window)
    listed = folder / WINDOWS
    summary = write_windows(
        recordings, listed, settings, bouts=labels.bouts, task=request.task, overwrite=True, emit=emit
    )
    emit(heading(f"{plural(summary['windows'], 'window')} of {window:g} s, every {STEP * window:g} s"))
    classes = None if summary["classes"] is None else Path(summary["classes"])
    group = None if request.group == SUBJECT else request.group
    videos = LabeledVideos.read(listed, root=folder, group=group, task=request.task, classes=classes)
    if request.group == SUBJECT:
        if not has_subjects(labels.bouts):
            raise DataError(f"--group {SUBJECT}: no annotation names a subject; group by file names instead")
        group_of_path = group_by_subject(labels.bouts)
        samples = [replace(sample, group=group_of_path[sample.path]) for sample in videos.samples]
        videos = replace(videos, samples=samples)
    # By their names, so that the place of their folder does not matter.
    return replace(videos, samples=sorted(videos.samples, key=find_group)), window, labels


def group_by_subject(bouts: Bouts) -> dict[str, str]:
    """The group of each recording; recordings that share a subject, also through a third one, are a group."""
    merged: list[tuple[set[str], list[str]]] = []  # subjects, recordings
    for recording, listed in bouts.items():
        subjects, recordings = {bout.subject for bout in listed if bout.subject} or {recording}, [recording]
        for group in [group for group in merged if group[0] & subjects]:
            merged.remove(group)
            subjects, recordings = subjects | group[0], [*group[1], *recordings]
        merged.append((subjects, recordings))
    return {recording: "+".join(sorted(group)) for group, recordings in merged for recording in recordings}


def check_copies(parts: Mapping[str, str]) -> Iterator[str]:
    """Warns of files with the same bytes that may be in both training and test.

    Args:
        parts: what each file is divided by: its group, or its list if the lists are given.
    """
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in filter(Path.is_file, map(Path, parts)):  # others are in shards, remote, or folders of images
        by_size[path.stat().st_size].append(path)
    by_bytes: dict[str, list[str]] = defaultdict(list)
    for path in chain(*(paths for paths in by_size.values() if len(paths) > 1)):
        with path.open("rb") as file:
            by_bytes[hashlib.file_digest(file, "sha256").hexdigest()].append(str(path))
    copies = [paths for paths in by_bytes.values() if len({parts[path] for path in paths}) > 1]
    if copies:
        examples = f"{plural(len(copies), 'video')}, such as {' and '.join(copies[0][:2])}"
        yield f"several groups or lists have copies of {examples}; keep one copy, or the test is too easy"


def check_animals(bouts: Bouts) -> str | None:
    """A warning if recordings that would be divided seem to show one animal or person, by subject or name."""
    group_of_path = group_by_subject(bouts)
    if has_subjects(bouts) and (same := _find_shared(group_of_path)):
        if len(set(group_of_path.values())) == 1:
            return "recordings share their subjects, so the test shows new moments, not new animals or people"
        return f"{join_first(same)} share subjects; keep them in one list by --group {SUBJECT}"
    for pattern in WORDS:
        words = {path: re.search(pattern, Path(path).name) for path in bouts}
        word_of = {path: word[1] for path, word in words.items() if word and not word[1].isdecimal()}
        if len(set(word_of.values())) > 1 and len(word_of) == len(bouts) and (same := _find_shared(word_of)):
            fix = f"if they show one animal or person, add --group '{pattern}'"
            return f"{join_first(same)} may be in both training and test; {fix}"
    return None


def has_subjects(bouts: Bouts) -> bool:
    return any(bout.subject for listed in bouts.values() for bout in listed)


def _find_shared(group_of_path: Mapping[str, str]) -> list[str]:
    """The names of the recordings of the first group of several; empty if each is its own group."""
    names: dict[str, list[str]] = defaultdict(list)
    for path, group in group_of_path.items():
        names[group].append(Path(path).name)
    return next((same for same in names.values() if len(same) > 1), [])


def _find_readable_videos(request: Request, emit: Emit) -> LabeledVideos:
    """The videos of class folders or of a list, without those at which training would stop."""
    source = Path(request.videos)
    root = source if source.is_dir() else source.parent
    videos = LabeledVideos.read(source, root=root, group=request.group, task=request.task)
    _refuse_unusable(request, videos)  # before all are opened
    readable = []
    for number, sample in enumerate(videos.samples, start=1):
        try:
            video_info(sample.video)
        except VideoError as error:
            emit(notice(f"left out: {error}"))
        else:
            readable.append(sample)
        emit({"event": "video", "done": number, "videos": len(videos.samples)})
    return replace(videos, samples=readable)


def training_window_seconds(bouts: Iterable[Bout]) -> float:
    """The seconds of a window: about the median bout of the class with the shortest bouts."""
    by_class: dict[str, list[float]] = defaultdict(list)
    for bout in bouts:
        if bout.label not in (BACKGROUND, UNSCORED) and bout.seconds > 0:
            by_class[bout.label].append(bout.seconds)
    shortest = min(map(median, by_class.values()), default=1.0)
    return min(LONGEST_WINDOW, max(SHORTEST_WINDOW, round(4 * shortest) / 4))
