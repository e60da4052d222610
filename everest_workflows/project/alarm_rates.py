"""How often a model would alarm: false alarms of normal clips, with a bound per day, and recall of faults.

V clips or windows, C classes, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import InstanceOf
from scipy.stats import beta

from everest.checkpoints.describe import measure_training_seconds
from everest.config.heads import Alarm, Head
from everest.config.settings import DataSettings
from everest.errors import DataError
from everest.figures.style import COLORS, saved_figure
from everest.metrics.faults import flag_faulty, score_faults
from everest.metrics.head_metrics import choose_thresholds
from everest.metrics.predictions import HeadPredictions
from everest.probes.classifiers import Labels
from everest.system.types import Floats
from everest_workflows.recordings.alarms import CONFIDENCE, SECONDS_A_DAY

THRESHOLDS: Final = (0.5, 0.8, 0.9, 0.95, 0.99)  # default: shown beside the chosen one
HOURS_WITHOUT_ALARM: Final = 24 * -math.log(1 - CONFIDENCE)  # 72: then the rate is below one a day


@dataclass(frozen=True, kw_only=True)
class AlarmRow:
    """The alarms at a threshold, each clip counted as one that a stream would show."""

    threshold: float
    false: int  # alarms of normal clips
    normal_clips: int
    per_day: float  # false alarms of one stream
    bound_per_day: float  # upper end of a one-sided 95 % interval
    recall: dict[str, float]  # alarms of the clips of each fault, in percent
    worst_group: InstanceOf[str] | None = None  # the group with most false alarms, if there are groups
    worst: list[int] | None = None  # of that group: its false alarms and its normal clips

    @property
    def worst_text(self) -> str:
        return format_worst(self.worst_group, self.worst)


def format_worst(group: str | None, counts: Sequence[int] | None) -> str:
    """A group with its two counts, such as of found and of all videos; empty without one."""
    return "" if group is None or counts is None else f"{Path(group).name} ({counts[0]} of {counts[1]})"


def find_clip_seconds(window: float | None, data: DataSettings) -> float:
    """The length of the windows of a project, or the median length of its clips; DataError if unknown."""
    seconds = window or measure_training_seconds(data)
    if seconds is None:
        raise DataError("--normal: the videos have no frame rate, so alarms have no number per day; omit it")
    return seconds


def choose_alarm(outputs: Floats, labels: Labels, head: Head, names: Sequence[str], normal: str) -> Alarm:
    """The alarm whose threshold has the highest F1 of faults; see `choose_thresholds`.

    Args:
        outputs: (V, C) of clips that the model has not learned from; rows of nan do not count.
    """
    seen = ~np.isnan(outputs[:, 0])
    head_predictions = HeadPredictions(head=head, labels=labels[seen], outputs=outputs[seen][:, None])
    is_fault = flag_faulty(head_predictions, names, normal)
    scores = score_faults(outputs[seen], head, names, normal)
    (threshold,) = choose_thresholds(scores[:, None], is_fault[:, None])
    return Alarm(normal=normal, threshold=round(threshold, 6) or 1e-6)


def measure_alarms(
    predictions: HeadPredictions, names: Sequence[str], groups: Sequence[str], alarm: Alarm, seconds: float
) -> list[AlarmRow]:
    """The alarms at THRESHOLDS and at the chosen threshold, in ascending order.

    The bound is that of Clopper and Pearson (1934) for as many independent clips as the normal clips are
    worth: their number divided by the design effect 1 + (m - 1) r (Kish 1965), where m is the mean size of
    the group of a clip, and r the intraclass correlation of their scores in groups.

    Args:
        groups: of the clips, (V,).
        seconds: length of a clip or window; a stream has 86,400 / seconds of them a day.
    """
    scores = score_faults(predictions.means, predictions.head, names, alarm.normal)  # (V,)
    labels, _ = predictions.class_flags()
    is_normal = ~flag_faulty(predictions, names, alarm.normal)
    normal_groups = np.asarray(groups)[is_normal]
    count, per_day = int(is_normal.sum()), SECONDS_A_DAY / seconds
    independent = count_independent(scores[is_normal], normal_groups)
    rows = []
    for threshold in sorted({*THRESHOLDS, alarm.threshold}):
        is_alarm = scores >= threshold
        false = int((is_alarm & is_normal).sum())
        fraction = false / max(count, 1)
        hits = fraction * independent
        bound = float(beta.ppf(CONFIDENCE, hits + 1, independent - hits)) if fraction < 1 else 1.0
        recall = {
            name: round(100 * float(is_alarm[labels[:, index]].mean()), 4)
            for index, name in enumerate(names)
            if name != alarm.normal and labels[:, index].any()
        }
        worst: dict[str, Any] = {}
        if len({*normal_groups}) > 1 and false:
            found, counts = np.unique(normal_groups[is_alarm[is_normal]], return_counts=True)
            name = str(found[counts.argmax()])
            worst = {"worst_group": name, "worst": [int(counts.max()), int((normal_groups == name).sum())]}
        rows.append(
            AlarmRow(
                threshold=threshold,
                false=false,
                normal_clips=count,
                per_day=fraction * per_day,
                bound_per_day=bound * per_day,
                recall=recall,
                **worst,
            )
        )
    return rows


def count_independent(scores: Floats, groups: NDArray[np.str_]) -> float:
    """How many independent clips V clips in G groups are worth; see `measure_alarms`. At least G."""
    _, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    count, num_groups = len(scores), len(sizes)
    if num_groups in (0, count):
        return float(count)
    if num_groups == 1:
        return 1.0
    means = np.bincount(numbers, scores) / sizes  # (G,)
    within = float(((scores - means[numbers]) ** 2).sum()) / (count - num_groups)
    between = float((sizes * (means - scores.mean()) ** 2).sum()) / (num_groups - 1)
    size = (count - float((sizes**2).sum()) / count) / (num_groups - 1)  # mean size of a group
    spread = between + (size - 1) * within
    correlation = min(max((between - within) / spread, 0.0), 1.0) if spread else 1.0
    effect = 1 + (float((sizes**2).sum()) / count - 1) * correlation
    return max(count / effect, float(num_groups))


def draw_alarms(
    path: Path,
    predictions: HeadPredictions,
    names: Sequence[str],
    alarm: Alarm,
    rows: Sequence[AlarmRow],
    seconds: float,
) -> None:
    """Draw precision against recall of faults, and recall against false alarms; see `measure_alarms`."""
    scores = score_faults(predictions.means, predictions.head, names, alarm.normal)
    is_fault = flag_faulty(predictions, names, alarm.normal)
    order = np.argsort(-scores)
    is_last = np.append(np.diff(scores[order]) < 0, True)  # of equal scores
    right = is_fault[order].cumsum()[is_last]
    num_alarms = np.flatnonzero(is_last) + 1
    recall, precision = 100 * right / max(int(is_fault.sum()), 1), 100 * right / num_alarms
    num_chosen = int(np.searchsorted(-scores[order][is_last], -alarm.threshold, side="right"))
    with saved_figure(path, (10, 4.5)) as figure:
        panel, rates = figure.subplots(1, 2)
        panel.step(recall, precision, color=COLORS[0], where="post")
        label = f"threshold {alarm.threshold:.3g}"
        at = slice(max(num_chosen - 1, 0), num_chosen)  # empty without an alarm
        panel.plot(recall[at], precision[at], "o", color=COLORS[1], markersize=9, label=label)
        panel.axhline(100 * is_fault.mean(), color="gray", linestyle="--", label="chance")
        panel.set(xlim=(0, 102), ylim=(0, 102), xlabel="recall of faults, %", ylabel="precision of alarms, %")
        panel.legend(loc="lower left", frameon=False)
        hourly = (num_alarms - right) / max(int((~is_fault).sum()), 1) * 3600 / seconds
        rates.step(hourly, recall, color="gray", where="post")
        is_chosen = [row.threshold == alarm.threshold for row in rows]
        ordered = sorted(zip(is_chosen, rows, strict=True), key=itemgetter(0))
        for row in {row.false: row for _, row in ordered}.values():
            rate, bound = row.per_day / 24, row.bound_per_day / 24
            found = 100 * int((scores[is_fault] >= row.threshold).sum()) / max(int(is_fault.sum()), 1)
            color = COLORS[1] if row.threshold == alarm.threshold else COLORS[0]
            rates.plot([rate, bound], [found, found], color=color, marker="|")
            rates.plot(rate, found, "o", color=color)
            rates.annotate(f"{row.threshold:.3g}", (bound, found), xytext=(4, -4), textcoords="offset points")
        rates.set(ylim=(-2, 105), ylabel="recall of faults, %")
        rates.set_xlabel("false alarms an hour (bar: 95 % bound), by threshold")
        for each in (panel, rates):
            each.grid(alpha=0.3)
