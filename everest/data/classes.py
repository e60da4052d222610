"""What the labels of a data set can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from everest.config.settings import DataSettings
from everest.data.samples import Sample, SampleList
from everest.errors import DataError

# Ours: how far counted labels may have gaps. Within it, `empty_classes` tells what has no clip.
FEW_CLASSES: Final = 100
CLASSES_A_USED_ONE: Final = 10


@dataclass(frozen=True, kw_only=True)
class Classes:
    """What a label can be."""

    count: int  # of all heads
    names: tuple[str, ...] | None  # in the order of the labels; None where only numbers are known
    heads: Mapping[str, int] = field(default_factory=dict)  # classes of each of several labels

    @classmethod
    def of(cls, samples: SampleList, data: DataSettings) -> Classes:
        """Told by `data.num_classes`, else counted: the names, else the labels of the training set.

        Raises:
            DataError: one class only, or counted from labels with such gaps that one must be a mistake.
        """
        if data.heads:
            return cls(count=sum(data.heads.values()), names=None, heads=data.heads)
        names = samples.class_names
        count = data.num_classes or (len(names) if names else _counted(samples.samples))
        if count < 2:
            raise DataError("the labels name one class only; a classifier needs two or more")
        return cls(count=count, names=names)

    def name(self, label: int) -> str:
        return self.names[label] if self.names else str(label)


def empty_classes(samples: Sequence[Sample], classes: Classes) -> list[str]:
    """The names (or numbers) of the classes of which there is no sample, in the order of their labels."""
    empty = []
    for place, (head, count) in enumerate((classes.heads or {"": classes.count}).items()):
        used = {sample.labels[place] for sample in samples}
        names = [classes.name(label) for label in range(count) if label not in used]
        empty += [f"{head} {name}" for name in names] if head else names
    return empty


def _counted(samples: Sequence[Sample]) -> int:
    """The number of classes that labels from 0 stand for.

    A mistyped label would otherwise make a head of its size, and of 99999999999 one of terabytes.
    """
    used = len({sample.labels[0] for sample in samples})
    last = max(samples, key=lambda sample: sample.labels[0])
    count = last.labels[0] + 1
    if count > max(FEW_CLASSES, CLASSES_A_USED_ONE * used):
        raise DataError(
            f"{last.path}: label {count - 1} would make {count} classes, of which only {used} have a clip; "
            "mend the label, or set data.num_classes"
        )
    return count
