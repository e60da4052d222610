"""Class imbalance: sampling odds of the training samples, and class weights in the loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from everest.config.heads import MULTI_LABEL, Heads
from everest.errors import RecipeError, did_you_mean
from everest.lists.labels import class_indices
from everest.lists.sample import Sample

# A sample of a class of n samples has the odds n^-POWER, so its class has n^(1 - POWER).
POWERS: Final = {"balanced": 1.0, "sqrt": 0.5}


def sampling_odds(labels: Sequence[Hashable], sampler: Literal["balanced", "sqrt"]) -> NDArray[np.float64]:
    """The relative odds (samples,) with which `StepSampler` draws each sample.

    Args:
        labels: the class of each sample, or the tuple of its classes. A sample of several classes has the
            odds of the rarest. Samples without a class count as one class.
        sampler: balanced: each class has the same total odds; sqrt: total odds in proportion to the square
            root of its number of samples. Both hold exactly if every sample has one class at most.
    """
    none: set[Hashable] = {None}
    classes = [(set(label) or none) if isinstance(label, tuple) else {label} for label in labels]
    counts = Counter(chain.from_iterable(classes))
    odds = {name: count ** -POWERS[sampler] for name, count in counts.items()}
    return np.array([max(odds[name] for name in names) for names in classes], dtype=np.float64)


# Heuristic: the largest weight of a positive video of a multi-label class. A class with one in a thousand
# videos would have 999, and its few positives would dominate the loss.
MAX_CLASS_WEIGHT: Final = 100.0


def class_weights(
    samples: Sequence[Sample], heads: Heads, setting: str | Mapping[str, float], names: Sequence[str] | None
) -> list[NDArray[np.float32] | None]:
    """The class weights (classes,) of each head, None if all count the same; RecipeError for unknown names.

    `balanced` weights a single-label class in inverse proportion to its videos, so that the mean weight of a
    video is 1 (as scikit-learn), and the positives of a multi-label class by negatives / positives. A class
    without a video has the weight 1.
    """
    if setting == "none":
        return [None for _ in heads]
    if isinstance(setting, str):
        balanced: list[NDArray[np.float32] | None] = []
        for head_index, head in enumerate(heads):
            if head.task == "regression":
                balanced.append(None)
                continue
            counts = np.zeros(head.outputs)
            for sample in samples:
                counts[list(class_indices(sample.labels[head_index]))] += 1
            if head.task == MULTI_LABEL:
                weights = np.minimum((len(samples) - counts) / np.maximum(counts, 1), MAX_CLASS_WEIGHT)
            else:
                weights = len(samples) / (np.maximum(counts, 1) * (counts > 0).sum())
            balanced.append(np.where((counts > 0) & (weights > 0), weights, 1).astype(np.float32))
        return balanced
    head, *other_heads = heads
    if other_heads or head.task == "regression":
        raise RecipeError("finetune.class_weights: weights by name need one head of classes; use balanced")
    known = list(names or map(str, range(head.outputs)))
    weights = np.ones(head.outputs, dtype=np.float32)
    for name, weight in setting.items():
        if name not in known:
            raise RecipeError(f"finetune.class_weights: unknown class '{name}'{did_you_mean(name, known)}")
        weights[known.index(name)] = weight
    return [weights]
