"""Groups of videos that must not be torn apart: of one source, one person, one scene.

Clips of one film look alike; with some of them in training and others in a test, the test measures memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from everest.data.samples import Sample
from everest.errors import DataError, RecipeError

FOLDER: Final = "folder"

GroupOf = Callable[[Sample], str]


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A group with videos in several lists."""

    group: str
    lists: Mapping[str, int]  # its samples in each


def grouping(text: str | None) -> GroupOf:
    """What `--group` means: each video for itself, by its folder, or by a regular expression with a group.

    Raises:
        RecipeError: no regular expression, or one without exactly one group.
    """
    if text is None:
        return _video_of
    if text == FOLDER:
        return lambda sample: str(Path(sample.path).parent)
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise RecipeError(f"--group {text}: neither '{FOLDER}' nor a regular expression ({error})") from error
    if pattern.groups != 1:
        raise RecipeError(
            f"--group {text}: one pair of parentheses has to mark what names the group, as in _g(\\d+)_"
        )

    def group_of(sample: Sample) -> str:
        found = pattern.search(Path(sample.path).name)
        if found is None or found.group(1) is None:
            raise DataError(f"{sample.path}: --group {text} does not fit its name")
        return found.group(1)

    return group_of


def _video_of(sample: Sample) -> str:
    """One name for a video, however its path is spelled and whatever links lead to it."""
    place = sample.video
    return os.path.realpath(place) if isinstance(place, Path) else sample.path


def find_leaks(lists: Mapping[str, Sequence[Sample]], group_of: GroupOf) -> list[Leak]:
    """The groups with samples in several lists, in the order of their names."""
    found: dict[str, dict[str, int]] = {}
    for name, samples in lists.items():
        for sample in samples:
            counts = found.setdefault(group_of(sample), {})
            counts[name] = counts.get(name, 0) + 1
    return [Leak(group=group, lists=counts) for group, counts in sorted(found.items()) if len(counts) > 1]
