"""Writes lists that everest.lists.reading reads back to the same samples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from everest.errors import DataError, RecipeError
from everest.lists.columns import GROUP_COLUMN, HEAD_PREFIX, SEGMENT_COLUMNS
from everest.lists.labels import JOINED_BY, class_indices, is_integer
from everest.lists.sample import Sample
from everest.system.files import refuse_inputs, write_text

CLASSES_FILE: Final = "classes.txt"  # file of class names, for data.classes
ELSEWHERE_FIX: Final = "write elsewhere by --output DIR"


def refuse_unlistable(samples: Iterable[Sample]) -> None:
    """Raise DataError for the first sample whose path or group a list cannot hold."""
    for sample in samples:
        path = sample.path
        group = "-" if sample.group is None else sample.group
        has_path = len(path.splitlines()) == 1 and not path[-1].isspace()
        has_group = len(group.splitlines()) == 1 and group == group.strip() and "\0" not in group
        if not (has_path and has_group):
            subject = f"its group {group!r}" if has_path else "its name"
            problem = "is empty, or has a line break or an outer space, which no list can hold"
            raise DataError(f"{path!r}: {subject} {problem}; rename it")


def write_list(
    file: Path,
    samples: Sequence[Sample],
    *,
    root: Path | None,
    class_names: Sequence[str] = (),
    head_names: Sequence[str] = (),
) -> None:
    """Write a header and a line per sample, atomically.

    Args:
        root: paths below it are written relative to it; None writes full paths.
        class_names: names to write instead of class indices.
        head_names: names of the heads if a sample has several labels.
    """
    refuse_unlistable(samples)
    columns = ["path"]
    if any(sample.labels for sample in samples):
        columns += [f"{HEAD_PREFIX}{name}" for name in head_names] or ["label"]
    segment_columns = [name for name in SEGMENT_COLUMNS if any(getattr(x, name) is not None for x in samples)]
    has_groups = any(sample.group is not None for sample in samples)
    rows = [[*columns, *segment_columns, *([GROUP_COLUMN] if has_groups else [])]]
    for sample in samples:
        labels = [
            _format_number(label)
            if isinstance(label, float)
            else JOINED_BY.join(class_names[i] if class_names else str(i) for i in class_indices(label))
            for label in sample.labels
        ]
        times = [getattr(sample, name) for name in segment_columns]
        path = Path(sample.path)
        text = str(path.relative_to(root)) if root and path.is_relative_to(root) else sample.path
        if text[0] == "#" or text[0].isspace():  # the path would be read as a comment, or without its space
            text = f"./{text}"
        cells = [text, *labels, *("" if time is None else _format_number(time) for time in times)]
        rows.append([*cells, sample.group or ""] if has_groups else cells)
    # Fields are quoted where needed: a reader finds the same fields whichever separator it tries first.
    quoted = [
        ['"' + field.replace('"', '""') + '"' if re.search('[ ,\t"]', field) else field for field in row]
        for row in rows
    ]
    write_lines(file, map(",".join, quoted))


def _format_number(number: float) -> str:
    """The shortest text without an exponent that is read back as the same number."""
    return np.format_float_positional(number, trim="-")


def names_to_write(names: Sequence[str]) -> Sequence[str]:
    """The class names if a list must use them: with an integer among them, labels are read as names."""
    return names if any(map(is_integer, names)) else ()


def refuse_existing(paths: Iterable[Path], *, overwrite: bool, inputs: Iterable[Path]) -> None:
    """Raise RecipeError for a file to be written that was read, or that exists and may not be replaced."""
    sources = list(inputs)
    for path in paths:
        refuse_inputs(path, sources, option="", fix=ELSEWHERE_FIX)
        if path.exists() and not overwrite:
            raise RecipeError(f"{path}: exists; {ELSEWHERE_FIX}, or use --overwrite")


def write_lines(file: Path, lines: Iterable[str]) -> None:
    """Write the lines of a list, or one class name per line for `data.classes`, atomically."""
    write_text(file, "".join(f"{line}\n" for line in lines))
