"""The classes of windows of long videos, by the bouts in them.

A class is a label of a window if its bouts cover at least half of the window, or if at least half of one of
its bouts is in the window. A point event labels the window in which it is. Windows without a class are
background. If bouts of two classes overlap anywhere, a window has all its classes, else only the class with
the most seconds in it.

W windows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from everest.config.heads import MULTI_LABEL, Task
from everest.errors import DataError, join_first
from everest.lists.labels import JOINED_BY, class_indices, is_number_like
from everest.lists.sample import Sample
from everest.lists.writing import write_lines, write_list
from everest.system.events import Emit, notice
from everest.system.files import check_new_file
from everest.system.text import plural
from everest.system.types import Span
from everest.video.times import TIME_TOLERANCE
from everest_workflows.annotations.bout import (
    BACKGROUND,
    UNSCORED,
    Bout,
    Bouts,
    covered_spans,
    group_by_label,
)
from everest_workflows.annotations.codings import ANYONE, BoutFilter, VideoAnnotations, read_video_annotations
from everest_workflows.annotations.matching import stem

LABEL_FRACTION: Final = 0.5  # heuristic: the fraction of a window or bout that makes its class a label

ClassSeconds = dict[str, float]  # the seconds of each class in a window, in the order of the names


def read_bouts(
    files: Sequence[Path],
    paths: Sequence[str],
    emit: Emit,
    *,
    bout_filter: BoutFilter = ANYONE,
    fps: float | None = None,
) -> VideoAnnotations:
    """Read the labels of videos by their paths (`read_video_annotations`), and report what is not used."""
    labels = read_video_annotations(files, paths, bout_filter=bout_filter, fps=fps)
    distinct = list(dict.fromkeys(paths))
    unlabeled = [path for path in distinct if path not in labels.bouts]
    notices = list(labels.notices)
    if unlabeled:
        count = f"{len(unlabeled)} of {plural(len(distinct), 'video')}"
        notices.append(f"left out, without a bout in the annotations, {count}: {join_first(unlabeled)}")
    if labels.uncorrected_text:
        notices.append(f"also used as labels: {labels.uncorrected_text}")
    for text in notices:
        emit(notice(text))
    return labels


def label_windows(windows: Sequence[Span], bouts: Sequence[Bout]) -> list[ClassSeconds]:
    """The classes of the windows of a video, (start, end) in seconds, with the seconds of each class."""
    starts, ends = np.array(windows, np.float64).reshape(-1, 2).T
    order = starts.argsort()
    starts, ends = starts[order], ends[order]  # (W,)
    last_ends = np.maximum.accumulate(ends)  # a later one of two overlapping windows may end earlier

    def inside(start: float, end: float) -> tuple[slice, NDArray[np.float64]]:
        """The windows near a span, and the seconds of the span in each; negative outside a window."""
        near = slice(last_ends.searchsorted(start, "right"), starts.searchsorted(end, "right"))
        return near, np.minimum(ends[near], end) - np.maximum(starts[near], start)

    labels: list[ClassSeconds] = [{} for _ in windows]
    for label, label_bouts in group_by_label(bouts).items():
        seconds = np.zeros(len(windows))
        for span in covered_spans(label_bouts):
            near, held = inside(*span)
            seconds[near] += held.clip(min=0)
        has_label = seconds >= LABEL_FRACTION * (ends - starts) - TIME_TOLERANCE
        for bout in label_bouts:  # a point at the border of two windows is in the later one
            near, held = inside(bout.start, bout.end)
            is_enough = held >= LABEL_FRACTION * bout.seconds - TIME_TOLERANCE
            has_label[near] |= is_enough & (bout.start < ends[near])
        for index in np.flatnonzero(has_label):
            labels[order[index]][label] = float(seconds[index])
    return labels


def label_samples(
    samples: Sequence[Sample], bouts: Bouts, *, task: Task | None = None
) -> tuple[list[Sample], list[str], Task]:
    """Label windows with the classes of the bouts in them; DataError for a name that no list can hold.

    Args:
        samples: segments of videos in seconds. Leave out segments that touch unscored time first
            (`unscored_spans`).
        bouts: the bouts by `Sample.path`.
        task: single-label gives a window the class with the most seconds in it, and background if there is
            none; multi-label gives it all classes. None: multi-label if bouts of two classes overlap.
    Returns:
        The samples with their labels, the names of the classes, and the task.
    """
    spans_of: dict[str, list[Span]] = defaultdict(list)  # the windows of each video
    for sample in samples:
        spans_of[sample.path].append((sample.start or 0.0, np.inf if sample.end is None else sample.end))
    window_labels: dict[str, Iterator[ClassSeconds]] = {}
    has_overlap = False
    for path, spans in spans_of.items():
        # A background bout states that nothing happens.
        class_bouts = [bout for bout in bouts.get(path, ()) if bout.label not in (BACKGROUND, UNSCORED)]
        window_labels[path] = iter(label_windows(spans, class_bouts))
        has_overlap = has_overlap or _do_classes_overlap(class_bouts)
    labels = [next(window_labels[sample.path]) for sample in samples]
    names = sorted({name for seconds_of in labels for name in seconds_of})
    for name in names:
        if JOINED_BY in name or name != name.strip() or not name.isprintable():
            raise DataError(
                f"the name of the class {name!r} has a '{JOINED_BY}', a space at its end or a line break, "
                "which no list can hold; rename it in the annotations"
            )
    task = task or (MULTI_LABEL if has_overlap else "single-label")
    if task != MULTI_LABEL:
        # Among classes with equal seconds, the first name wins.
        chosen = [max(seconds_of, key=seconds_of.__getitem__, default=BACKGROUND) for seconds_of in labels]
        names = sorted(set(chosen))
        indices = [(names.index(name),) for name in chosen]
    else:
        indices = [(tuple(names.index(name) for name in seconds_of),) for seconds_of in labels]
    labeled = [replace(sample, labels=label) for sample, label in zip(samples, indices, strict=True)]
    return labeled, names, task


def _do_classes_overlap(bouts: Sequence[Bout]) -> bool:
    """Whether bouts of two classes overlap in a video; touching bouts do not."""
    ends: dict[str, float] = {}  # latest end of the bouts of each class
    for bout in sorted(bouts, key=lambda bout: bout.start):
        if any(end > bout.start + TIME_TOLERANCE for label, end in ends.items() if label != bout.label):
            return True
        ends[bout.label] = max(bout.end, ends.get(bout.label, 0.0))
    return False


def write_labeled(
    out: Path, windows: Sequence[Sample], bouts: Bouts, *, task: Task | None, overwrite: bool
) -> dict[str, Any]:
    """Write a list of windows with their classes, and with their recording as group.

    A class name that is a number would be read as an index: then a file of names is also written.

    Returns:
        `task`, `labels`: the number of windows of each class, and `classes`: the file of names, or null.
    """
    ordered = sorted(windows, key=lambda window: (window.path, window.start or 0.0))
    samples, classes, task = label_samples(ordered, bouts, task=task)
    names_file = out.with_name(f"{out.stem}_classes.txt") if any(map(is_number_like, classes)) else None
    if names_file is not None:
        check_new_file(names_file, overwrite=overwrite)
        write_lines(names_file, classes)
    grouped = [replace(sample, group=stem(sample.path)) for sample in samples]
    write_list(out, grouped, root=out.parent.absolute(), class_names=classes)
    counts = Counter(classes[index] for sample in samples for index in class_indices(sample.labels[0]))
    return {
        "task": task,
        "labels": dict(counts.most_common()),
        "classes": None if names_file is None else str(names_file),
    }
