"""The labels of videos: bouts of the chosen observers and subjects in annotation files.

Bouts of two people who coded the same time are never added up. A coding is what one observer scored of a
video in one file. Two codings complement each other if they share no class of a subject, or no time from
first to last bout. Equal codings are copies. Other pairs are rival opinions: the user must choose one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from everest.errors import DataError, join_first, shorten
from everest.system.text import plural
from everest.system.types import Span
from everest_workflows.annotations.bout import (
    MARKS,
    UNSCORED,
    Bout,
    covered_spans,
    group_by_video,
    spans_outside,
    unscored_bouts,
    unscored_spans,
)
from everest_workflows.annotations.formats import read_annotations
from everest_workflows.annotations.matching import VideoFinder
from everest_workflows.annotations.records import LeftOut, Unread, left_out_text

NO_SUBJECT: Final = "no subject"  # chooses the bouts without a subject


@dataclass(frozen=True, kw_only=True)
class Coding:
    """The bouts of one video by one observer in one file."""

    file: Path
    video: str  # name as the file writes it
    observer: str  # empty: the file names no observer
    bouts: Sequence[Bout]

    @property
    def names(self) -> tuple[str, str]:
        """How messages and `--observer` may name the coding: by the observer, or by the file."""
        return self.observer or self.file.stem, self.file.stem

    @property
    def scored_bouts(self) -> list[Bout]:
        return [bout for bout in self.bouts if bout.label != UNSCORED]

    @property
    def is_manual(self) -> bool:
        """Whether no bout comes from a model."""
        return all(bout.origin == "manual" for bout in self.bouts)

    @property
    def is_predicted(self) -> bool:
        """Whether a model found all bouts, and nobody corrected one."""
        return all(bout.origin == "automated" for bout in self.bouts)


@dataclass(frozen=True, kw_only=True)
class BoutFilter:
    """The options --observer and --subject: names, perhaps with the wildcards * and ?."""

    observers: Sequence[str] = ()  # the observers that count if several coded a video; empty: no choice
    subject: str | None = None  # None: the bouts of all subjects, together

    def is_chosen(self, coding: Coding) -> bool:
        """Whether --observer names the coding."""
        return any(fnmatchcase(name, observer) for name in coding.names for observer in self.observers)

    def is_needed(self, file: Path, record: Unread) -> bool:
        """Whether a record of a file that cannot be read may be of a chosen observer and subject."""
        coding = Coding(file=file, video="", observer=record.observer, bouts=())
        is_subject = None in (self.subject, record.subject) or self.is_of_subject(record.subject or "")
        return is_subject and (not self.observers or self.is_chosen(coding))

    def is_of_subject(self, subject: str) -> bool:
        """Whether --subject names the subject of a bout."""
        return self.subject is None or fnmatchcase(subject or NO_SUBJECT, self.subject)

    def choose_codings(self, video: str, codings: Sequence[Coding]) -> list[Coding]:
        """The codings of a video that count; DataError if no coding is chosen, or two codings are rivals."""
        names = different_names(codings)
        if len(names) > 1 and self.observers:
            codings = [coding for coding in codings if self.is_chosen(coding)]
            if not codings:
                observers = ", ".join(self.observers)
                problem = f"{shorten(video)} is coded by {join_first(names)}"
                raise DataError(f"--observer {observers}: {problem}; name one of them")
        if (rivals := find_rivals(codings)) is not None:
            first, second, label = rivals
            names = different_names([first, second])
            fix = "choose one with --observer NAME" if len(names) > 1 else "name one of the two files"
            subject_text = f"{shorten(video)}: {len(codings)} observations ({join_first(names)})"
            raise DataError(f"{subject_text} differ in '{shorten(label)}'; {fix}")
        return list(codings)

    def choose_bouts(self, bouts: Sequence[Bout]) -> list[Bout]:
        """The bouts of the subject, unscored time and checked windows; empty if there is no such bout."""
        if self.subject is None:
            return list(bouts)
        kept = [bout for bout in bouts if bout.label in MARKS or self.is_of_subject(bout.subject)]
        return kept if any(bout.label not in MARKS for bout in kept) else []


ANYONE: Final = BoutFilter()


@dataclass(frozen=True, kw_only=True)
class VideoAnnotations:
    """What annotation files state about videos."""

    bouts: dict[str, list[Bout]]  # by path of the user's video; without videos, by the name in the file
    unmatched: Sequence[str]  # annotated names without a video of the user
    left_out: LeftOut  # the records that are not read
    merged_subjects: Sequence[str]  # the subjects of a video whose bouts are taken together
    joined_observers: Sequence[str]  # the observers whose codings are joined
    predicted_videos: Sequence[str]  # the videos whose predicted bouts are left out

    @property
    def uncorrected_text(self) -> str | None:
        """The number of predicted bouts that nobody corrected, in words; None without such bouts."""
        number = sum(bout.origin == "automated" for bouts in self.bouts.values() for bout in bouts)
        return f"{plural(number, 'predicted bout')} that nobody corrected" if number else None

    @property
    def notices(self) -> list[str]:
        """Sentences about what is left out or joined."""
        predicted = f"bouts of videos that a person has labeled: {join_first(sorted(self.predicted_videos))}"
        joined, merged = join_first(self.joined_observers, 10), join_first(self.merged_subjects, 10)
        notices = {
            f"left out, no such video: {join_first(self.unmatched, 10)}": self.unmatched,
            f"left out, predicted {predicted}": self.predicted_videos,
            f"left out: {left_out_text(self.left_out)}": self.left_out,
            f"joined: the codings of {joined}; --observer keeps one": self.joined_observers,
            f"taken together, bouts of several subjects: {merged}; --subject keeps one": self.merged_subjects,
        }
        return [text for text, is_needed in notices.items() if is_needed]


@dataclass(frozen=True, kw_only=True)
class VideoCodings:
    """All codings of some videos, before any is chosen."""

    by_video: dict[str, list[Coding]]  # by path of the user's video; without videos, by the name in the file
    unmatched: Sequence[str]
    left_out: LeftOut


def read_codings(
    files: Sequence[Path],
    videos: Iterable[str] = (),
    *,
    bout_filter: BoutFilter = ANYONE,
    fps: float | None = None,
    keep_windows: bool = False,
) -> VideoCodings:
    """Read what each observer scored of some videos; without `videos`, of all videos in the files.

    Raises DataError if no coding is of these videos, or of a chosen observer.
    """
    paths = {Path(video): video for video in videos}
    finder = VideoFinder(paths)
    left_out = LeftOut()
    codings: list[Coding] = []
    for file in files:
        options: Any = {"fps": fps, "videos": finder, "keep_windows": keep_windows, "left_out": left_out}
        bouts = read_annotations(file, is_chosen=partial(bout_filter.is_needed, file), **options)
        left_out.update(["file without a bout"] if not bouts and len(files) > 1 else [])
        codings += _divide_into_codings(file, bouts)
    names = ", ".join(map(str, files))
    by_video: dict[str, list[Coding]] = defaultdict(list)
    unread = [name for record in left_out.unread for name in record.videos]
    unmatched = dict.fromkeys(name for name in unread if paths and finder.find(name) is None)
    for coding in codings:
        if (path := finder.find(coding.video)) is None and paths:
            unmatched[coding.video] = None
        else:
            by_video[coding.video if path is None else paths[path]].append(coding)
    if not by_video:
        named, has = (join_first(list(unmatched)), join_first([video.name for video in finder.videos]))
        problem = f"annotates none of these videos; it names {named}; the videos are {has}"
        problem = problem if unmatched else "has no bout"
        problem += f"; left out: {left_out_text(left_out)}" if left_out else ""
        raise DataError(f"{names}: {problem}")
    if bout_filter.observers and not any(map(bout_filter.is_chosen, codings)):
        has = join_first(different_names(codings), 10)
        raise DataError(f"--observer {', '.join(bout_filter.observers)}: not in {names}, which has {has}")
    return VideoCodings(by_video=by_video, unmatched=list(unmatched), left_out=left_out)


def read_video_annotations(
    files: Sequence[Path], videos: Iterable[str] = (), *, bout_filter: BoutFilter = ANYONE, **options: Any
) -> VideoAnnotations:
    """Read the bouts of some videos from annotation files; without `videos`, of all videos in the files.

    For each video, what a person coded replaces what a model predicted, `bout_filter` chooses among the
    codings of several people, and the chosen codings are joined. For the options see `read_codings`.
    """
    read = read_codings(files, videos, bout_filter=bout_filter, **options)
    by_people = {video: _without_predicted(codings) for video, codings in read.by_video.items()}
    chosen = {video: bout_filter.choose_codings(video, codings) for video, codings in by_people.items()}
    several = [codings for codings in chosen.values() if len(codings) > 1]
    joined = dict.fromkeys(name for codings in several for name in different_names(codings))
    all_bouts = {video: join_bouts(video, codings) for video, codings in chosen.items()}
    subjects_of = {
        video: {bout.subject or NO_SUBJECT for bout in bouts if bout.label not in MARKS}
        for video, bouts in all_bouts.items()
    }
    subjects = sorted(set().union(*subjects_of.values()))
    together = set[str]().union(*(each for each in subjects_of.values() if len(each) > 1))
    bouts_of = {x: kept for x, bouts in all_bouts.items() if (kept := bout_filter.choose_bouts(bouts))}
    if not bouts_of:
        names, has = ", ".join(map(str, files)), join_first(subjects, 10)
        raise DataError(f"--subject {bout_filter.subject}: not in {names}, which has {has}")
    return VideoAnnotations(
        bouts=bouts_of,
        unmatched=read.unmatched,
        left_out=read.left_out,
        merged_subjects=sorted(together) if bout_filter.subject is None else [],
        joined_observers=list(joined) if len(joined) > 1 else (),
        predicted_videos=[video for video in chosen if by_people[video] != read.by_video[video]],
    )


def _without_predicted(codings: Sequence[Coding]) -> Sequence[Coding]:
    """The codings of a video from files in which a person coded it; all codings without such a file."""
    files = {coding.file for coding in codings if not coding.is_predicted}
    return [coding for coding in codings if coding.file in files] or codings


def join_bouts(video: str, codings: Sequence[Coding]) -> list[Bout]:
    """The different bouts of the codings of a video, and the time that none of the codings scores."""
    scored = dict.fromkeys(replace(bout, video=video) for coding in codings for bout in coding.scored_bouts)
    scored_spans = [span for coding in codings for span in spans_outside(unscored_spans(coding.bouts))]
    return [*scored, *unscored_bouts(video, scored_spans)]


def different_names(codings: Iterable[Coding]) -> list[str]:
    """The names of codings: the observers, or the files if they differ and all codings have one observer."""
    by_observer, by_file = (
        sorted(set(names)) for names in zip(*(coding.names for coding in codings), strict=True)
    )
    return by_file if len(by_observer) == 1 < len(by_file) else by_observer


def _divide_into_codings(file: Path, bouts: Iterable[Bout]) -> list[Coding]:
    """The codings in a file; unscored time without an observer applies to all codings."""
    codings = []
    for video, video_bouts in group_by_video(bouts).items():
        named = [bout for bout in video_bouts if bout.label not in MARKS or bout.observer] or video_bouts
        for observer in dict.fromkeys(bout.observer for bout in named):
            part = [b for b in video_bouts if b.observer == observer or (b.label in MARKS and not b.observer)]
            codings.append(Coding(file=file, video=video, observer=observer, bouts=part))
    return codings


def find_rivals(codings: Iterable[Coding]) -> tuple[Coding, Coding, str] | None:
    """Two codings of a video that contradict each other, and the class in which they do; else None."""
    for first, second in combinations((coding for coding in codings if not coding.is_predicted), 2):
        # A corrected prediction does not contradict the bouts of a person.
        label = _contested_label(first, second) if first.is_manual == second.is_manual else None
        if label is not None:
            return first, second, label
    return None


def _contested_label(first: Coding, second: Coding) -> str | None:
    """A class in which two codings differ where both were coded; None if no class differs."""
    # Files that name no observer may hold parts of one annotation: only bouts that overlap contradict.
    are_parts = not (first.observer or second.observer)
    shared_spans = _overlap(_coded_spans(first), _coded_spans(second))
    scored = [first.scored_bouts, second.scored_bouts]
    labels = [{bout.label for bout in bouts} for bouts in scored]
    for label in sorted(labels[0] & labels[1]):
        bouts_of_label = [[bout for bout in bouts if bout.label == label] for bouts in scored]
        if are_parts:
            shared_spans = _overlap(*map(covered_spans, bouts_of_label))
        # A bout without a subject may belong to any subject.
        has_subjects = all(bout.subject for bouts in bouts_of_label for bout in bouts)
        times = [
            {
                (bout.subject if has_subjects else "", bout.start, bout.end)
                for bout in bouts
                if any(start <= bout.end and bout.start <= end for start, end in shared_spans)
            }
            for bouts in bouts_of_label
        ]
        subjects = [{bout.subject if has_subjects else "" for bout in bouts} for bouts in bouts_of_label]
        if any(subject in subjects[0] & subjects[1] for subject, _, _ in times[0] ^ times[1]):
            return label
    return None


def _coded_spans(coding: Coding) -> list[Span]:
    """The time from the first to the last bout, without unscored time."""
    scored = coding.scored_bouts
    first = min((bout.start for bout in scored), default=0.0)
    last = max((bout.end for bout in scored), default=0.0)
    return _overlap([(first, last)], spans_outside(unscored_spans(coding.bouts)))


def _overlap(first: Sequence[Span], second: Sequence[Span]) -> list[Span]:
    pairs = ((max(a[0], b[0]), min(a[1], b[1])) for a in first for b in second)
    return [(start, end) for start, end in pairs if start < end]
