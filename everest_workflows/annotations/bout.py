"""A bout: a class that lasts from one time of a video to another, given by a person or by a model.

Time that no one has labeled is neither a class nor background: readers return it as bouts of the label
`unscored`, which any kind of file may also contain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from typing import Final, Literal, cast, get_args

from everest.config.heads import BACKGROUND as BACKGROUND
from everest.errors import shorten
from everest.system.types import Span

Origin = Literal["manual", "automated", "curated"]  # a person; a model; a model, corrected by a person
ORIGINS: Final[tuple[Origin, ...]] = get_args(Origin)
UNSCORED: Final = "unscored"  # a label that states that no one has labeled this time
TO_CHECK: Final = "to check"  # label of the windows that `everest budget --draw` draws
CHECKED: Final = "checked"  # the label by which a person replaces TO_CHECK
MARKS: Final = (UNSCORED, TO_CHECK, CHECKED)  # labels that are not classes
POINT_MS: Final = 1  # milliseconds of a point event in subtitles and ELAN, which have no bouts of length 0
LATEST_TIME: Final = 1e7  # seconds (115 days); heuristic: a later time is an error of the file


def read_origin(text: object, default: Origin = "manual") -> Origin:
    """The origin that a field of a file names; `default` if it names none."""
    return cast("Origin", text) if text in ORIGINS else default


@dataclass(frozen=True, slots=True, kw_only=True)
class Bout:
    """A labeled span of a video, in seconds from its first frame; the end is excluded.

    A point event, such as BORIS's POINT, ends at its start.
    """

    video: str  # name as the annotation file writes it
    start: float
    end: float
    label: str
    origin: Origin = "manual"
    subject: str = ""  # who shows the behavior, if the file states it
    observer: str = field(default="", compare=False)  # who coded the bout, if the file states it

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= LATEST_TIME:
            what = f"the bout '{shorten(self.label)}' of {shorten(self.video)}"
            times = f"starts at {self.start} s and ends at {self.end} s"
            need = f"needs 0 <= start <= end <= {LATEST_TIME:.0f}"
            raise ValueError(f"{what} {times}, but {need}")  # readers add the file and the line

    @property
    def seconds(self) -> float:
        return self.end - self.start


Bouts = Mapping[str, Sequence[Bout]]  # bouts by video


def to_milliseconds(bout: Bout) -> tuple[int, int]:
    """Start and end of a bout in whole milliseconds; a point event gets the shortest length."""
    start, end = round(bout.start * 1000), round(bout.end * 1000)
    return start, max(end, start + POINT_MS)


def from_milliseconds(start: int, end: int) -> tuple[float, float]:
    """Start and end in seconds; a bout of the shortest length is a point event."""
    return start / 1000, (start if 0 <= end - start <= POINT_MS else end) / 1000


def group_by_video(bouts: Iterable[Bout]) -> dict[str, list[Bout]]:
    """The bouts of each video, ordered by start, end and label; videos in the order of first appearance."""
    bouts_by_video: dict[str, list[Bout]] = defaultdict(list)
    for bout in bouts:
        bouts_by_video[bout.video].append(bout)
    for video_bouts in bouts_by_video.values():
        video_bouts.sort(key=lambda bout: (bout.start, bout.end, bout.label))
    return dict(bouts_by_video)


def group_by_label(bouts: Iterable[Bout]) -> dict[str, list[Bout]]:
    """The bouts of each class, the classes in alphabetical order."""
    ordered = sorted(bouts, key=attrgetter("label"))
    return {label: list(group) for label, group in groupby(ordered, key=attrgetter("label"))}


def merge_overlaps(bouts: Iterable[Bout]) -> list[Bout]:
    """Merge overlapping bouts that differ only in their times; bouts that only touch stay apart.

    The bouts of each video are ordered by start, end and label.
    """
    merged: list[Bout] = []
    last: dict[tuple[str, ...], int] = {}  # position in `merged` of the last bout with a key
    for bout in (bout for video_bouts in group_by_video(bouts).values() for bout in video_bouts):
        key = bout.video, bout.label, bout.subject, bout.origin
        index = last.get(key)
        if index is not None and bout.start < merged[index].end:
            merged[index] = replace(merged[index], end=max(merged[index].end, bout.end))
        else:
            last[key] = len(merged)
            merged.append(bout)
    return merged


def spans_outside(spans: Iterable[Span], end: float = LATEST_TIME) -> list[Span]:
    """The spans from 0 to `end` outside `spans`, which may overlap and need no order."""
    outside: list[Span] = []
    covered_until = 0.0
    for start, span_end in sorted(span for span in spans if span[0] < span[1]):
        if start > covered_until:
            outside.append((covered_until, min(start, end)))
        covered_until = max(covered_until, span_end)
    return [(start, span_end) for start, span_end in [*outside, (covered_until, end)] if start < span_end]


def covered_spans(bouts: Iterable[Bout]) -> list[Span]:
    """The time that at least one bout covers, as ordered spans without overlaps."""
    return spans_outside(spans_outside((bout.start, bout.end) for bout in bouts))


def unscored_spans(bouts: Iterable[Bout]) -> list[Span]:
    """The time that no one has labeled, as ordered spans without overlaps."""
    return covered_spans(bout for bout in bouts if bout.label == UNSCORED)


def unscored_bouts(
    video: str, scored: Iterable[Span], end: float = LATEST_TIME, *, observer: str = ""
) -> list[Bout]:
    """An unscored bout for each span of a video, up to `end`, outside the scored spans."""
    return [
        Bout(video=video, start=start, end=stop, label=UNSCORED, observer=observer)
        for start, stop in spans_outside(scored, end)
    ]
