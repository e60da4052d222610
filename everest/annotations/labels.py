"""The labels of videos: the bouts in annotation files of any kinds, of those whose bouts count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from everest.annotations.bout import MARKS, Bout
from everest.annotations.formats import read_annotations
from everest.annotations.matching import VideoFinder
from everest.annotations.observers import NO_SUBJECT, Coding, WhoseBouts, codings_in, different_names, joined
from everest.annotations.records import LeftOut, left_out_text
from everest.errors import DataError, first_names

ANYONE: Final = WhoseBouts()


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What annotation files state about videos."""

    bouts: dict[str, list[Bout]]  # by the path of a user's video; without videos, by the name in the file
    unmatched: Sequence[str]  # annotated names that are none of the user's videos
    left_out: LeftOut  # the records that are not read
    together: Sequence[str]  # the subjects whose bouts are taken together; fewer than 2: none
    notices: Sequence[str]


def read_labels(
    files: Sequence[Path],
    videos: Iterable[str] = (),
    *,
    whose: WhoseBouts = ANYONE,
    fps: float | None = None,
    keep_windows: bool = False,
) -> Labels:
    """Read the bouts of the user's videos; see `read_annotations`.

    If a person has labeled a video in one of the files, files of predictions give way.

    Args:
        videos: paths; files may name them as `everest.annotations.matching` allows. Without any, the bouts
            of all videos are read.
    Raises:
        DataError: a record cannot be read, no video has a bout, two observers of a video differ, or there is
            no such observer or subject.
    """
    paths = {Path(video): video for video in videos}
    finder = VideoFinder(paths)
    left_out = LeftOut()
    codings_of: dict[str, list[Coding]] = defaultdict(list)
    unmatched: dict[str, None] = {}
    all_codings: list[Coding] = []
    for file in files:
        bouts = read_annotations(file, fps=fps, videos=finder, keep_windows=keep_windows, left_out=left_out)
        for coding in codings_in(file, bouts):
            all_codings.append(coding)
            found = finder.find(coding.video)
            if paths and found is None:
                unmatched[coding.video] = None
            else:
                codings_of[coding.video if found is None else paths[found]].append(coding)
    names = ", ".join(map(str, files))
    if not codings_of:
        problem = "has no bout"
        if unmatched:
            named, has = first_names(list(unmatched)), first_names([video.name for video in finder.videos])
            problem = f"annotates none of these videos; it names {named}; the videos are {has}"
        problem += f"; left out: {left_out_text(left_out)}" if left_out else ""
        raise DataError(f"{names}: {problem}")
    if whose.observers and not any(map(whose.is_chosen, all_codings)):
        given = ", ".join(whose.observers)
        raise DataError(
            f"--observer {given}: not in {names}, which has {first_names(different_names(all_codings), 10)}"
        )
    bouts_of: dict[str, list[Bout]] = {}
    several: dict[str, None] = {}  # observers whose codings are joined
    predicted: list[str] = []
    for video, codings in codings_of.items():
        corrected = {coding.file for coding in codings if not coding.is_predicted}
        used = [coding for coding in codings if not corrected or coding.file in corrected]
        if len(used) < len(codings):
            predicted.append(video)
        used = whose.codings(video, used)
        if len(used) > 1:
            several |= dict.fromkeys(different_names(used))
        bouts_of[video] = joined(video, used)
    subjects = sorted(
        {
            bout.subject or NO_SUBJECT
            for bouts in bouts_of.values()
            for bout in bouts
            if bout.label not in MARKS
        }
    )
    bouts_of = {video: kept for video, bouts in bouts_of.items() if (kept := whose.of_subject(bouts))}
    if not bouts_of:
        known = first_names(subjects, 10)
        raise DataError(f"--subject {whose.subject}: not in {names}, which has {known}")
    together = subjects if whose.subject is None and len(subjects) > 1 else []
    notices = []
    if unmatched:
        notices.append(f"left out, no such video: {first_names(list(unmatched), 10)}")
    if predicted:
        text = (
            f"left out, predicted bouts of videos that a person has labeled: {first_names(sorted(predicted))}"
        )
        notices.append(text)
    if left_out:
        notices.append(f"left out: {left_out_text(left_out)}")
    if len(several) > 1:
        notices.append(f"joined: the codings of {first_names(list(several), 10)}; --observer keeps one")
    if together:
        notices.append(
            f"taken together, bouts of several subjects: {first_names(together, 10)}; --subject keeps one"
        )
    return Labels(
        bouts=bouts_of,
        unmatched=list(unmatched),
        left_out=left_out,
        together=together,
        notices=notices,
    )
