"""Lists of windows of long videos: `prepare windows`, with the classes of the bouts in them if there are any.

A window is a sample: a video with a start and an end in seconds. A class is a label of a window if its bouts
cover at least half of the window, or if at least half of one of its bouts is in the window. A point event
labels the window in which it is. Windows without a class are background. If bouts of two classes overlap
anywhere, a window has all its classes, else the one with the most seconds in it.

N candidates: all windows of a video. W windows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from everest.annotations.bout import (
    BACKGROUND,
    UNSCORED,
    Bout,
    Bouts,
    Span,
    by_label,
    covered_spans,
    unscored_spans,
)
from everest.annotations.labels import ANYONE, Labels, WhoseBouts, read_labels
from everest.annotations.matching import late_notices, stem
from everest.config.heads import MULTI_LABEL, Task
from everest.errors import DataError, RecipeError, first_names
from everest.inference.windows import check_seconds
from everest.lists.labels import JOINED_BY, indices, is_number_like
from everest.lists.sample import Sample
from everest.lists.writing import refuse_unlistable, write_lines, write_list
from everest.prepare.window_selection import choose_windows, why_none, window_activity
from everest.system.events import Report, notice
from everest.system.files import check_new_file
from everest.system.storage import parse_location
from everest.system.text import counted
from everest.video.missing import damage_text
from everest.video.packet_sizes import PacketSizes, packet_sizes
from everest.video.stream import VideoError
from everest.video.times import TIME_TOLERANCE

SHARE: Final = 0.5  # of a window or of a bout, that makes its class a label; heuristic
FATES: Final = {  # of a video with a problem
    "failed": "no windows",
    "damaged": "no windows there",
    "unranked": "its windows are spread evenly",
}

ClassSeconds = dict[str, float]  # the seconds of each class in a window, in the order of the names


def read_bouts(
    files: Sequence[Path],
    paths: Sequence[str],
    report: Report,
    *,
    whose: WhoseBouts = ANYONE,
    fps: float | None = None,
) -> Labels:
    """Read the labels of videos by their paths (see `read_labels`), and report what is not used."""
    labels = read_labels(files, paths, whose=whose, fps=fps)
    different = list(dict.fromkeys(paths))
    without = [path for path in different if path not in labels.bouts]
    notices = list(labels.notices)
    if without:
        number = f"{len(without)} of {counted(len(different), 'video')}"
        notices.append(f"left out, without a bout in the annotations, {number}: {first_names(without)}")
    automated = sum(bout.origin == "automated" for bouts in labels.bouts.values() for bout in bouts)
    if automated:
        number = counted(automated, "predicted bout")
        notices.append(f"also used as labels: {number} that nobody corrected")
    for text in notices:
        report(notice(text))
    return labels


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSettings:
    """Which windows are listed."""

    seconds: float
    step: float  # seconds from a candidate to the next
    by: Literal["uniform", "activity"] = "uniform"
    count: int | None = None  # windows in all; None: all candidates
    seed: int = 0

    def __post_init__(self) -> None:
        check_seconds(seconds=self.seconds, step=self.step)
        if self.by == "activity" and self.count is None:
            raise RecipeError("--by activity chooses among windows; state how many by --hours H or --count N")
        if self.count == 0:
            raise RecipeError("--hours is less than one window; use more hours or fewer --seconds")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """All windows of a video or a segment."""

    sample: Sample
    windows: NDArray[np.float64]  # (N, 2) seconds
    scores: NDArray[np.float64] | None  # (N,) activity; None if it is not wanted or not known
    unscored: int  # further windows, which touch time that no one has labeled
    end: float | None  # seconds: of a whole video without damage


def write_windows(
    samples: Sequence[Sample],
    out: Path,
    settings: WindowSettings,
    *,
    bouts: Bouts | None = None,
    task: Task | None = None,
    overwrite: bool,
    report: Report,
) -> dict[str, Any]:
    """Choose windows of videos or segments; write their list, return the JSON of `everest prepare windows`.

    Args:
        bouts: that label the windows, by absolute paths (see `read_bouts`); videos without a bout, at which
            no one may have looked, are left out. None: windows have no labels.
        task: see `label_samples`.
    """
    if task == "regression":
        raise RecipeError("--task regression: bouts have classes")
    check_new_file(out, overwrite=overwrite)
    samples = [replace(sample, path=str(parse_location(sample.path).absolute())) for sample in samples]
    refuse_unlistable(samples)
    if bouts is not None:
        samples = [sample for sample in samples if sample.path in bouts]
    candidates, problems = _find_candidates(samples, settings, bouts or {}, report)
    unscored = sum(each.unscored for each in candidates)
    lengths = [len(each.windows) for each in candidates]
    chosen = choose_windows(
        lengths,
        [each.scores for each in candidates] if settings.by == "activity" else None,
        count=sum(lengths) if settings.count is None else settings.count,
        apart=max(int(np.ceil(settings.seconds / settings.step - TIME_TOLERANCE)), 1),
        seed=settings.seed,
    )
    windows = [
        each.sample.with_seconds(start, end)
        for each, numbers in zip(candidates, chosen, strict=True)
        for start, end in each.windows[numbers].tolist()
    ]
    if settings.count is not None and len(windows) < settings.count:
        report(notice(f"{counted(len(windows), 'window')} of {settings.count} requested"))
    document: dict[str, Any] = {
        "by": settings.by,
        "windows": len(windows),
        # Overlaps are counted twice.
        "hours": sum((window.end or 0) - (window.start or 0) for window in windows) / 3600,
        "videos": len({window.path for window in windows}),
        **problems,
        "list": str(out),
    }
    if bouts is None:
        write_list(out, windows, root=out.parent.absolute())
        return document
    labels = _write_labeled(out, windows, bouts, task=task, overwrite=overwrite)
    return document | labels | {"unscored": unscored}


def _find_candidates(
    samples: Sequence[Sample], settings: WindowSettings, bouts: Bouts, report: Report
) -> tuple[list[Candidates], dict[str, list[dict[str, str]]]]:
    """The windows of each readable video; and for each of FATES, path and reason of the videos with it."""
    candidates: list[Candidates] = []
    problems: dict[str, list[dict[str, str]]] = {name: [] for name in FATES}
    read = lru_cache(maxsize=1)(packet_sizes)  # segments of one video often follow each other
    for done, sample in enumerate(samples, start=1):
        try:
            each, reasons = _candidates(sample, read(sample.video), settings, bouts.get(sample.path, ()))
            candidates.append(each)
        except (VideoError, OSError) as error:
            why = error.reason if isinstance(error, VideoError) else error.strerror or str(error)
            reasons = {"failed": why}
        for problem, reason in reasons.items():
            problems[problem].append({"path": sample.path, "reason": reason})
            report(notice(f"{sample.path}: {reason}; {FATES[problem]}"))
        report({"event": "video", "done": done, "videos": len(samples)})
    if not candidates:
        path, reason = problems["failed"][0].values()
        raise DataError(f"none of {counted(len(samples), 'video')} can be read, first {path}: {reason}")
    ends = {each.sample.path: each.end for each in candidates if each.end is not None}
    for text in late_notices(bouts, ends):
        report(notice(text))
    total = sum(len(each.windows) for each in candidates)
    unscored = sum(each.unscored for each in candidates)
    if not total:
        raise DataError(f"all {counted(unscored, 'window')} touch time that no one has labeled (unscored)")
    if unscored:
        report(notice(f"left out, touch unscored time: {unscored} of {counted(total + unscored, 'window')}"))
    return candidates, problems


def _candidates(
    sample: Sample, packets: PacketSizes, settings: WindowSettings, bouts: Sequence[Bout]
) -> tuple[Candidates, dict[str, str]]:
    """The windows of a video by its packets, and its problems; a video shorter than a window has one."""
    start = sample.start or 0.0
    end = packets.end if sample.end is None else min(sample.end, packets.end)
    times = np.append(packets.seconds, packets.end)
    if sample.start_frame is not None:
        start = float(times[min(sample.start_frame, len(times) - 1)])
    if sample.end_frame is not None:
        end = float(times[min(sample.end_frame, len(times) - 1)])
    if start >= end - TIME_TOLERANCE:
        raise VideoError(sample.video, f"no frame from {start:g} s on; it ends at {packets.end:g} s")
    number = max(int((end - start - settings.seconds + TIME_TOLERANCE) // settings.step) + 1, 1)
    starts = (start + settings.step * np.arange(number, dtype=np.float64)).round(6)
    missing = [(begin, min(stop, end)) for begin, stop in packets.missing if begin < end]
    windows = np.stack([starts, np.minimum(starts + settings.seconds, end).round(6)], axis=1)
    intact = _are_outside(windows, missing)
    is_open = sample.end is None and sample.end_frame is None
    damage = damage_text(packets.missing, within=(start or -inf, inf if is_open else end))
    if not intact.any():
        raise VideoError(sample.video, f"{damage}, which leaves no window of {settings.seconds:g} s")
    problems = {} if damage is None else {"damaged": damage}
    listed = intact & _are_outside(windows, unscored_spans(bouts))
    scores = None
    if settings.by == "activity":
        if (reason := why_none(packets)) is None:
            scores = window_activity(packets, starts[listed], settings.seconds)
        else:
            problems["unranked"] = reason
    candidates = Candidates(
        sample=sample,
        windows=windows[listed],
        scores=scores,
        unscored=int((intact & ~listed).sum()),
        end=end if damage is None and not sample.is_segment else None,
    )
    return candidates, problems


def _write_labeled(
    out: Path, windows: Sequence[Sample], bouts: Bouts, *, task: Task | None, overwrite: bool
) -> dict[str, Any]:
    """Write a list of windows with their classes, and with their recording as group.

    A list would read the name of a class that is a number as an index: a file of names is then written, too.

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
    counts = Counter(classes[index] for sample in samples for index in indices(sample.labels[0]))
    return {
        "task": task,
        "labels": dict(counts.most_common()),
        "classes": None if names_file is None else str(names_file),
    }


