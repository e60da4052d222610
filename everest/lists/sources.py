"""The videos and labels of a stage, from the data section of a recipe: `read_source`.

The recipe names a list, the index of shards or a folder of videos below `data.root`. A folder may stand in
the place of a list that is missing.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from everest.config.heads import Head, named_heads
from everest.config.settings import DataSettings
from everest.errors import DataError, RecipeError
from everest.lists.classes import Classes
from everest.lists.columns import find_index
from everest.lists.labels import read_class_names
from everest.lists.reading import SampleList, read_samples, read_unlabeled
from everest.lists.sample import Sample
from everest.system.storage import Location, join_location, parse_location
from everest.video.folders import (
    as_data_error,
    can_be_list,
    has_only_class_folders,
    not_found_text,
    split_folders,
    videos_under,
)

LIST_FILES: Final = {key: f"{key}.csv" for key in ("train", "val", "test")}  # written by `everest prepare`


def read_source(
    data: DataSettings,
    key: str,
    *,
    labeled: bool,
    classes: Classes | None = None,
    skip_missing: bool = False,
) -> SampleList:
    """Read and check the videos of `data.KEY`; a notice names what is read in place of a missing list.

    Args:
        labeled: False ignores labels (pre-training).
        classes: the classes of the training set, to read the labels of another set; None for training.
        skip_missing: ignore missing videos, unless all of them are missing.
    Raises:
        DataError, RecipeError: as `find_source` and `read_samples`; class names that the model does not have.
    """
    location, notice = find_source(data, key, labeled=labeled)  # first: report a missing list before names
    notices = () if notice is None else (notice,)
    root = parse_location(data.root)
    if not labeled:
        samples = read_unlabeled(location, root=root, skip_missing=skip_missing)
        return replace(samples, notices=(*notices, *samples.notices))
    trained_names = classes.names if classes else None
    names = None  # class names in the file `data.classes`
    if data.classes is not None:
        path = join_location(root, data.classes)
        with as_data_error(path):
            exists = path.is_file()
        if exists:
            names = read_class_names(path)
        elif not trained_names:  # with a trained model, the test set may be elsewhere, without this file
            raise DataError(f"data.classes: {not_found_text(path, 'file of class names')}")
    if trained_names and names not in (None, trained_names):
        raise DataError(
            f"data.classes: '{data.classes}' has other names, or another order, than the classes that the "
            f"model was trained on (first {trained_names[0]}); set data.classes to null"
        )
    heads = named_heads(data.heads or {}) or (Head(task=data.task, outputs=data.num_classes or 0),)
    samples = read_samples(
        location,
        root=root,
        class_names=trained_names or names,
        heads=classes.heads if classes else heads,
        is_fixed=classes is not None,
        skip_missing=skip_missing,
    )
    return replace(samples, notices=(*notices, *samples.notices))


def seen_in(data: DataSettings, key: str, samples: Iterable[Sample]) -> list[Sample]:
    """The samples that overlap a segment of the same file in the list `key` of `data`, such as `train`.

    The result is empty if that list is remote or cannot be read: a warning is not worth an error.
    """
    listed: dict[tuple[Path, bool], list[tuple[float, float]]] = {}  # segments, in frames or seconds
    with suppress(DataError, RecipeError):
        if isinstance(find_source(data, key, labeled=True)[0], Path):
            for sample in read_source(data, key, labeled=False, skip_missing=True).samples:
                for file, span in _spans(sample):
                    listed.setdefault(file, []).append(span)
    return [
        sample
        for sample in samples
        if any(
            start < other_end and other_start < end
            for file, (start, end) in _spans(sample)
            for other_start, other_end in listed.get(file, ())
        )
    ]


def _spans(sample: Sample) -> list[tuple[tuple[Path, bool], tuple[float, float]]]:
    """A sample's segment by file and unit (True: frames, False: seconds); an entire file has both units."""
    file = Path(sample.path).resolve()
    in_frames = (file, True), (sample.start_frame or 0, sample.end_frame or math.inf)
    in_seconds = (file, False), (sample.start or 0, sample.end or math.inf)
    if not sample.is_segment:
        return [in_frames, in_seconds]
    return [in_seconds if sample.start_frame is None and sample.end_frame is None else in_frames]


def find_list(root: Location, key: str, *, labeled: bool) -> str | None:
    """The list `KEY.csv` in a folder, else its folder of videos or shards (KEY, or see `split_folders`)."""
    if (root / LIST_FILES[key]).exists():
        return LIST_FILES[key]
    for name in filter(None, (key, split_folders(root, labeled=labeled).get(key))):
        if can_be_list(root / name, labeled=labeled) or find_index(root / name):
            return name
    return None


def find_source(data: DataSettings, key: str, *, labeled: bool) -> tuple[Location, str | None]:
    """The list or folder that `data.KEY` names, or a replacement and a line that names it.

    In place of a missing `train.csv`, `val.csv` or `test.csv`, a folder is read as by `find_list`. Without
    labels, and if the recipe sets no classes, all videos below `data.root` are read. RecipeError if
    `data.KEY` is not set, DataError if nothing is there.
    """
    source = getattr(data, key)
    if source is None:
        has_validation = key == "test" and data.val
        hint = f" (--set data.test={data.val} takes the validation list)" if has_validation else ""
        raise RecipeError(f"data.{key}: not set; name a list or a folder of videos{hint}")
    root = parse_location(data.root)
    with as_data_error(root):
        if not root.is_dir():
            raise DataError(
                f"data.root: {not_found_text(root, 'folder')}; set it (in most commands: --data DIR)"
            )
        location = join_location(root, source)
        if str(location) == source and not location.exists():  # absolute: data.root does not change it
            fix = f"name it where it is now: --set data.{key}=LIST"
            raise DataError(f"{not_found_text(location)}; {fix}")
        if source != LIST_FILES.get(key) or location.exists():
            return location, None
        folder = find_list(root, key, labeled=labeled)
        if folder is not None:
            return root / folder, f"{root}: no {source}, so the folder {folder} is read"
    has_video = next(videos_under(root), None) is not None
    has_no_classes_set = data.num_classes is None and data.heads is None and data.classes is None
    verb = "split" if has_no_classes_set or has_only_class_folders(root) else "index"
    command = f"everest prepare {verb} {shlex.quote(str(root))}"
    if has_video and not labeled and has_no_classes_set:
        return root, (
            f"{root}: no {source}, so all videos below it are used; `{command}` makes lists that keep test "
            "videos apart"
        )
    advice = " (in most commands: --data DIR)"
    if has_video and not split_folders(root):
        advice = f", or run `{command}`, which writes {source}; then repeat this command"
    raise DataError(f"{not_found_text(location)}; set data.root{advice}")


def unused_validation_notice(data: DataSettings) -> str | None:
    """A notice if `data.val` is not set although there is a list or folder for it."""
    if data.val is not None:
        return None
    root = parse_location(data.root)
    name = None
    with suppress(DataError), as_data_error(root):  # this folder need not be readable
        name = find_list(root, "val", labeled=True)
    return name and f"{root / name}: not used; --set data.val={name} selects the best weights on it"
