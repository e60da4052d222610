"""Labels in the rows of a list (class names, indices, sets of classes, numbers), and files of class names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Final

import numpy as np

from everest.config.heads import MULTI_LABEL, Head, Heads, Task
from everest.errors import DataError, did_you_mean, shorten
from everest.lists.columns import HEAD_PREFIX, ListRow, parse_number, quote, read_lines
from everest.system.storage import Location

# The index of a class, the ascending indices of all classes of a video, or a number to predict.
Label = int | tuple[int, ...] | float

LARGEST_LABEL: Final = 1e15  # heuristic: largest regression label; float32 also holds its square
JOINED_BY: Final = "|"  # joins the classes of a multi-label cell
NEEDS_REGRESSION: Final = "labels that are numbers need data.task regression (--task regression)"
NEEDS_MULTI_LABEL: Final = (
    f"several classes joined by '{JOINED_BY}' need data.task multi-label (--task multi-label)"
)
EMPTY_CELL: Final = "fill it in, or give --task multi-label (data.task), where an empty cell has no class"
PREDICTS_ONE: Final = f"the model predicts one class for a video (single-label), '{JOINED_BY}' joins several"
LINE_FORMAT: Final = (
    "a line is `path label` (space, tab or comma); lists without labels are for data.pretrain"
)


@dataclass(frozen=True, kw_only=True)
class LabelRules:
    """The rules by which the labels of rows are read."""

    heads: Heads  # one head per label; a single head has no name; 0 outputs: any number of classes
    class_names: tuple[str, ...] = ()  # class names of a single head, in the order of their indices
    is_fixed: bool = False  # whether a trained model fixes the task and the classes

    def read(self, row: ListRow) -> tuple[Label, ...]:
        """The labels of a row, from the column `label.NAME` of each head or from the column `label`.

        A label that is a class name selects that class; any other integer is an index. If a class name
        is an integer, labels are read as names only. `|` joins several classes; an empty cell has none.
        ValueError for a missing or wrong label.
        """
        labels: list[Label] = []
        for head in self.heads:
            column = label_column(head)
            text = row.values.get(column)
            if head.task == MULTI_LABEL:
                names = [part.strip() for part in text.split(JOINED_BY)] if text else []
                classes = sorted({self._find_index(head, part) for part in names if part})
                if len(classes) < len(names):
                    problem = f"has a class twice, or nothing between two '{JOINED_BY}'"
                    raise ValueError(f"{column} '{shorten(text)}' {problem}")
                labels.append(tuple(classes))
            elif text is None:
                is_cell = row.header is not None and column in row.header.columns.values()
                fix = (
                    EMPTY_CELL
                    if is_cell and head.task == "single-label" and not self.is_fixed
                    else LINE_FORMAT
                )
                raise ValueError(f"no {column} in {quote(row.text)}; {fix}")
            elif head.task == "regression":
                number = parse_number(text)
                is_plain = text.isascii() and "_" not in text  # float() accepts the digits of every script
                if number is None or not is_plain or not abs(number) <= LARGEST_LABEL:  # also refuses NaN
                    fix = f"write numbers like 1.5, none beyond {LARGEST_LABEL:g}"
                    raise ValueError(f"{column} '{shorten(text)}' is not a number; {fix}")
                labels.append(number)
            else:
                labels.append(self._find_index(head, text))
        return tuple(labels)

    def _find_index(self, head: Head, text: str) -> int:
        """The index of a class; raises ValueError if there is no such class."""
        if text in self._index_of:
            return self._index_of[text]
        column = label_column(head)
        if not self._has_integer_names:
            num_classes = head.outputs or len(self.class_names)
            if is_integer(text):
                if int(text) < 0 or 0 < num_classes <= int(text):
                    range_text = f"from 0 to {num_classes - 1}" if num_classes else "from 0"
                    raise ValueError(f"{column} {text} is out of range: labels count {range_text}")
                return int(text)
            if is_number_like(text):
                reason = f"the model predicts classes ({head.task})" if self.is_fixed else NEEDS_REGRESSION
                raise ValueError(f"{column} '{shorten(text)}' is not an integer from 0; {reason}")
        no_names = "; other labels are numbers, and data.classes is not set"
        hint = did_you_mean(text, self.class_names) if self.class_names else no_names
        if head.task == "single-label" and JOINED_BY in text:
            hint = f"; {PREDICTS_ONE if self.is_fixed else NEEDS_MULTI_LABEL}"
        raise ValueError(f"unknown class '{shorten(text)}'{hint}")

    @cached_property
    def _index_of(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.class_names)}

    @cached_property
    def _has_integer_names(self) -> bool:
        return any(map(is_integer, self.class_names))


def class_indices(label: Label) -> tuple[int, ...]:
    """The indices of the classes of a label; a number has none."""
    if isinstance(label, tuple):
        return label
    return (label,) if isinstance(label, int) else ()


def label_values(labels: Sequence[Label], heads: Heads) -> list[float]:
    """The labels of a sample as values of a tensor: `Head.label_width` values for each head.

    The values are a class index, 1 or 0 for each class of a multi-label head, or a standardized number.
    """
    values: list[float] = []
    for label, head in zip(labels, heads, strict=False):
        if isinstance(label, tuple):
            values += [float(index in label) for index in range(head.outputs)]
        else:
            values.append((label - head.mean) / head.std if head.task == "regression" else label)
    return values


def label_column(head: Head) -> str:
    """The column of a list that holds the labels of a head."""
    return f"{HEAD_PREFIX}{head.name}" if head.name else "label"


def read_class_names(file: Location) -> tuple[str, ...]:
    """Read class names, one per line in the order of their indices; DataError for no or repeated names."""
    line_of: dict[str, int] = {}
    for number, line in read_lines(file):
        name = line.strip()
        if name in line_of:
            raise DataError(f"{file}:{number}: class '{name}' is in line {line_of[name]} already; keep one")
        line_of[name] = number
    if not line_of:
        raise DataError(f"{file}: no class names; a file of class names needs one in each line")
    return tuple(line_of)


def is_integer(text: str) -> bool:
    """Whether a label of at most 19 characters is an integer."""
    return len(text) < 20 and text.isascii() and text.removeprefix("-").isdecimal()


def is_number_like(text: str) -> bool:
    """Whether a text is a number: `1.0`, `+1`, `1e3`, `nan` and `²` are, `1_0` is not."""
    return text.isnumeric() or (parse_number(text) is not None and "_" not in text)


_TASK_NOTICES: Final = {
    MULTI_LABEL: f"labels contain '{JOINED_BY}', so each may name several classes (multi-label); "
    "--task single-label reads each as one class",
    "regression": "labels are decimals, so they are read as numbers (regression); --task names another kind",
}


def infer_task(rows: Iterable[ListRow], *, column: str = "label", names: Collection[str] = ()) -> Task:
    """Infer the task from the labels in a column.

    A label with `|` means multi-label. If all labels are numbers, one with a fraction means regression; 1.0
    does not, because other programs write integers so. With known class `names`, labels are not numbers, and
    a name may contain `|`.
    """
    texts = {row.values[column] for row in rows if column in row.values}.difference(names)
    if any(JOINED_BY in text for text in texts):
        return MULTI_LABEL
    if not names and all(map(is_number_like, texts)):
        numbers = [parse_number(text) or 0.0 for text in texts]  # parse_number refuses ½
        # `nan` and `inf` have no fraction.
        if not all(number.is_integer() for number in numbers if isfinite(number)):
            return "regression"
    return "single-label"


def task_notice(source: object, task: Task) -> str | None:
    """A line about a task inferred from the labels; None for the single-label task."""
    return f"{source}: {_TASK_NOTICES[task]}" if task in _TASK_NOTICES else None


def count_classes(labels: Iterable[Label]) -> Counter[int]:
    """Count the videos of each class that has a video; a video counts for each of its classes."""
    return Counter(index for label in labels for index in class_indices(label))


def class_imbalance(counts: Collection[int]) -> float:
    """The ratio of the most frequent class to the rarest that has a video; 1 without classes."""
    used = [count for count in counts if count]
    return max(used) / min(used) if used else 1.0


def number_statistics(labels: Iterable[Label]) -> dict[str, float] | None:
    """Mean, std, median, min and max of the labels that are numbers; None if no label is a number."""
    numbers = np.array([label for label in labels if isinstance(label, float)])
    if not len(numbers):
        return None
    functions = {"mean": np.mean, "std": np.std, "median": np.median, "min": np.min, "max": np.max}
    return {name: float(f"{function(numbers):.6g}") for name, function in functions.items()}