def label_windows(windows: Sequence[Span], bouts: Sequence[Bout]) -> list[ClassSeconds]:
    """The classes of the windows of a video, W of (start, end) in seconds, each with its seconds there."""
    starts, ends = np.array(windows, np.float64).reshape(-1, 2).T
    order = starts.argsort()
    starts, ends = starts[order], ends[order]  # (W,)
    last_ends = np.maximum.accumulate(ends)  # of overlapping windows, a later one may end earlier

    def inside(start: float, end: float) -> tuple[slice, NDArray[np.float64]]:
        """The windows near a span, and the seconds of it in each; negative outside of a window."""
        near = slice(last_ends.searchsorted(start, "right"), starts.searchsorted(end, "right"))
        return near, np.minimum(ends[near], end) - np.maximum(starts[near], start)

    labels: list[ClassSeconds] = [{} for _ in windows]
    for label, label_bouts in by_label(bouts).items():
        seconds = np.zeros(len(windows))
        for span in covered_spans(label_bouts):
            near, held = inside(*span)
            seconds[near] += held.clip(min=0)
        has_label = seconds >= SHARE * (ends - starts) - TIME_TOLERANCE
        for bout in label_bouts:  # a point is in the window that it starts, not in the one that it ends
            near, held = inside(bout.start, bout.end)
            has_label[near] |= (held >= SHARE * bout.seconds - TIME_TOLERANCE) & (bout.start < ends[near])
        for place in np.flatnonzero(has_label):
            labels[order[place]][label] = float(seconds[place])
    return labels


