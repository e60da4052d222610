"""The metrics of each class of a head, and how well each class is found, with intervals over groups.

V videos, C classes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from everest.config.heads import MULTI_LABEL
from everest.metrics.head_metrics import FEW_OF_CLASS, MetricValues, average_precisions, rounded
from everest.metrics.intervals import TAIL_FRACTION, MetricFunction, VideoCounts, bootstrap
from everest.metrics.predictions import HeadPredictions
from everest.system.types import Floats


def per_class(predictions: HeadPredictions, names: Sequence[str]) -> list[MetricValues]:
    """Return `name`, `videos`, `precision`, `recall`, `f1` and `ap` of each class, in percent.

    Precision is 0 for a class that is never predicted. `ap`, the average precision, is None for a class
    without a video. Multi-label heads also have `threshold`, the minimum probability of a predicted class.
    """
    labels, chosen = predictions.class_flags()  # (V, C) each
    videos, predicted, right = labels.sum(axis=0), chosen.sum(axis=0), (labels & chosen).sum(axis=0)  # (C,)
    scores = {
        "precision": right / np.maximum(predicted, 1),
        "recall": right / np.maximum(videos, 1),
        "f1": 2 * right / np.maximum(videos + predicted, 1),
        "ap": average_precisions(labels, predictions.means)(np.ones(len(labels))),
    }
    if predictions.task == MULTI_LABEL:
        scores["threshold"] = np.array(predictions.head.thresholds)
    return [
        {"name": name, "videos": int(videos[i])}
        | {score: rounded(values[i], is_fraction=True) for score, values in scores.items()}
        for i, name in enumerate(names)
    ]


def class_tests(
    predictions: HeadPredictions, names: Sequence[str], groups: Sequence[Hashable] | None
) -> list[MetricValues]:
    """Return how well each class that occurs is found, in percent: `name`, `prevalence`, value, `interval`.

    With one class per video, the value is `recall`, next to `precision`, and `taken_for`, the class that most
    missed videos are taken for, with their fraction `taken`; if groups have several videos of the class, also
    `worst_group`, the group with the most misses, and `worst`, its numbers of found and of all videos. With
    several classes per video, the value is `ap`, the average precision, which is about the prevalence if the
    outputs are random. The 95 % interval is over groups; None without groups, or for a class with fewer than
    `FEW_OF_CLASS` videos. `intervals` has those of `precision`, `f1` and, with several classes, `recall`.
    """
    labels, chosen = predictions.class_flags()  # (V, C) each
    is_multi = predictions.task == MULTI_LABEL
    ends: dict[str, tuple[float, float]] = {}
    if groups is not None and is_multi:
        precisions = average_precisions(labels, predictions.means)
        ends = bootstrap(lambda counts: dict(zip(names, precisions(counts), strict=True)), groups)
    score_ends = {} if groups is None else bootstrap(_class_scores(labels, chosen), groups)
    rows = []
    for index, row in enumerate(per_class(predictions, names)):
        name, videos = row["name"], np.flatnonzero(labels[:, index])  # videos of the class
        if not len(videos):
            continue
        measured = {key: row[key] for key in (("ap",) if is_multi else ("recall", "precision"))}
        taken = chosen[videos].sum(axis=0)  # (C,) videos of the class by predicted class
        taken[index] = 0
        if not is_multi and taken.any():
            measured["taken_for"] = names[int(taken.argmax())]
            measured["taken"] = rounded(taken.max() / len(videos), is_fraction=True)
        hits_of: dict[Hashable, list[bool]] = {}  # found or missed, per group
        if groups is not None and not is_multi:
            for video in videos.tolist():
                hits_of.setdefault(groups[video], []).append(bool(chosen[video, index]))
        missing = {group: hits for group, hits in hits_of.items() if len(hits) > 1 and not all(hits)}
        if missing:
            group, hits = max(missing.items(), key=lambda item: (item[1].count(False), -len(item[1])))
            measured |= {"worst_group": group, "worst": [sum(hits), len(hits)]}
        interval, intervals = None, {}
        if groups is not None and len(videos) >= FEW_OF_CLASS:
            for score in ("precision", "f1", *(("recall",) if is_multi else ())):
                found = [rounded(end, is_fraction=True) for end in score_ends[f"{score} {index}"]]
                intervals |= {} if None in found else {score: found}
            groups_of_videos = [groups[video] for video in videos.tolist()]
            if not is_multi:  # a recall covers only groups with the class
                hits = chosen[videos, index].astype(np.float64)
                (ends[name],) = bootstrap(_mean_metric(hits), groups_of_videos).values()
            elif ends[name][1] == 1:  # a perfect ap gets the bound of the groups with the class
                ends[name] = min(ends[name][0], TAIL_FRACTION ** (1 / len(set(groups_of_videos)))), 1.0
            interval = [rounded(end, is_fraction=True) for end in ends[name]]
        rows.append(
            {
                "name": name,
                "prevalence": rounded(len(videos) / len(labels), is_fraction=True),
                "interval": None if interval and None in interval else interval,
                "intervals": intervals,
                **measured,
            }
        )
    return rows


def _class_scores(labels: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> MetricFunction:
    """Precision, recall and F1 by class, of labels and chosen classes (V, C); nan if not defined."""
    flags = [flag.astype(np.float32) for flag in (labels, chosen, labels & chosen)]

    def metrics(counts: VideoCounts) -> dict[str, float]:
        support, predicted, right = (counts.astype(np.float32) @ flag for flag in flags)  # (C,) each
        with np.errstate(invalid="ignore"):
            scores = {"precision": right / predicted, "recall": right / support}
            scores["f1"] = 2 * right / (support + predicted)
        return {f"{name} {i}": float(x) for name, values in scores.items() for i, x in enumerate(values)}

    return metrics


def _mean_metric(hits: Floats) -> MetricFunction:
    return lambda counts: {"": float(counts @ hits / counts.sum())}
