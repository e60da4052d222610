"""A bout: a class that lasts from one time of a video to another, given by a person or by a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal, cast, get_args

from everest.config.best import BACKGROUND as BACKGROUND
from everest.errors import DataError, shown

Origin = Literal["manual", "automated", "curated"]  # a person; a model; a model, and corrected by a person
ORIGINS: Final[tuple[Origin, ...]] = get_args(Origin)
UNSCORED: Final = "unscored"  # a label that states that no one has labeled this time
DRAWN: Final = "to check"  # label of the windows that `everest budget --draw` draws
CHECKED: Final = "checked"  # a person writes it in its place
LONGEST: Final = 1e7  # seconds, 115 days; our choice: a later time is an error of the file


class NoInterval(DataError, ValueError):
    """Times of a bout that are no interval of a video; readers add the file and the line."""


def origin_in(text: object, default: Origin = "manual") -> Origin:
    """The origin that a field of a file names; `default` if it names none."""
    return cast("Origin", text) if text in ORIGINS else default


@dataclass(frozen=True, slots=True, kw_only=True)
class Bout:
    """Times are seconds from the first frame of the video, the end excluded.

    A point event, such as BORIS's POINT, has its end at its start.
    """

    video: str  # as the annotation file writes it
    start: float
    end: float
    label: str
    origin: Origin = "manual"
    subject: str = ""  # who does it, where a file states it

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= LONGEST:
            what = f"{shown(self.video)}, {shown(self.label)}"
            raise NoInterval(
                f"{what}: {self.start} to {self.end} seconds is no interval of a video; correct it to "
                f"0 <= start <= end <= {LONGEST:.0f}"
            )

    @property
    def seconds(self) -> float:
        return self.end - self.start


def by_video(bouts: Iterable[Bout]) -> dict[str, list[Bout]]:
    """The bouts of each video, ordered by start, end and label; the videos in their first order."""
    found: dict[str, list[Bout]] = defaultdict(list)
    for bout in bouts:
        found[bout.video].append(bout)
    return {
        video: sorted(each, key=lambda bout: (bout.start, bout.end, bout.label))
        for video, each in found.items()
    }


def merge_overlaps(bouts: Iterable[Bout]) -> list[Bout]:
    """The bouts with those merged that overlap and are equal but for their times; bouts that touch are not.

    Ordered by start, end and label in each video.
    """
    merged: list[Bout] = []
    last: dict[tuple[str, ...], int] = {}  # the place in `merged` of the last bout of a kind
    for bout in (bout for each in by_video(bouts).values() for bout in each):
        key = bout.video, bout.label, bout.subject, bout.origin
        place = last.get(key)
        if place is not None and bout.start < merged[place].end:
            merged[place] = replace(merged[place], end=max(merged[place].end, bout.end))
        else:
            last[key] = len(merged)
            merged.append(bout)
    return merged