def label_samples(
    samples: Sequence[Sample], bouts: Bouts, *, task: Task | None = None
) -> tuple[list[Sample], list[str], Task]:
    """Give windows the classes of the bouts in them.

    Args:
        samples: segments of videos in seconds. Leave out those that touch unscored time first
            (`unscored_spans`).
        bouts: by `Sample.path`.
        task: single-label gives a window the class with the most seconds in it, and background if it has
            none. Multi-label gives it all classes. None: multi-label if bouts of two classes overlap.
    Returns:
        The samples with their labels, the names of the classes, and the task.
    """
    spans_of: dict[str, list[Span]] = defaultdict(list)  # of the windows of each video
    for sample in samples:
        spans_of[sample.path].append((sample.start or 0.0, np.inf if sample.end is None else sample.end))
    window_labels: dict[str, Iterator[ClassSeconds]] = {}
    overlap = False
    for path, spans in spans_of.items():
        # A bout of the background states that nothing happens.
        class_bouts = [bout for bout in bouts.get(path, ()) if bout.label not in (BACKGROUND, UNSCORED)]
        window_labels[path] = iter(label_windows(spans, class_bouts))
        ends: dict[str, float] = {}  # of the bouts of each class; touching bouts do not overlap
        for bout in sorted(class_bouts, key=lambda bout: bout.start):
            others = [end for label, end in ends.items() if label != bout.label]
            overlap = overlap or max(others, default=0.0) > bout.start + TIME_TOLERANCE
            ends[bout.label] = max(bout.end, ends.get(bout.label, 0.0))
    labels = [next(window_labels[sample.path]) for sample in samples]
    names = sorted({name for seconds_of in labels for name in seconds_of})
    for name in names:
        if JOINED_BY in name or name != name.strip() or not name.isprintable():
            raise DataError(
                f"the name of the class {name!r} has a '{JOINED_BY}', a space at its end or a line break, "
                "which no list can hold; rename it in the annotations"
            )
    task = task or (MULTI_LABEL if overlap else "single-label")
    if task != MULTI_LABEL:
        # Of equal seconds, the first name.
        chosen = [max(seconds_of, key=seconds_of.__getitem__, default=BACKGROUND) for seconds_of in labels]
        names = sorted(set(chosen))
        numbered = [(names.index(name),) for name in chosen]
    else:
        numbered = [(tuple(names.index(name) for name in seconds_of),) for seconds_of in labels]
    labeled = [replace(sample, labels=label) for sample, label in zip(samples, numbered, strict=True)]
    return labeled, names, task


def _are_outside(windows: NDArray[np.float64], spans: Iterable[Span]) -> NDArray[np.bool_]:
    """Whether each window, (N, 2) seconds, overlaps none of some spans, (N,)."""
    outside = np.ones(len(windows), np.bool_)
    for start, end in spans:
        outside &= (windows[:, 1] <= start + TIME_TOLERANCE) | (windows[:, 0] >= end - TIME_TOLERANCE)
    return outside
