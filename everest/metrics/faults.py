"""Faults: clips that are not of the normal class, and how a classifier's stored alarm judges them.

V clips or windows, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everest.config.heads import MULTI_LABEL, Head
from everest.lists.classes import Classes
from everest.metrics.predictions import HeadPredictions, Predictions
from everest.system.types import Floats


def flag_faults(names: Sequence[str], normal: str) -> NDArray[np.bool_]:
    """(C,) whether each class is a fault."""
    return np.array([name != normal for name in names])


def score_faults(outputs: Floats, head: Head, names: Sequence[str], normal: str) -> Floats:
    """The score (V,) of outputs (V, C): 1 - P(normal); of several labels, the highest P of a fault."""
    is_fault = flag_faults(names, normal)
    if head.task == MULTI_LABEL:
        return outputs[:, is_fault].max(axis=1)
    return 1 - outputs[:, ~is_fault][:, 0]


def flag_faulty(predictions: HeadPredictions, names: Sequence[str], normal: str) -> NDArray[np.bool_]:
    """(V,) whether the labels of a clip have a fault."""
    labels, _ = predictions.class_flags()
    return labels[:, flag_faults(names, normal)].max(axis=1)


def count_alarms(predictions: Predictions, classes: Classes) -> dict[str, Any] | None:
    """The alarms that a classifier would raise; None if its weights state no alarm.

    Returns:
        `normal` and `threshold` of the model, `found` of so many `faults`, and `false` of so many
        `normal_videos`, each video counted once.
    """
    head = classes.heads[0]
    if head.alarm is None:
        return None
    names = classes.names_of_head(head)
    part = next(iter(predictions.by_head().values()))
    is_fault = flag_faulty(part, names, head.alarm.normal)
    is_alarm = score_faults(part.means, head, names, head.alarm.normal) >= head.alarm.threshold
    return asdict(head.alarm) | {
        "found": int((is_alarm & is_fault).sum()),
        "faults": int(is_fault.sum()),
        "false": int((is_alarm & ~is_fault).sum()),
        "normal_videos": int((~is_fault).sum()),
    }
