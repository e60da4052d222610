"""Alarms over recordings, and their number per day: the acceptance test of a detector of faults.

W windows, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import chi2

from everest.errors import OptionError
from everest_workflows.recordings.timelines import Timelines

SECONDS_A_DAY = 86_400
CONFIDENCE = 0.95


def find_alarms(
    timelines: Timelines, normal: str, *, threshold: float = 0.5, hold: int = 1
) -> dict[str, Any]:
    """Return the alarms of recordings, with their number per day and its interval.

    A window is a fault if 1 - P(normal) is at least `threshold`. Each run of at least `hold` faults is one
    alarm, at the end of the window that completes it. A gap between windows ends a run.

    Returns:
        `{"count", "hours", "per_day", "interval", "list"}` with alarms
        `{"video", "time", "end", "label", "probability"}`: times in seconds, the most probable fault with its
        mean probability, and the exact Poisson interval of the number per day.

    Raises:
        OptionError: the model has no such class, not one label per window, or there is no window.
    """
    heads = timelines.classes.heads
    if len(heads) != 1 or heads[0].task != "single-label":
        raise OptionError("normal: needs a model with one label per window")
    names = timelines.classes.names_of_head(heads[0])
    if normal not in names:
        raise OptionError(f"normal: '{normal}' is not a class of the model ({', '.join(names)})")
    if not 0 < threshold <= 1:
        raise OptionError(f"threshold: must be above 0 and at most 1, not {threshold}")
    column = list(names).index(normal)
    alarms: list[dict[str, Any]] = []
    seconds = 0.0
    for video in timelines.videos:
        seconds += sum(end - start for start, end in video.covered_spans)
        is_fault = 1 - video.outputs[:, column] >= threshold  # (W,)
        for first, after in video.find_runs(is_fault):
            if not is_fault[first] or after - first < hold:
                continue
            means = video.outputs[first:after].mean(axis=0, dtype=np.float64)  # (C,)
            means[column] = -1
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
        "list": alarms,
    }
