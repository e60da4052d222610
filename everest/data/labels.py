"""Labels in the rows of a list: class names or numbers, one or one for each head.

A reader takes a row and gives its labels; it raises ValueError with what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from everest.data.list_files import HEAD_PREFIX, Row, shown
from everest.errors import did_you_mean

ReadLabels = Callable[[Row], tuple[int, ...]]


def no_labels(row: Row) -> tuple[int, ...]:
    """The reader for pre-training."""
    return ()


def label_of(names: Sequence[str], num_classes: int) -> ReadLabels:
    """A reader of the column `label`: a name, or a number below `num_classes` (0: any).

    Where names are numbers themselves, a number is a name and no index.
    """
    index_of = {name: index for index, name in enumerate(names)}
    takes_indices = not any(map(is_integer, names))

    def read(row: Row) -> tuple[int, ...]:
        if "label" not in row.values:
            raise ValueError(_label_missing(row))
        text = row.values["label"]
        if text in index_of:
            return (index_of[text],)
        if takes_indices and is_integer(text):
            return (_in_range("label", int(text), num_classes),)
        if takes_indices and _is_number_like(text):
            raise ValueError(f"label '{text}' is no whole number from 0")
        no_names = "; other labels are numbers, and data.classes is not set"
        raise ValueError(f"unknown class '{text}'{did_you_mean(text, names) if names else no_names}")

    return read


def _label_missing(row: Row) -> str:
    """What is wrong with a line that has no label."""
    text = f"no label in {shown(row.text)}; a line is `path label`, separated by a space, tab or comma"
    return f"{text}, not by ';'" if ";" in row.text else text


def labels_of(heads: Mapping[str, int]) -> ReadLabels:
    """A reader of one column for every head."""

    def read(row: Row) -> tuple[int, ...]:
        labels = []
        for column, num_classes in zip(columns_of(heads), heads.values(), strict=True):
            if not is_integer(row.values.get(column, "")):
                raise ValueError(f"the column {column} needs a number")
            labels.append(_in_range(column, int(row.values[column]), num_classes))
        return tuple(labels)

    return read


def columns_of(heads: Mapping[str, int]) -> list[str]:
    """The columns of a list that hold the labels of several heads."""
    return [f"{HEAD_PREFIX}{name}" for name in heads]


def is_integer(text: str) -> bool:
    """Whether a label is read as a number."""
    return text.isascii() and text.removeprefix("-").isdecimal()


def _is_number_like(text: str) -> bool:
    """Whether a text means a number, whole or not: `1.0`, `+1`, `1e3`, `nan` and `²` do, `1_0` does not."""
    if text.isnumeric():
        return True
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _in_range(name: str, label: int, num_classes: int) -> int:
    if label < 0 or 0 < num_classes <= label:
        allowed = f"from 0 to {num_classes - 1}" if num_classes else "from 0"
        raise ValueError(f"{name} {label} is out of range: labels count {allowed}")
    return label


def names_used(rows: Sequence[Row]) -> list[str]:
    """Class names used as labels, sorted; nothing when labels are numbers."""
    labels = {row.values["label"] for row in rows if "label" in row.values}
    return [] if any(map(is_integer, labels)) else sorted(x for x in labels if not _is_number_like(x))
