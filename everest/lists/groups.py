"""Groups of videos that look alike, such as those of one person, by the names of their files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from everest.errors import DataError, RecipeError
from everest.lists.sample import Sample
from everest.system.text import plural

GROUP_BY_FOLDER: Final = "folder"
PATH_PREFIX: Final = "path:"
COLUMN_PREFIX: Final = "column:"
# Values of --group: the first word of a file name, one in the middle that ends in a number, and the last one.
NAME_PATTERNS: Final = (r"^([^\W_]+)", r"_([^\W\d_]+\d+)_", r"([^\W_]+)\.\w+$")


def set_groups(samples: Sequence[Sample], text: str, *, root: Path) -> list[Sample]:
    """Set the groups of samples from their paths relative to `root`, as `--group` says.

    `folder` takes the folder, `path:REGEX` (or an expression with a `/`) a part of the path, any other
    expression a part of the file name. RecipeError without one pair of parentheses, DataError for a path that
    does not match.
    """
    expression = text.removeprefix(PATH_PREFIX)
    searches_path = text.startswith(PATH_PREFIX) or "/" in text
    try:
        num_groups = re.compile(expression).groups
        problem = f"has {plural(num_groups, 'pair')} of parentheses, not 1"
    except re.error as error:
        num_groups = None
        problem = f"not a regular expression: {error}"
    if text != GROUP_BY_FOLDER and num_groups != 1:
        raise RecipeError(
            f"--group {text}: {problem}; give '{GROUP_BY_FOLDER}', '{COLUMN_PREFIX}NAME', or a "
            "regular expression with one pair of parentheses around the name of the group, as in _g(\\d+)_"
        )
    grouped = []
    for sample in samples:
        path = Path(sample.path)
        path = path.relative_to(root) if path.is_relative_to(root) else path
        group = path.parent.as_posix()
        if text != GROUP_BY_FOLDER:
            match = re.search(expression, path.as_posix() if searches_path else path.name)
            if match is None or not match[1]:
                raise DataError(
                    f"{path}: --group {text} does not match; put what names the group in parentheses, as in "
                    "'^([^\\W_]+)' for the first word of a file name, '_(g\\d+)_' for g18 in a_g18_2.mp4, or "
                    f"'{PATH_PREFIX}REGEX' for the path"
                )
            group = match[1]
        grouped.append(replace(sample, group=group.strip()))
    return grouped


def find_name_pattern(paths: Sequence[str]) -> str | None:
    """The value of `--group` for the first word of NAME_PATTERNS that several files share, but not all.

    None if there is no such word: a file lacks it, or it is a number.
    """
    for pattern in NAME_PATTERNS:
        words = [found[1] for path in paths if (found := re.search(pattern, Path(path).name))]
        is_word = len(words) == len(paths) and not any(map(str.isdecimal, words))
        if is_word and 1 < len(set(words)) < len(words):
            return pattern
    return None


def find_group(sample: Sample) -> str:
    """The group of a sample; without a group, the path of its file with links resolved."""
    if sample.group is not None:
        return sample.group
    return os.path.realpath(sample.video) if isinstance(sample.video, Path) else sample.path
