"""Facts that the labels of a list show: their task, empty columns, videos of each class, range of numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Final

import numpy as np

from everest.config.heads import MULTI_LABEL, Head, Heads, Task
from everest.errors import shown
from everest.lists.header import HEAD_PREFIX, as_number
from everest.lists.labels import JOINED_BY, Label, columns_of, indices, is_integer, is_number_like
from everest.lists.text import ListRow

# Our choice: the ratio of the most frequent class to the rarest from which a remedy is suggested.
IMBALANCED: Final = 10.0
QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)  # our choice
_FOUND: Final = {
    MULTI_LABEL: f"labels contain '{JOINED_BY}', so each may name several classes (multi-label); "
    "--task single-label reads each as one class",
    "regression": "labels are decimals, so they are read as numbers (regression); --task names another kind",
}


def find_task(rows: Iterable[ListRow], *, column: str = "label", names: Collection[str] = ()) -> Task:
    """Return the task of the labels in a column.

    A label with `|` shows several classes. If all labels are numbers, one with a fraction shows that they are
    not classes; 1.0 does not, as other programs write integers so.

    Args:
        names: of the classes if they are known, so that labels are no numbers; a name may contain `|`.
    """
    texts = {row.values[column] for row in rows if column in row.values}.difference(names)
    if any(JOINED_BY in text for text in texts):
        return MULTI_LABEL
    if not names and all(map(is_number_like, texts)):
        numbers = [as_number(text) or 0.0 for text in texts]  # none in ½
        # `nan` and `inf` have no fraction.
        if not all(number.is_integer() for number in numbers if isfinite(number)):
            return "regression"
    return "single-label"


def found_notice(source: object, task: Task) -> str | None:
    """Return a line about a task that was found from the labels; None for single classes."""
    return f"{source}: {_FOUND[task]}" if task in _FOUND else None


def open_heads(rows: Sequence[ListRow]) -> Heads:
    """Return heads for the columns `label.NAME`, with the tasks of their labels and 0 for `outputs`."""
    columns = dict.fromkeys(name for row in rows for name in row.values if name.startswith(HEAD_PREFIX))
    return tuple(
        Head(name=column.removeprefix(HEAD_PREFIX), task=find_task(rows, column=column), outputs=0)
        for column in columns
    )


@dataclass(frozen=True, slots=True)
class TwoKinds:
    """Names and numbers as labels of one list."""

    problem: str  # one line with an example of each
    rows: frozenset[str]  # `ListRow.where` of the labels that cannot be read because of the others


def find_two_kinds(rows: Sequence[ListRow], task: Task) -> TwoKinds | None:
    """Return the problem of a list that has names in some rows and numbers in others; None if it has not.

    The class names have to be unknown: with them, numbers are indices.
    """
    numbers: dict[str, str] = {}  # the first label of each kind in each row, by `ListRow.where`
    names: dict[str, str] = {}
    for row in rows:
        text = row.values.get("label", "")
        parts = text.split(JOINED_BY) if task == MULTI_LABEL else [text]
        for part in filter(None, map(str.strip, parts)):
            (numbers if is_number_like(part) else names).setdefault(row.where, part)
    if not (numbers and names):
        return None
    (number_row, number), (name_row, name) = next(iter(numbers.items())), next(iter(names.items()))
    unread = names if task == "regression" or any(map(is_integer, numbers.values())) else numbers
    problem = (
        f"{number_row}: label '{shown(number)}' is a number, and '{shown(name)}' ({name_row}) is a name; "
        "use one kind in all rows"
    )
    return TwoKinds(problem, frozenset(unread))


def empty_columns(rows: Sequence[ListRow], heads: Heads = ()) -> list[str]:
    """Return the columns of labels that are empty in all rows: of the heads, else all that the header has."""
    header = rows[0].header
    if header is None:
        return []
    wanted = columns_of(head.name for head in heads)
    labels = [name for name in header.names if name == "label" or name.startswith(HEAD_PREFIX)]
    there = [name for name in labels if not wanted or name in wanted]
    return [name for name in there if not any(name in row.values for row in rows)]


def count_classes(labels: Iterable[Label]) -> Counter[int]:
    """Return the videos of each class that has any; a video counts for each of its classes."""
    return Counter(index for label in labels for index in indices(label))


def imbalance(counts: Collection[int]) -> float:
    """Return the ratio of the most frequent class to the rarest that has a video; 1 without classes."""
    used = [count for count in counts if count]
    return max(used) / min(used) if used else 1.0


def number_facts(labels: Iterable[Label]) -> dict[str, float] | None:
    """Return mean, std, min, max and quantiles (`q05` … `q95`) of numbers; None if there are none."""
    numbers = np.array([label for label in labels if isinstance(label, float)])
    if not len(numbers):
        return None
    facts = {
        "mean": numbers.mean(),
        "std": numbers.std(),
        "min": numbers.min(),
        "max": numbers.max(),
        **{f"q{round(100 * share):02}": np.quantile(numbers, share) for share in QUANTILES},
    }
    return {name: float(f"{value:.6g}") for name, value in facts.items()}


def are_equal(labels: Iterable[Label]) -> bool:
    """Whether there are numbers, and all are the same: a model cannot learn them."""
    return len({label for label in labels if isinstance(label, float)}) == 1


def classes_of_a_video(labels: Sequence[Label]) -> dict[str, float] | None:
    """Return the mean number of classes of a multi-label video, and the share of videos without any."""
    counts = [len(label) for label in labels if isinstance(label, tuple)]
    if not counts:
        return None
    return {"mean": round(float(np.mean(counts)), 5), "without": round(counts.count(0) / len(counts), 5)}
