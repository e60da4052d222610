"""Detects a broken pre-training run from its probes, by measures that need no labels.

The measures come from RankMe (Garrido et al. 2023) and SimSiam (Chen & He 2021). The rows are those that
probes wrote to metrics.jsonl, the oldest first. The first row measures the encoder before the first step.
benchmarks/pretraining.md has the measurements behind the thresholds.

N videos, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import normalize

from everest.engine.stage_plan import FEWEST_STEPS
from everest.system.run_folder import Row

RANKME_EPSILON: Final = 1e-7  # RankMe, eq. 1: added to each share
MOST_VIDEOS: Final = 256  # heuristic: videos without labels; RankMe of more videos is hardly larger
MOST_HELD_OUT: Final = 64  # heuristic: videos of data.val whose loss is measured
PROBE_TITLES: Final = {"probe_linear": "linear probe", "probe_knn": "k-NN"}  # the better probe first
CHECKED_FROM: Final = 0.2  # heuristic: share of a run's steps before which it is not called broken
LEAST_STD: Final = 0.2  # heuristic: a smaller share of the first feature std is a collapse
LEAST_RANK: Final = 0.2  # heuristic: a smaller share of the first RankMe is a collapse
# Heuristic: RankMe is at least 1, for equal features. Healthy runs end above 5; a broken run ended at 1.25.
SAME_RANK: Final = 1.5
NEAR_MEAN: Final = 0.99  # heuristic: a healthy loss is below this share of the loss of the mean target
LEAST_FALL: Final = 0.05  # heuristic: minimum fall as a share of the first held-out loss
# Heuristic. A healthy run on normalized targets may be near the loss of the mean for a third of its steps.
# Its RankMe is then still above 0.7 times the first RankMe; in most broken runs, it is below 0.35 times that.
PATIENT_UNTIL: Final = 0.5  # share of a run's steps
PATIENT_RANK: Final = 0.5  # share of the first RankMe
FEWEST_HELD_OUT: Final = 16  # heuristic: the mean target of fewer videos is close to each of their targets


def rank_me(features: NDArray[np.floating]) -> float:
    """The exponential of the entropy of the normalized singular values (RankMe, eq. 1).

    The rank is between 1 and min(N, D). Features that are all zero have rank 1.
    """
    values = np.linalg.svd(features.astype(np.float64), compute_uv=False)  # (min(N, D),)
    if not values.any():
        return 1.0
    shares = values / values.sum() + RANKME_EPSILON
    return float(np.exp(-(shares * np.log(shares)).sum()))


def feature_std(features: NDArray[np.floating]) -> float:
    """The mean over channels of the std of unit features, times sqrt(D) (SimSiam, section 4.1).

    The result is 0 if all features have the same direction, and 1 if directions are spread uniformly.
    """
    units = np.asarray(normalize(features.astype(np.float64)))  # (N, D)
    return float(units.std(axis=0).mean() * np.sqrt(features.shape[1]))


def select_probe_rows(rows: Iterable[Row]) -> list[Row]:
    """Select the rows of metrics.jsonl that probes have written."""
    return [row for row in rows if "rank_me" in row]


def plan_probes(steps: int, *, every: int, validation_steps: int) -> list[int]:
    """Return the steps after which a run of `steps` steps is probed.

    These are step 0, the last step, each `every`-th validation, and the first validation that can notice a
    broken run.
    """
    first_checked = math.ceil(_find_first_checked(steps) / validation_steps) * validation_steps
    return sorted({*range(0, steps, every * validation_steps), min(first_checked, steps), steps})


def _find_first_checked(steps: int) -> float:
    """The first step at which a run of `steps` steps may be called broken."""
    return max(CHECKED_FROM * steps, min(FEWEST_STEPS, steps))


def find_new_warnings(rows: Sequence[Row], *, steps: int, videos: int, held_out: int) -> dict[str, str]:
    """Return the warnings of the last probe that no earlier probe gave, by kind."""
    sizes = {"steps": steps, "videos": videos, "held_out": held_out}
    earlier = {kind for number in range(1, len(rows)) for kind in find_failure_signs(rows[:number], **sizes)}
    return {kind: text for kind, text in find_failure_signs(rows, **sizes).items() if kind not in earlier}


def find_failure_signs(rows: Sequence[Row], *, steps: int, videos: int, held_out: int) -> dict[str, str]:
    """Return the signs of a broken run in the last probe, by kind; none early in the run.

    Args:
        steps: number of steps of the run.
        videos, held_out: number of videos whose features, or whose loss, are measured.
    """
    first, last = rows[0], rows[-1]
    if last["step"] < _find_first_checked(steps):
        return {}
    # A run whose features keep their rank may still begin to learn.
    keeps_rank = last["rank_me"] >= PATIENT_RANK * first["rank_me"]
    may_wait = keeps_rank and last["step"] < PATIENT_UNTIL * steps
    ranks = f"RankMe was {first['rank_me']:.3g} before the first step and is {last['rank_me']:.3g}"
    signs = {}
    has_std = last["feature_std"] >= LEAST_STD * first["feature_std"]
    if not has_std or last["rank_me"] < LEAST_RANK * first["rank_me"]:
        std = f"the feature std {first['feature_std']:.3g} and {last['feature_std']:.3g}"
        signs["collapse"] = f"the features have collapsed: {ranks}, {std}; lower base_lr or warm up longer"
    elif last["rank_me"] < SAME_RANK and videos > 1 and not may_wait:  # also if it began so
        signs["same features"] = (
            f"the features of all videos are nearly the same: {ranks}; unless the videos are, try another "
            "base_lr or more steps"
        )
    start, loss = first["heldout_loss"], last["heldout_loss"]
    mean = last["heldout_mean_loss"]
    if held_out >= FEWEST_HELD_OUT and start is not None and loss is not None:
        # Pre-trained weights may be as good as the mean before the first step.
        is_below_mean = mean is not None and loss <= NEAR_MEAN * mean
        has_fallen = loss <= (1 - LEAST_FALL) * start
        if not is_below_mean and not (has_fallen and (mean is None or may_wait)):
            comparison = "" if mean is None else f", and predicting the mean of the targets gives {mean:.3g}"
            signs["held-out loss"] = (
                f"nothing is predicted yet: the held-out loss was {start:.3g} before the first step and is "
                f"{loss:.3g}{comparison}; try another base_lr or more steps, or check the videos and the mask"
            )
    return {kind: f"step {last['step']}: {text}" for kind, text in signs.items()}
