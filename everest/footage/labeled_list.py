"""Lists of windows with the classes of the bouts in them, which fine-tuning reads."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from everest.annotations.bout import Bout
from everest.annotations.formats import read_annotations
from everest.annotations.labeled import labeled_samples
from everest.annotations.matching import VideoNames, match_videos, stem
from everest.annotations.scored import join_files
from everest.config.heads import Task
from everest.errors import DataError, RecipeError, first_names
from everest.lists.labels import indices, is_number_like
from everest.lists.sample import Sample
from everest.lists.writing import write_lines, write_list
from everest.system.events import Report, notice
from everest.system.files import check_new_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Labeling:
    """The annotations that label windows."""

    files: tuple[Path, ...]  # of any kinds
    fps: float | None = None  # of files that count frames; None: as the file states, or as the video has
    task: Task | None = None  # see `labeled_samples`

    def __post_init__(self) -> None:
        if self.task == "regression":
            raise RecipeError("--task regression: bouts have classes")

    def bouts(self, paths: Iterable[str], report: Report) -> dict[str, list[Bout]]:
        """Read the bouts of videos, by the paths of these."""
        by_path = {Path(path): path for path in paths}
        names = VideoNames(by_path)
        read = [read_annotations(file, fps=self.fps, videos=names) for file in self.files]
        found = [match_videos(bouts, names) for bouts in read]
        unknown = list(dict.fromkeys(name for _, of_file in found for name in of_file))
        matched, predicted = without_predictions([of_file for of_file, _ in found])
        if not matched:
            named = first_names(unknown) or "no video"
            raise DataError(f"--labels {self.files[0]}: has no bout of these videos; it names {named}")
        without = [str(path) for path in by_path if path not in matched]
        for what, names_of in (
            ("predicted bouts of videos that a person has labeled", sorted(map(str, predicted))),
            ("no such video", unknown),
            (f"without a bout in the annotations, {len(without)} of {len(by_path)} videos", without),
        ):
            if names_of:
                report(notice(f"left out, {what}: {first_names(names_of)}"))
        return {by_path[video]: of_video for video, of_video in matched.items()}

    def write(
        self, out: Path, windows: Sequence[Sample], bouts: Mapping[str, Sequence[Bout]], *, overwrite: bool
    ) -> dict[str, Any]:
        """Write a list of windows with their classes, and with their recording as group.

        A list would read the name of a class that is a number as an index: a file of names is then written,
        too.

        Returns:
            `task`, `labels`: the number of windows of each class, and `classes`: the file of names, or null.
        """
        ordered = sorted(windows, key=lambda window: (window.path, window.start or 0.0))
        samples, classes, task = labeled_samples(ordered, bouts, task=self.task)
        names_file = out.with_name(f"{out.stem}_classes.txt") if any(map(is_number_like, classes)) else None
        if names_file is not None:
            check_new_file(names_file, option="--output", overwrite=overwrite)
            write_lines(names_file, classes)
        grouped = [replace(sample, group=stem(sample.path)) for sample in samples]
        write_list(out, grouped, root=out.parent.absolute(), label_names=classes)
        counts = Counter(classes[index] for sample in samples for index in indices(sample.labels[0]))
        return {
            "task": task,
            "labels": dict(counts.most_common()),
            "classes": None if names_file is None else str(names_file),
        }


def without_predictions(
    files: Sequence[Mapping[Path, Sequence[Bout]]],
) -> tuple[dict[Path, list[Bout]], list[Path]]:
    """Join the bouts of several files; files of predictions give way to those of a person.

    Args:
        files: the bouts of each file, by their video.
    Returns:
        The bouts of each video, and the videos of which predicted bouts are left out.
    """
    by_video: dict[Path, list[Sequence[Bout]]] = defaultdict(list)
    for of_file in files:
        for video, bouts in of_file.items():
            by_video[video].append(bouts)
    joined, left_out = {}, []
    for video, lists in by_video.items():
        of_person = [bouts for bouts in lists if any(bout.origin != "automated" for bout in bouts)]
        joined[video] = join_files(of_person or lists)
        if of_person and len(of_person) < len(lists):
            left_out.append(video)
    return joined, left_out
