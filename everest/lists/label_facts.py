"""Facts that the labels of a list show: their task, the videos of each class, the range of numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from math import isfinite
from typing import Final

import numpy as np

from everest.config.heads import MULTI_LABEL, Head, Heads, Task
from everest.lists.header import HEAD_PREFIX, as_number
from everest.lists.labels import JOINED_BY, Label, indices, is_number_like
from everest.lists.text import ListRow

# Our choice: the ratio of the most frequent class to the rarest from which a remedy is suggested.
IMBALANCED: Final = 10.0
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
    """Return heads for the columns `label.NAME`, with the tasks of their labels, of any number of classes."""
    columns = dict.fromkeys(name for row in rows for name in row.values if name.startswith(HEAD_PREFIX))
    return tuple(
        Head(name=column.removeprefix(HEAD_PREFIX), task=find_task(rows, column=column), outputs=0)
        for column in columns
    )


def count_classes(labels: Iterable[Label]) -> Counter[int]:
    """Return the videos of each class that has any; a video counts for each of its classes."""
    return Counter(index for label in labels for index in indices(label))


def imbalance(counts: Collection[int]) -> float:
    """Return the ratio of the most frequent class to the rarest that has a video; 1 without classes."""
    used = [count for count in counts if count]
    return max(used) / min(used) if used else 1.0


def number_facts(labels: Iterable[Label]) -> dict[str, float] | None:
    """Return mean, std, median, min and max of numbers; None if there are none."""
    numbers = np.array([label for label in labels if isinstance(label, float)])
    if not len(numbers):
        return None
    facts = {
        "mean": numbers.mean(),
        "std": numbers.std(),
        "median": np.median(numbers),
        "min": numbers.min(),
        "max": numbers.max(),
    }
    return {name: float(f"{value:.6g}") for name, value in facts.items()}
