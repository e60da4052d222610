"""Who coded a video, and whose bouts count: several observers of one video are never added up.

A coding is what one observer scored of a video in one file. Codings complement each other if they are of
other classes, subjects or times, or copies; else they are two opinions on one thing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import Final

from everest.annotations.bout import (
    UNSCORED,
    Bout,
    Span,
    by_video,
    spans_outside,
    unscored_bouts,
    unscored_spans,
)
from everest.errors import DataError, first_names, shown

NO_SUBJECT: Final = "no subject"  # chooses the bouts that name none


@dataclass(frozen=True, kw_only=True)
class Coding:
    """The bouts of one video by one observer in one file."""

    file: Path
    observer: str  # empty: the file names none
    bouts: Sequence[Bout]

    @property
    def name(self) -> str:
        """How messages and `--observer` name it."""
        return self.observer or self.file.stem

    @property
    def scored(self) -> list[Bout]:
        return [bout for bout in self.bouts if bout.label != UNSCORED]

    @property
    def is_manual(self) -> bool:
        """Whether no bout comes from a model; corrected predictions are no second opinion."""
        return all(bout.origin == "manual" for bout in self.bouts)

    @property
    def is_predicted(self) -> bool:
        """Whether a model found all bouts, and nobody corrected one."""
        return all(bout.origin == "automated" for bout in self.bouts)


@dataclass(frozen=True, kw_only=True)
class WhoseBouts:
    """The options --observer and --subject: names, perhaps with the wildcards * and ?."""

    observers: Sequence[str] = ()  # where a video has several; empty: none is chosen
    subject: str | None = None  # None: the bouts of all subjects, together
    subjects: set[str] = field(default_factory=set)  # those of the bouts that were read

    def of_subject(self, bouts: Sequence[Bout]) -> list[Bout]:
        """The bouts of the subject, and the time that no one scored."""
        scored = [bout for bout in bouts if bout.label != UNSCORED]
        self.subjects.update(bout.subject or NO_SUBJECT for bout in scored)
        if self.subject is None:
            return list(bouts)
        return [
            bout
            for bout in bouts
            if bout.label == UNSCORED or fnmatchcase(bout.subject or NO_SUBJECT, self.subject)
        ]

    def check(self) -> None:
        """Raise DataError if the subject is none of those that were read."""
        if self.subject is not None and not any(fnmatchcase(name, self.subject) for name in self.subjects):
            known = first_names(sorted(self.subjects)) or "none"
            raise DataError(f"--subject {self.subject}: no bout is of it; subjects: {known}")

    @property
    def notice(self) -> str | None:
        """A line if the bouts of several subjects are taken together."""
        if self.subject is not None or len(self.subjects) < 2:
            return None
        return f"bouts of {first_names(sorted(self.subjects))} are taken together; --subject NAME keeps one"

    def codings(self, video: object, codings: Sequence[Coding]) -> list[Coding]:
        """The codings of a video that count; DataError if two of them are of the same."""
        if len({coding.name for coding in codings}) > 1 and self.observers:
            chosen = [
                coding
                for coding in codings
                if any(fnmatchcase(coding.name, observer) for observer in self.observers)
            ]
            if not chosen:
                names = first_names(sorted({coding.name for coding in codings}))
                given = ", ".join(self.observers)
                raise DataError(f"--observer {given}: none coded {shown(video)}; observers: {names}")
            codings = chosen
        manual = [coding for coding in codings if coding.is_manual and coding.scored]
        for first, second in combinations(manual, 2):
            label = _contested(first, second)
            if label is not None:
                names = sorted({coding.name for coding in manual})
                fix = "choose one with --observer NAME" if len(names) > 1 else "name one of the files"
                raise DataError(
                    f"{shown(video)}: '{shown(label)}' is coded by {first_names(names)}, who differ; {fix}"
                )
        return list(codings)


def codings_of(file: Path, bouts: Iterable[Bout]) -> dict[str, list[Coding]]:
    """The codings in a file, by the names of the videos."""
    by_name: dict[str, list[Coding]] = {}
    for video, video_bouts in by_video(bouts).items():
        names = dict.fromkeys(bout.observer for bout in video_bouts)
        by_name[video] = [
            Coding(file=file, observer=name, bouts=[bout for bout in video_bouts if bout.observer == name])
            for name in names
        ]
    return by_name


def joined(video: str, codings: Sequence[Coding]) -> list[Bout]:
    """The bouts of codings of one video, each once; time is unscored if it is so in all of them."""
    scored = dict.fromkeys(bout for coding in codings for bout in coding.scored)
    spans = [span for coding in codings for span in spans_outside(unscored_spans(coding.bouts))]
    return [*scored, *unscored_bouts(video, spans)]


def _contested(first: Coding, second: Coding) -> str | None:
    """A class that both have coded at the same time with other bouts; None if there is none.

    The time of a coding is from its first to its last bout, less what it states as unscored.
    """
    both = _both(_coded_spans(first), _coded_spans(second))
    bouts_of = [_by_kind(coding.scored) for coding in (first, second)]
    for kind in sorted(bouts_of[0].keys() & bouts_of[1].keys()):
        times = [
            {
                (bout.start, bout.end)
                for bout in kinds[kind]
                if any(start < bout.end and bout.start < end for start, end in both)
            }
            for kinds in bouts_of
        ]
        if all(times) and times[0] != times[1]:
            return kind[0]
    return None


def _coded_spans(coding: Coding) -> list[Span]:
    scored = coding.scored
    first, last = min(bout.start for bout in scored), max(bout.end for bout in scored)
    spans = spans_outside(unscored_spans(coding.bouts))
    return [(max(start, first), min(end, last)) for start, end in spans if start <= last and first <= end]


def _both(first: Sequence[Span], second: Sequence[Span]) -> list[Span]:
    """The time in both of two lists of spans."""
    pairs = ((max(a[0], b[0]), min(a[1], b[1])) for a in first for b in second)
    return [(start, end) for start, end in pairs if start < end]


def _by_kind(bouts: Iterable[Bout]) -> dict[tuple[str, str], list[Bout]]:
    """Bouts by class and subject."""
    kinds: dict[tuple[str, str], list[Bout]] = {}
    for bout in bouts:
        kinds.setdefault((bout.label, bout.subject), []).append(bout)
    return kinds
