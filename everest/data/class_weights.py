"""The weights of the classes in the loss, against rare classes (`finetune.class_weights`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from everest.config.heads import MULTI_LABEL, Head, Heads
from everest.errors import RecipeError, did_you_mean
from everest.lists.classes import indices
from everest.lists.sample import Sample

# Our choice: at most, of a positive video of a multi-label class. A class of one in a thousand videos would
# have 999, and its few positives would be all that the head learns.
MOST: Final = 100.0


def class_weights(
    samples: Sequence[Sample],
    heads: Heads,
    setting: str | Mapping[str, float],
    names: Sequence[str] | None,
) -> list[NDArray[np.float32] | None]:
    """Return weights (classes,) for each head; None if all its classes count the same.

    balanced: of a single-label class in inverse proportion to its videos, so that the mean weight of a video
    is 1 (as scikit-learn); of a multi-label class its negative videos by its positive ones. A class without a
    video has the weight 1.

    Raises:
        RecipeError: weights by name that name no class, or go with several heads or with numbers.
    """
    if setting == "none":
        return [None for _ in heads]
    if isinstance(setting, str):
        return [_balanced(samples, head, position) for position, head in enumerate(heads)]
    head, *others = heads
    if others or head.task == "regression":
        raise RecipeError("finetune.class_weights: weights by name need one head of classes; use balanced")
    known = list(names or map(str, range(head.outputs)))
    weights = np.ones(head.outputs, dtype=np.float32)
    for name, weight in setting.items():
        if name not in known:
            raise RecipeError(f"finetune.class_weights: unknown class '{name}'{did_you_mean(name, known)}")
        weights[known.index(name)] = weight
    return [weights]


def _balanced(samples: Sequence[Sample], head: Head, position: int) -> NDArray[np.float32] | None:
    if head.task == "regression":
        return None
    counts = np.zeros(head.outputs)
    for sample in samples:
        counts[list(indices(sample.labels[position]))] += 1
    if head.task == MULTI_LABEL:
        weights = np.minimum((len(samples) - counts) / np.maximum(counts, 1), MOST)
    else:
        weights = len(samples) / (np.maximum(counts, 1) * (counts > 0).sum())
    return np.where((counts > 0) & (weights > 0), weights, 1).astype(np.float32)
