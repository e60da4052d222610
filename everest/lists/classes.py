"""The heads and class names of a data set, and the classes without a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from everest.config.heads import Head, Heads, named_heads
from everest.config.settings import DataSettings
from everest.errors import DataError, join_first
from everest.lists.labels import class_indices, label_column
from everest.lists.reading import SampleList
from everest.lists.sample import Sample

# Heuristic: limits of a class count that is inferred from the highest label, because labels may have gaps.
MAX_INFERRED_CLASSES: Final = 100
MAX_CLASSES_PER_USED: Final = 10
# Heuristic: the least standard deviation of numbers relative to their mean; float32 resolves 6e-8 of it.
MIN_RELATIVE_STD: Final = 1e-5


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The heads of a model, and the names of its classes."""

    heads: Heads  # at least one head
    names: tuple[str, ...] | None = None  # class names of a single head; None if only indices are known

    @classmethod
    def of(cls, samples: SampleList, data: DataSettings) -> Classes:
        """The heads for a training set; regression labels are standardized by their mean and std in the set.

        The number of classes is `data.num_classes`, else the number of names, else one more than the highest
        label. DataError for fewer than two classes, far more than have a sample, or numbers that are equal.
        """
        if data.heads:
            heads = named_heads(data.heads)
            return cls(heads=tuple(_standardize(head, samples, i) for i, head in enumerate(heads)))
        if data.task == "regression":
            return cls(heads=(_standardize(Head(task="regression", outputs=1), samples, 0),))
        count = data.num_classes or len(samples.class_names or ())
        if not count:
            used = {label for sample in samples.samples for label in class_indices(sample.labels[0])}
            count = max(used, default=-1) + 1
            if count > max(MAX_INFERRED_CLASSES, MAX_CLASSES_PER_USED * len(used)):
                path = next(s.path for s in samples.samples if count - 1 in class_indices(s.labels[0]))
                raise DataError(
                    f"{path}: label {count - 1} would make {count} classes, of which only {len(used)} "
                    "have a clip; fix the label, or set data.num_classes"
                )
        if count < 2 and data.task == "single-label":
            raise DataError("the labels name one class only; a classifier needs two or more")
        return cls(heads=(Head(task=data.task, outputs=count),), names=samples.class_names)

    @property
    def num_outputs(self) -> int:
        """The number of outputs of all heads together."""
        return sum(head.outputs for head in self.heads)

    def name(self, label: int) -> str:
        return self.names[label] if self.names else str(label)

    def names_of_head(self, head: Head) -> list[str]:
        """The names of the classes of a head, or their indices."""
        return [self.name(label) for label in range(head.outputs)]


def _standardize(head: Head, samples: SampleList, head_index: int) -> Head:
    """A regression head with the mean and std of its numbers; another head unchanged."""
    if head.task != "regression":
        return head
    numbers = np.array([sample.labels[head_index] for sample in samples.samples], dtype=np.float64)
    mean, std, name = float(numbers.mean()), float(numbers.std()), label_column(head)
    if np.ptp(numbers) == 0:
        raise DataError(f"all {len(numbers)} numbers of the column {name} are {numbers[0]:g}; check the list")
    if std < MIN_RELATIVE_STD * abs(mean):
        raise DataError(
            f"the numbers of the column {name} have a mean of {mean:.9g} and a standard deviation of "
            f"{std:.3g}, too small for float32; subtract {mean:.9g} from all of them"
        )
    return replace(head, mean=mean, std=std)


def empty_classes_notice(key: str, samples: Sequence[Sample], classes: Classes) -> str | None:
    """A line about the classes without a sample in the list `data.KEY`; None if every class has one."""
    empty: list[str] = []
    for i, head in enumerate(classes.heads):
        used = {label for sample in samples for label in class_indices(sample.labels[i])}
        count = 0 if head.task == "regression" else head.outputs
        empty += [f"{head.name} {classes.name(index)}".strip() for index in range(count) if index not in used]
    if not empty:
        return None
    names = join_first([f"'{name}'" for name in empty])
    return f"data.{key} has no video of {len(empty)} of {classes.num_outputs} classes: {names}"
