"""Labels in the rows of a list (class names or indices, one per head), and the names of classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from everest.data.list_header import HEAD_PREFIX
from everest.data.list_text import ListRow, read_lines, shown
from everest.errors import DataError, did_you_mean
from everest.errors import shown as printable
from everest.system.storage import Location

SEPARATED: Final = "a line is `path label`, separated by a space, tab or comma"


@dataclass(frozen=True, kw_only=True)
class LabelRules:
    """The labels that a row may have."""

    names: tuple[str, ...] = ()  # of the classes, in the order of their indices
    num_classes: int | None = None  # indices are below; None: below the number of names, if there are any
    heads: Mapping[str, int] | None = None  # number of classes of each head, if a sample has several labels

    def read(self, row: ListRow) -> tuple[int, ...]:
        """Returns the labels of a row, from the column `label.NAME` of each head or from the column `label`.

        A label that is a class name selects that class, any other integer is an index. If one of the names
        is an integer, labels are read as names only.

        Raises:
            ValueError: the label is missing or wrong.
        """
        if self.heads:
            labels = []
            for column, count in zip(columns_of(self.heads), self.heads.values(), strict=True):
                text = row.values.get(column, "")
                if not is_integer(text):
                    raise ValueError(f"the column {column} needs a number")
                labels.append(_in_range(column, int(text), count))
            return tuple(labels)
        text = row.values.get("label")
        if text is None:
            hint = ", not by ';'" if ";" in row.text else ""
            raise ValueError(f"no label in {shown(row.text)}; {SEPARATED}{hint}")
        if text in self._index_of:
            return (self._index_of[text],)
        if not self._has_integer_names:
            if is_integer(text):
                return (_in_range("label", int(text), self.num_classes or len(self.names)),)
            if is_number_like(text):
                raise ValueError(f"label '{printable(text)}' is not an integer from 0")
        no_names = "; other labels are numbers, and data.classes is not set"
        raise ValueError(
            f"unknown class '{printable(text)}'{did_you_mean(text, self.names) if self.names else no_names}"
        )

    @cached_property
    def _index_of(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    @cached_property
    def _has_integer_names(self) -> bool:
        return any(map(is_integer, self.names))


def columns_of(heads: Iterable[str]) -> list[str]:
    """Returns the columns of a list that hold the labels of several heads."""
    return [f"{HEAD_PREFIX}{name}" for name in heads]


def names_used(rows: Sequence[ListRow]) -> tuple[str, ...]:
    """Returns the class names that a list uses as labels, sorted; none if its labels are numbers."""
    labels = {row.values["label"] for row in rows if "label" in row.values}
    if any(map(is_integer, labels)):
        return ()
    return tuple(sorted(label for label in labels if not is_number_like(label)))


def read_class_names(file: Location) -> tuple[str, ...]:
    """Reads class names, one per line in the order of their indices.

    Raises:
        DataError: the file cannot be read, has no names, or has a name twice.
    """
    line_of: dict[str, int] = {}
    for number, line in read_lines(file):
        name = line.strip()
        if name in line_of:
            raise DataError(f"{file}:{number}: class '{name}' is in line {line_of[name]} already")
        line_of[name] = number
    if not line_of:
        raise DataError(f"{file}: no class names; a file of class names needs one in each line")
    return tuple(line_of)


def is_integer(text: str) -> bool:
    """Whether a label is read as an integer; of more than 18 digits, it is none."""
    return len(text) < 20 and text.isascii() and text.removeprefix("-").isdecimal()


def is_number_like(text: str) -> bool:
    """Whether a text means any number: `1.0`, `+1`, `1e3`, `nan` and `²` do, `1_0` does not."""
    if text.isnumeric():
        return True
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _in_range(name: str, label: int, num_classes: int) -> int:
    """Returns the label if it is an index below `num_classes` (0: any index), else raises ValueError."""
    if label < 0 or 0 < num_classes <= label:
        allowed = f"from 0 to {num_classes - 1}" if num_classes else "from 0"
        raise ValueError(f"{name} {label} is out of range: labels count {allowed}")
    return label
