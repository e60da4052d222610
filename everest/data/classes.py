"""The classes of a data set: their number, their names, and which of them have no sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from everest.config.settings import DataSettings
from everest.data.samples import SHOWN, Sample, SampleList
from everest.errors import DataError

# Our choice: the gaps that the labels may have when the number of classes follows from the highest label.
FEW_CLASSES: Final = 100
CLASSES_A_USED_ONE: Final = 10


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes that a model predicts."""

    count: int  # over all heads
    names: tuple[str, ...] | None  # in the order of the labels; None if only indices are known
    heads: Mapping[str, int] = field(default_factory=dict)  # number of classes of each of several heads

    @classmethod
    def of(cls, samples: SampleList, data: DataSettings) -> Classes:
        """Returns the classes of a training set.

        Their number is `data.num_classes`, else the number of names, else one more than the highest label.

        Raises:
            DataError: there is only one class, or the gaps between the labels are so large that one label
                must be a mistake: it would make a head of its size, and 99999999999 one of terabytes.
        """
        if data.heads:
            return cls(count=sum(data.heads.values()), names=None, heads=data.heads)
        names = samples.class_names
        count = data.num_classes or len(names or ())
        if not count:
            used = len({sample.labels[0] for sample in samples.samples})
            highest = max(samples.samples, key=lambda sample: sample.labels[0])
            count = highest.labels[0] + 1
            if count > max(FEW_CLASSES, CLASSES_A_USED_ONE * used):
                raise DataError(
                    f"{highest.path}: label {count - 1} would make {count} classes, of which only {used} "
                    "have a clip; fix the label, or set data.num_classes"
                )
        if count < 2:
            raise DataError("the labels name one class only; a classifier needs two or more")
        return cls(count=count, names=names)

    def name(self, label: int) -> str:
        return self.names[label] if self.names else str(label)


def empty_classes(samples: Sequence[Sample], classes: Classes) -> list[str]:
    """Returns the names (or indices) of the classes that have no sample, in the order of their labels."""
    empty = []
    for position, (head, count) in enumerate((classes.heads or {"": classes.count}).items()):
        used = {sample.labels[position] for sample in samples}
        names = [classes.name(label) for label in range(count) if label not in used]
        empty += [f"{head} {name}" for name in names] if head else names
    return empty


def empty_classes_notice(key: str, samples: Sequence[Sample], classes: Classes) -> str | None:
    """Returns a line about the classes of which the list `data.KEY` has no sample, if there are any."""
    empty = empty_classes(samples, classes)
    if not empty:
        return None
    named = ", ".join(f"'{name}'" for name in empty[:SHOWN]) + (", …" if len(empty) > SHOWN else "")
    return f"data.{key} has no video of {len(empty)} of {classes.count} classes: {named}"
