"""How often each sample is drawn, if classes have different numbers of samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import chain
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

# A sample of a class of n samples has the weight n^-POWER, so its class has n^(1 - POWER).
POWERS: Final = {"balanced": 1.0, "sqrt": 0.5}


def sample_weights(labels: Sequence[Hashable], kind: Literal["balanced", "sqrt"]) -> NDArray[np.float64]:
    """Returns weights (samples,) for `StepSampler`, of which only the ratios count.

    Args:
        labels: the class of each sample, or the tuple of its classes. A sample of several classes has the
            largest of their weights. Samples without a class count as one class.
        kind: balanced: equal sums of the weights of each class; sqrt: sums in proportion to the square root
            of its number of samples. Both hold exactly if every sample has one class at most.
    """
    classes = [_classes(label) for label in labels]
    counts = Counter(chain.from_iterable(classes))
    weights = {name: count ** -POWERS[kind] for name, count in counts.items()}
    return np.array([max(weights[name] for name in names) for names in classes], dtype=np.float64)


def _classes(label: Hashable) -> set[Hashable]:
    """The classes of a sample; {None} if it has none."""
    if not isinstance(label, tuple):
        return {label}
    return set(label) or {None}
