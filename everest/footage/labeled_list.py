"""Lists of windows with the classes of the bouts in them, which fine-tuning reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from everest.annotations.bout import Bout
from everest.annotations.formats import read_annotations
from everest.annotations.labeled import BACKGROUND, labeled_samples
from everest.annotations.matching import VideoNames, match_videos
from everest.config.heads import Task
from everest.errors import DataError, first_names
from everest.lists.labels import indices, is_number_like
from everest.lists.sample import Sample
from everest.lists.writing import write_lines, write_list
from everest.system.files import check_new_file


def annotated_videos(
    files: Sequence[Path], samples: Sequence[Sample]
) -> tuple[dict[str, list[Bout]], list[str]]:
    """Read the bouts of videos from annotation files of any kind.

    Returns:
        The bouts by `Sample.path`, and the annotated names that are none of the videos.
    Raises:
        DataError: a file cannot be read, or names none of the videos.
    """
    paths = {Path(sample.path): sample.path for sample in samples}
    names = VideoNames(paths)
    bouts = [bout for file in files for bout in read_annotations(file, videos=names)]
    matched, unknown = match_videos(bouts, names)
    if not matched:
        named = first_names(unknown) or "no video"
        raise DataError(f"--labels {files[0]}: has no bout of these videos; it names {named}")
    return {paths[video]: of_video for video, of_video in matched.items()}, unknown


def write_labeled(
    output: Path,
    samples: Sequence[Sample],
    bouts: Mapping[str, Sequence[Bout]],
    *,
    task: Task | None = None,
    background: str = BACKGROUND,
    overwrite: bool,
) -> dict[str, Any]:
    """Write a list of labeled windows; see `labeled_samples` for the arguments.

    If names of classes are numbers, a list would be read as if it had indices: a file of names is written.

    Returns:
        `windows`, `task`, `labels`: the number of windows of each class, and `written`: the files.
    Raises:
        RecipeError: the file of names exists.
    """
    samples, classes, task = labeled_samples(samples, bouts, task=task, background=background)
    names_file = output.with_name(f"{output.stem}_classes.txt")
    has_numbers = any(map(is_number_like, classes))
    if has_numbers:
        check_new_file(names_file, option="--output", overwrite=overwrite)
        write_lines(names_file, classes)
    write_list(output, samples, root=output.parent.absolute(), label_names=classes)
    counts = Counter(classes[index] for sample in samples for index in indices(sample.labels[0]))
    written = [str(output), *([str(names_file)] if has_numbers else [])]
    return {"windows": len(samples), "task": task, "labels": dict(counts.most_common()), "written": written}
