"""Writing a list that everest.data.list_files reads back to the same samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from everest.data.list_text import columns_of, is_integer
from everest.data.samples import Sample
from everest.errors import DataError, RecipeError
from everest.system.files import write_atomically

SEGMENT_COLUMNS: Final = ("start", "end", "start_frame", "end_frame")
ELSEWHERE: Final = "write elsewhere by --output DIR"


def unlistable(path: str) -> str | None:
    """Why no list can hold a path; None where it can."""
    if len(path.splitlines()) != 1:
        return "a line break in its name"
    if path[-1].isspace():
        return "a space at the end of its name"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "a name that is not in UTF-8"
    return None


def refuse_unlistable(samples: Iterable[Sample]) -> None:
    """Raise DataError where no list can hold a sample's path."""
    for sample in samples:
        problem = unlistable(sample.path)
        if problem is not None:
            raise DataError(f"{sample.path!r}: {problem}, which no list can hold; rename it")


def write_list(
    file: Path,
    samples: Sequence[Sample],
    *,
    root: Path,
    label_names: Sequence[str] = (),
    heads: Sequence[str] = (),
) -> None:
    """Write a header and a line for each sample, whole or not at all; paths below `root` are relative to it.

    Args:
        label_names: of the classes, written instead of their numbers.
        heads: names of the labels where a sample has several.
    Raises:
        DataError: a path that no list can hold.
        EnvironmentProblem: the file cannot be written.
    """
    refuse_unlistable(samples)
    columns = ["path"]
    if any(sample.labels for sample in samples):
        columns += columns_of(dict.fromkeys(heads, 0)) or ["label"]
    segment = [
        name for name in SEGMENT_COLUMNS if any(getattr(sample, name) is not None for sample in samples)
    ]
    rows = [[*columns, *segment]]
    for sample in samples:
        labels = [label_names[label] if label_names else str(label) for label in sample.labels]
        times = ["" if getattr(sample, name) is None else _decimal(getattr(sample, name)) for name in segment]
        rows.append([_listed(sample.path, root), *labels, *times])
    text = "".join(",".join(map(quoted, row)) + "\n" for row in rows)
    write_atomically(file, lambda part: part.write_text(text, encoding="utf-8", newline="\n"))


def _decimal(number: float) -> str:
    """The shortest text without an exponent that is read back as the same."""
    return np.format_float_positional(number, trim="-")


def names_needed(names: Sequence[str]) -> Sequence[str]:
    """Class names where a list has to use them: where they are numbers, a number is read as a name."""
    return names if any(map(is_integer, names)) else ()


def refuse_existing(
    paths: Iterable[Path], *, overwrite: bool, read: Iterable[Path], mend: str = ELSEWHERE
) -> None:
    """Refuse files to be written that were read, or exist and may not be replaced.

    Args:
        mend: what else the user can do.
    Raises:
        RecipeError: there is one.
    """
    sources = {file.resolve() for file in read}
    for path in paths:
        if path.resolve() in sources:
            raise RecipeError(f"{path}: is what was read; {mend}")
        if path.exists() and not overwrite:
            raise RecipeError(f"{path}: exists; {mend}, or use --overwrite")


def write_names(file: Path, names: Iterable[str]) -> None:
    """Write a class name a line, for `data.classes`."""
    text = "".join(f"{name}\n" for name in names)
    write_atomically(file, lambda part: part.write_text(text, encoding="utf-8", newline="\n"))


def quoted(value: str) -> str:
    """A field as it is read back, whichever of the separators is tried first."""
    return '"' + value.replace('"', '""') + '"' if any(sign in value for sign in ' ,\t"') else value


def _listed(path: str, root: Path) -> str:
    """A path as it stands in a list: `./` before what would be taken for a comment or cut off."""
    full = Path(path)
    text = str(full.relative_to(root)) if full.is_relative_to(root) else path
    return f"./{text}" if text[0] == "#" or text[0].isspace() else text
