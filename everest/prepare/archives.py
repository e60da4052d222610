"""Makes lists from the published archives of a data set: annotations are matched with the video files."""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

from everest.errors import DataError, RecipeError
from everest.lists.reading import read_unlabeled
from everest.lists.sample import Sample
from everest.lists.writing import (
    CLASSES_FILE,
    names_to_write,
    refuse_existing,
    refuse_unlistable,
    write_lines,
    write_list,
)
from everest.prepare.layouts import LAYOUTS, READERS, AnnotatedSample, Layout, Sources
from everest.system.files import write_table
from everest.system.text import plural
from everest.video.folders import as_data_error, video_name, videos_under

INDEX_REPORT: Final = "index_report.csv"
UNLABELED: Final = "-unlabelled"  # appended to the name of a list whose labels are secret
PRETRAIN_LIST: Final = "pretrain.csv"
_SUFFIXES: Final = (".txt", ".csv", ".json")


def write_index(
    folder: Path, output: Path, *, annotations: Path | None, split: int, overwrite: bool
) -> dict[str, Any]:
    """Recognize the data set in a folder; write its lists, `classes.txt`, and problems to `index_report.csv`.

    Videos without annotations, all in one folder, make a list for pre-training, see `write_unlabeled`.

    Args:
        annotations: the folder of the annotations if they are not inside `folder`.
        split: the number of the official split, if there are several.
    Returns:
        The document of `everest prepare index --json`; in `data`, the keys of a recipe for the lists.
    Raises:
        DataError, RecipeError: no layout or several layouts, no video, or a list that exists.
    """
    for path in (folder, annotations or folder):
        if not path.is_dir():
            raise DataError(f"{path}: no such folder")
    videos = list(videos_under(root := folder.absolute()))
    found = find_layout(annotations or folder, split=split)
    if found is None and annotations is None and len({video.parent for video in videos}) == 1:
        return write_unlabeled(folder, output / PRETRAIN_LIST, overwrite=overwrite)
    if found is None:
        raise _no_layout(annotations or folder)
    layout, sources = found
    annotated, class_names = READERS[layout.name](sources)
    matched, missing = find_videos(annotated, videos, layout, folder)
    # Lists without any label serve pre-training only, which their names show.
    has_labels = {name: any(sample.labels for sample in samples) for name, samples in matched.items()}
    lists = {name if has_labels[name] else name + UNLABELED: part for name, part in matched.items() if part}
    used = {sample.path for samples in lists.values() for sample in samples}
    unused_videos = [video for video in videos if str(video) not in used]  # videos that are in no list
    problems = [
        *(("missing", name, video) for name, video in missing),
        *(("extra", "", os.path.relpath(video, root)) for video in unused_videos),
    ]
    written = [output / f"{name}.csv" for name in lists]
    written += [output / CLASSES_FILE] if class_names else []
    written += [output / INDEX_REPORT] if problems else []
    refuse_existing(written, overwrite=overwrite, inputs=chain(*sources.values()))
    refuse_unlistable(sample for samples in lists.values() for sample in samples)
    names = names_to_write(class_names)
    for file, samples in zip(written, lists.values(), strict=False):
        # Only full paths are found from another folder and from `data.root`.
        near = root if output.resolve() == root.resolve() else None
        write_list(file, samples, root=near, class_names=names, head_names=list(layout.heads))
    if problems:
        write_table(output / INDEX_REPORT, [("problem", "list", "video"), *problems])
    if class_names:
        write_lines(output / CLASSES_FILE, class_names)
    return {
        "layout": layout.name,
        "lists": {name: len(samples) for name, samples in lists.items()},
        "classes": len(class_names) or None,
        "missing": len(missing),
        "extra": len(unused_videos),
        "written": list(map(str, written)),
        "data": _data_section(root, output, list(lists), class_names, layout),
    }


def write_unlabeled(
    folder: Path, file: Path, *, exclude: Sequence[Path] = (), overwrite: bool
) -> dict[str, Any]:
    """Write a list for pre-training: all videos below a folder but those of the lists `exclude`.

    A video of which a list has a segment is left out as well.

    Returns:
        As `write_index`; `extra` counts the videos that are left out.
    Raises:
        DataError, RecipeError: a list of which no video is found, no video that is left, a file that exists.
    """
    root = folder.absolute()
    listed = {
        Path(sample.path).resolve()
        for source in exclude
        for sample in read_unlabeled(source, root=source.parent, skip_missing=True).samples
    }
    videos = list(videos_under(root))
    samples = [Sample(path=str(video)) for video in videos if video.resolve() not in listed]
    if not samples:
        raise DataError(f"{folder}: none of its {plural(len(videos), 'video')} is left for {file.name}")
    refuse_existing([file], overwrite=overwrite, inputs=exclude)
    write_list(file, samples, root=root if file.parent.resolve() == root.resolve() else None)
    below = Path(os.path.relpath(file.absolute(), root))
    return {
        "layout": "videos",
        "lists": {file.stem: len(samples)},
        "classes": None,
        "missing": 0,
        "extra": len(videos) - len(samples),
        "written": [str(file)],
        "data": {"root": str(root), "pretrain": str(below)},
    }


