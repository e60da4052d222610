"""The paired difference of two models on the same videos, with its interval over groups.

V videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everest.config.heads import METRIC_OF_TASK
from everest.lists.classes import Classes
from everest.lists.labels import JOINED_BY
from everest.metrics.head_metrics import HEAD_METRICS
from everest.metrics.intervals import MetricFunction, VideoCounts, bootstrap, limit_interval
from everest.metrics.names import METRICS
from everest.metrics.predictions import HeadPredictions, Predictions


def _measure_difference(first: HeadPredictions, second: HeadPredictions) -> MetricFunction:
    """How far the first model is above the second in the metric of a task; of percentages, in points."""
    metric = METRIC_OF_TASK[first.task]
    scale = 100 if METRICS[metric].is_percent else 1
    metrics = [HEAD_METRICS[part.task](part) for part in (first, second)]

    def difference(counts: VideoCounts) -> dict[str, float]:
        above, below = (values(counts)[metric] for values in metrics)
        return {"": scale * (above - below)}

    return difference


def estimate_difference(
    first: HeadPredictions, second: HeadPredictions, groups: Sequence[str]
) -> list[float] | None:
    """The 95 % interval, over groups, of how far the first model is above the second in the metric of a task.

    The difference of percentages is in points. None if there is no interval.
    """
    ends = bootstrap(_measure_difference(first, second), groups, fractions=False)[""]
    if any(map(np.isnan, ends)):
        return None
    return [round(end, 4) for end in limit_interval(METRIC_OF_TASK[first.task], ends, is_difference=True)]


def compare_predictions(new: Predictions, old: Predictions, classes: Classes) -> dict[str, Any]:
    """Compare two models with the same single head by the videos that both could read.

    Returns:
        `difference` of the metric `difference_of` (new minus old; percentages in points), its 95 % `interval`
        over groups (None of one group), the number of videos `compared`, and for classes those whose
        prediction has `changed`: `{"video", "label", "old", "new"}`.
    """
    (first,), (second,) = (
        list(_select(each, other).by_head().values()) for each, other in ((new, old), (old, new))
    )
    chosen = _select(new, old)
    value = _measure_difference(first, second)(np.ones(len(chosen.videos)))[""]
    groups = chosen.groups or chosen.videos
    changed = []
    if first.task != "regression":
        labels, predicted = first.class_flags()
        _, before = second.class_flags()
        changed = [
            {"video": chosen.videos[i]}
            | {
                key: _name(flags[i], classes)
                for key, flags in (("label", labels), ("old", before), ("new", predicted))
            }
            for i in np.flatnonzero((predicted != before).any(axis=1)).tolist()
        ]
    return {
        "difference_of": METRIC_OF_TASK[first.task],
        "difference": round(value, 4),
        "interval": estimate_difference(first, second, groups) if len(set(groups)) > 1 else None,
        "compared": len(chosen.videos),
        "changed": changed,
    }


def _select(predictions: Predictions, others: Predictions) -> Predictions:
    """The predictions of the videos that the others have as well."""
    common = set(others.videos)
    rows = [row for row, video in enumerate(predictions.videos) if video in common]
    return replace(
        predictions,
        videos=[predictions.videos[row] for row in rows],
        labels=[predictions.labels[row] for row in rows],
        outputs=predictions.outputs[rows],
        groups=[predictions.groups[row] for row in rows] if predictions.groups else (),
    )


def _name(flags: NDArray[np.bool_], classes: Classes) -> str:
    """The names of the classes (C,) that are set."""
    return JOINED_BY.join(classes.name(int(index)) for index in flags.nonzero()[0])
