"""When a clip or window is a fault, and the alarms over recordings with their number per day.

W clips or windows, C classes.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from scipy.stats import chi2

from everest.config.heads import DEFAULT_THRESHOLD, MULTI_LABEL, Head
from everest.errors import OptionError
from everest.lists.classes import Classes
from everest.metrics.faults import flag_faults, score_faults
from everest_workflows.recordings.timelines import Timelines

SECONDS_A_DAY: Final = 86_400
CONFIDENCE: Final = 0.95


def check_normal(classes: Classes, normal: str) -> Head:
    """The only head of a model, whose alarms are against a normal class.

    Raises:
        OptionError: the model has several heads, predicts numbers, or has one label per clip and no such
            class. Of several labels, any name stands for a clip without any.
    """
    head = classes.heads[0]
    if len(classes.heads) > 1 or head.task == "regression":
        raise OptionError("normal: needs a model with one head of classes")
    names = classes.names_of_head(head)
    if head.task != MULTI_LABEL and normal not in names:
        raise OptionError(f"normal: '{normal}' is not a class of the model ({', '.join(names)})")
    return head


def find_alarms(
    timelines: Timelines, normal: str, *, threshold: float | None = None, hold: int = 1
) -> dict[str, Any]:
    """Return the alarms of recordings, with their number per day and its interval.

    A window is a fault if its score (`score_faults`) is at least the threshold. Each run of at least `hold`
    faults is one alarm, at the end of the window that completes it. A gap between windows ends a run.

    Args:
        threshold: None: the one that `everest train --normal` chose for this class, else 0.5.

    Returns:
        `{"count", "hours", "per_day", "interval", "threshold", "list"}` with alarms
        `{"video", "time", "end", "label", "probability"}`: times in seconds, the most probable fault with its
        mean probability, and the exact Poisson interval of the number per day.

    Raises:
        OptionError: see `check_normal`; or there is no window.
    """
    head = check_normal(timelines.classes, normal)
    names = timelines.classes.names_of_head(head)
    if threshold is None:
        chosen = head.alarm
        threshold = chosen.threshold if chosen and chosen.normal == normal else DEFAULT_THRESHOLD
    if not 0 < threshold <= 1:
        raise OptionError(f"threshold: must be above 0 and at most 1, not {threshold}")
    alarms: list[dict[str, Any]] = []
    seconds = 0.0
    for video in timelines.videos:
        seconds += sum(end - start for start, end in video.covered_spans)
        is_fault = score_faults(video.outputs, head, names, normal) >= threshold  # (W,)
        for first, after in video.find_runs(is_fault):
            if not is_fault[first] or after - first < hold:
                continue
            means = video.outputs[first:after].mean(axis=0, dtype=np.float64)  # (C,)
            means[~flag_faults(names, normal)] = -1
            times = {"time": video.ends[first + hold - 1], "end": video.ends[after - 1]}
            rounded = {name: round(float(time), 3) for name, time in times.items()}
            best = {"label": names[means.argmax()], "probability": round(float(means.max()), 6)}
            alarms.append({"video": video.video, **rounded, **best})
    if not seconds:
        raise OptionError("normal: no recording has a window, so there is no time to count alarms in")
    days, tail = seconds / SECONDS_A_DAY, (1 - CONFIDENCE) / 2
    low = chi2.ppf(tail, 2 * len(alarms)) / 2 if alarms else 0.0
    high = chi2.ppf(1 - tail, 2 * len(alarms) + 2) / 2
    interval = [float(low / days), float(high / days)]
    return {
        "count": len(alarms),
        "hours": seconds / 3600,
        "per_day": len(alarms) / days,
        "interval": interval,
        "threshold": threshold,
        "list": alarms,
    }