def _data_section(
    root: Path, output: Path, lists: Sequence[str], class_names: Sequence[str], layout: Layout
) -> dict[str, Any]:
    """The keys of a recipe for the named lists in the folder `output`."""
    below = Path(os.path.relpath(output.absolute(), root))
    labeled = {name: str(below / f"{name}.csv") for name in lists if not name.endswith(UNLABELED)}
    data: dict[str, Any] = {
        "root": str(root),
        "train": labeled.get("train"),
        "val": labeled.get("val"),
        # If test labels are secret, publications report the validation set.
        "test": labeled.get("test", labeled.get("val")),
        "pretrain": None if labeled else str(below / f"{lists[0]}.csv"),
    }
    if class_names:
        data |= {"classes": str(below / CLASSES_FILE), "num_classes": len(class_names)}
    data |= {"heads": dict(layout.heads)} if layout.heads else {}
    return data | dict(layout.settings)


def find_layout(folder: Path, *, split: int) -> tuple[Layout, Sources] | None:
    """The layout of the annotations below a folder, and their files; None if there are no annotations.

    UCF101 and HMDB51 have three splits.
    """
    files: list[Path] = []  # texts, tables and JSON documents at any depth, sorted by name
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        files += [Path(parent, name) for name in sorted(names) if name.endswith(_SUFFIXES)]
    matches: list[tuple[Layout, Sources]] = []
    for layout in LAYOUTS.values():
        sources: dict[str, list[Path]] = {}
        for role, pattern in {**layout.needs, **layout.may_have}.items():
            fits = re.compile(pattern.replace("{split}", str(split))).fullmatch
            sources[role] = [file for file in files if fits(file.name)]
            if layout.column is not None:
                sources[role] = [file for file in sources[role] if layout.column in _read_columns(file)]
        if all(sources[role] for role in layout.needs):
            matches.append((layout, sources))
    if len(matches) > 1:
        names = ", ".join(layout.name for layout, _ in matches)
        raise RecipeError(
            f"{folder}: annotations of {names} are below it; name the folder of one by --annotations"
        )
    return matches[0] if matches else None


def _no_layout(folder: Path) -> DataError:
    """The error for a folder without known annotations."""
    expected = "\n".join(f"  {layout.name}: {layout.expects}" for layout in LAYOUTS.values())
    return DataError(
        f"{folder}: none of the known layouts is below it:\n{expected}\n"
        f"class folders need no annotations: `everest prepare split {shlex.quote(str(folder))}`"
    )


def _read_columns(table: Path) -> list[str]:
    with as_data_error(table), table.open(encoding="utf-8-sig", errors="replace") as text:
        return text.readline(1000).strip().split(",")


def find_videos(
    lists: Mapping[str, Sequence[AnnotatedSample]], videos: Sequence[Path], layout: Layout, folder: Path
) -> tuple[Mapping[str, Sequence[Sample]], list[tuple[str, str]]]:
    """Find the file of each annotated sample by its name, at any depth of a folder and with any suffix.

    Among files of one name, the file that lies in most of the sample's folders is taken.

    Returns:
        The samples that have a file, and the list and preferred file name of each sample without one.
    """
    normalize = partial(unicodedata.normalize, "NFC")  # macOS writes accents as separate characters
    files: dict[str, list[Path]] = {}
    for video in videos:
        files.setdefault(normalize(video_name(video)), []).append(video)
    matched: dict[str, list[Sample]] = {name: [] for name in lists}
    missing = []
    for name, annotated in lists.items():
        for sample in annotated:
            ref = next((ref for ref in sample.refs if normalize(ref.name) in files), None)
            if ref is None:
                missing.append((name, sample.refs[0].name))
                continue
            namesakes = files[normalize(ref.name)]
            path = max(namesakes, key=lambda file, near=sample.folders: len(near.intersection(file.parts)))
            segment = {key: value for key, value in ref._asdict().items() if key != "name"}
            matched[name].append(Sample(path=str(path), labels=sample.labels, **segment))
    if not any(matched.values()):
        first = next((name for _, name in missing), "any video")
        raise DataError(
            f"{folder}: annotations of {layout.title}, and none of their {len(missing)} videos (first "
            f"{first}) among the {len(videos)} below it; expected are {layout.expects}"
        )
    return matched, missing
