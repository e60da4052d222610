"""The lists of a project: from class folders, lists, or recordings with annotations."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from everest.annotations.bout import BACKGROUND, UNSCORED, Bout
from everest.config.settings import DataSettings
from everest.errors import DataError, RecipeError
from everest.footage.labeled_list import Labeling
from everest.footage.measures import WindowSettings
from everest.footage.windows import write_windows
from everest.inference.truth import read_truth
from everest.lists.inputs import named_samples
from everest.lists.sample import ListSize, Sample
from everest.lists.stage import LIST_FILES
from everest.project.request import Request
from everest.suggest.data_section import data_section, has_class_folders, with_task
from everest.suggest.division import SHARES, LabeledVideos, group_of
from everest.suggest.next_commands import shared_videos
from everest.system.events import Report, notice
from everest.system.text import counted
from everest.video.folders import subfolders, videos_under

# Our choice, in seconds. Windows of 1 s were measured (docs/timelines.md).
SHORTEST_WINDOW, LONGEST_WINDOW = 0.5, 2.0
STEP: Final = 0.5  # of a window, from one to the next


@dataclass(frozen=True, kw_only=True)
class ProjectLists:
    """The lists that a project trains and is tested on."""

    section: dict[str, Any]  # of the recipe
    folds: Sequence[Mapping[str, str]] = ()  # train, val and test of each fold
    window: float | None = None  # seconds, of recordings
    sizes: dict[str, str] = field(default_factory=dict)  # of each list or fold, as text


def make_lists(request: Request, folder: Path, report: Report) -> ProjectLists:
    """Find or write the lists of a request; those that are written are in `folder`."""
    source, window = Path(request.videos), None
    if request.annotations is not None:
        source, window = _list_windows(request, Path(request.annotations), folder, report)
        root, names = source.parent, source.with_name(f"{source.stem}_classes.txt")
        videos = LabeledVideos.read(
            source, root=root, group=request.group, classes=names if names.exists() else None
        )
    elif (found := _ready_lists(request, source)) is not None:
        return _checked(request, ProjectLists(section=found, sizes=_sizes_of_section(found)), report)
    else:
        root = source if source.is_dir() else source.parent
        videos = LabeledVideos.read(source, root=root, group=request.group, task=request.task)
    _refuse_unusable(videos, request)
    for text in videos.notices:
        report(notice(text))
    if request.folds is None:
        lists, folds = _three_lists(videos), []
        sizes = {name: str(ListSize.of(samples)) for name, samples in lists.items()}
    else:
        lists, folds, sizes = {"train": list(videos.samples)}, *_write_folds(videos, request.folds, folder)
    written: dict[str, Any] = videos.write(lists, folder)
    section = data_section(str(root), **written, pretrain=request.unlabeled)
    section, _ = with_task(section, videos.task)
    return _checked(request, ProjectLists(section=section, folds=folds, window=window, sizes=sizes), report)


def _ready_lists(request: Request, source: Path) -> dict[str, Any] | None:
    """The section of lists that are divided already; None if the videos have to be divided."""
    if source.is_dir() and has_class_folders(str(source)):
        return None
    named: dict[str, Any] = {} if source.is_dir() else {"train": source.name}
    root = source if source.is_dir() else source.parent
    if not named and not (root / LIST_FILES["train"]).exists() and not (root / "train").is_dir():
        filled = [name for name in subfolders(root) if next(videos_under(root / name), None)]
        what = f"one folder of videos ({filled[0]})" if filled else "no folder of videos"
        raise DataError(
            f"{source}: has {what}; make a folder for each of two classes or more, name a list, or name the "
            "bouts of long recordings by --annotations"
        )
    if named and not source.name.endswith(LIST_FILES["train"]):
        return None
    section = data_section(str(root), **named, pretrain=request.unlabeled)
    if section.get("test") is None:
        if named:
            return None
        raise DataError(
            f"{source}: no test list; `everest train {source / 'train.csv'}` divides its train.csv"
        )
    for option, given in (("--group", request.group), ("--folds", request.folds)):
        if given is not None:
            raise RecipeError(f"{option}: {source} has lists already; name one list, and it is divided")
    return with_task(section, request.task)[0]


def _list_windows(request: Request, annotations: Path, folder: Path, report: Report) -> tuple[Path, float]:
    """Write the list of windows of the annotated recordings; returns it, and the seconds of a window."""
    recordings = named_samples([Path(request.videos)], root=None)
    bouts, _ = read_truth(annotations, [sample.path for sample in recordings])
    seconds = window_seconds(bout for of_video in bouts.values() for bout in of_video)
    output, settings = folder / "windows.csv", WindowSettings(seconds=seconds, step=STEP * seconds)
    labeling = Labeling(files=(annotations,), task=request.task)
    found = write_windows(recordings, output, settings, labeling=labeling, overwrite=True, report=report)
    report(notice(f"{counted(found.windows, 'window')} of {seconds:g} s, every {STEP * seconds:g} s"))
    return output, seconds


def window_seconds(bouts: Iterable[Bout]) -> float:
    """The length of windows for some bouts: of the median bout of the class with the shortest ones."""
    by_class: dict[str, list[float]] = defaultdict(list)
    for bout in bouts:
        if bout.label not in (BACKGROUND, UNSCORED) and bout.seconds > 0:
            by_class[bout.label].append(bout.seconds)
    shortest = min(map(median, by_class.values()), default=1.0)
    return min(LONGEST_WINDOW, max(SHORTEST_WINDOW, round(4 * shortest) / 4))


def _refuse_unusable(videos: LabeledVideos, request: Request) -> None:
    """Raise an error for videos of one class or of one group, and of labels that a project cannot measure."""
    if videos.heads:
        raise RecipeError(f"{videos.source}: has several labels for each video; use `everest finetune`")
    if not any(sample.labels for sample in videos.samples):
        raise DataError(f"{videos.source}: has no labels; name the class or number of each video")
    if len({label for sample in videos.samples for label in sample.labels}) < 2:
        raise DataError(
            f"{videos.source}: its {counted(len(videos.samples), 'video')} are of one class; add another"
        )
    if request.folds is not None and videos.task != "single-label":
        raise RecipeError(f"--folds: goes with one class for each video, not with {videos.task} labels")
    groups = len({group_of(sample) for sample in videos.samples})
    if groups < (request.folds or 2):
        unit = "recording" if request.annotations else "group"
        of = f"its {counted(len(videos.samples), ListSize.of(videos.samples).unit)}"
        option = "" if request.folds is None else f"--folds {request.folds}: "
        raise DataError(f"{option}{request.videos}: {of} are of {counted(groups, unit)}; label more {unit}s")


def _three_lists(videos: LabeledVideos) -> dict[str, list[Sample]]:
    """Lists of 70/15/15 percent, with at least one group each; two groups are for training and the test."""
    groups = Counter(map(group_of, videos.samples))
    lists = videos.split(SHARES if len(groups) > 2 else {"train": 0.7, "test": 0.3})
    for name, own in lists.items():
        if not own:  # the smallest group of the longest list
            longest = max(lists.values(), key=lambda samples: len(set(map(group_of, samples))))
            moved = min(map(group_of, longest), key=lambda group: groups[group])
            lists[name] = [sample for sample in longest if group_of(sample) == moved]
            longest[:] = [sample for sample in longest if group_of(sample) != moved]
    return lists


def _write_folds(
    videos: LabeledVideos, number: int, folder: Path
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Write the lists of each fold; returns their paths, and their sizes as texts."""
    parts = list(videos.split({str(fold): 1 / number for fold in range(number)}).values())
    if not all(parts):
        raise DataError(
            f"--folds {number}: not every fold has a group; use fewer folds, or label more groups"
        )
    folds, sizes = [], {}
    for fold in range(number):
        held = {"test": parts[fold], "val": parts[(fold + 1) % number]}
        others = [part for part in parts if part is not held["test"] and part is not held["val"]]
        lists = {"train": [sample for part in others for sample in part], **held}
        folds.append(videos.write(lists, folder / f"fold{fold + 1}"))
        sizes[f"fold {fold + 1}, test"] = str(ListSize.of(held["test"]))
    return folds, sizes


def _checked(request: Request, lists: ProjectLists, report: Report) -> ProjectLists:
    """The lists, after a comparison of the unlabeled videos with those for validation and test."""
    if request.unlabeled is None:
        return lists
    data = DataSettings(**lists.section)
    held = [path for fold in lists.folds for path in fold.values()]
    held += [name for name in (data.val, data.test) if name is not None]
    shared = shared_videos(data, "pretrain", held)
    if shared:
        raise RecipeError(
            f"--unlabeled {request.unlabeled}: has {counted(len(shared), 'video')} of the validation or test "
            f"list, such as {shared[0]}; name a folder or list without them"
        )
    return lists


def _sizes_of_section(section: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(section[name]) for name in ("train", "val", "test") if section.get(name)}
