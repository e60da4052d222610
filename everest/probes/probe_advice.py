"""Detects a broken pre-training run from its probes, and summarizes them in one sentence.

All functions take the rows of metrics.jsonl that probes have written, the oldest first. The first one is of
the encoder before the first step. benchmarks/pretraining.md has the measurements behind the thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Final

from everest.engine.plan import FEWEST_STEPS
from everest.system.run_folder import Row

Rows = Sequence[Row]


def probed_steps(steps: int, *, every: int, checkpoint_steps: int) -> list[int]:
    """The steps after which a run is probed.

    Before the first, after the last, at each `every`-th checkpoint, and at the first one at which a broken
    run is noticed.

    Args:
        steps: of the whole run.
        checkpoint_steps: from one checkpoint to the next.
    """
    checked = math.ceil(_checked_from(steps) / checkpoint_steps) * checkpoint_steps
    return sorted({*range(0, steps, every * checkpoint_steps), min(checked, steps), steps})


def _checked_from(steps: int) -> float:
    """The first step at which a run of `steps` steps may be called broken."""
    return max(CHECKED_FROM * steps, min(FEWEST_STEPS, steps))


CHECKED_FROM: Final = 0.2  # our choice: of the steps of a run; before, no run is called broken
LEAST_STD: Final = 0.2  # our choice: a smaller share of the first feature std is a collapse
LEAST_RANK: Final = 0.2  # our choice: so is a smaller share of the first RankMe
# Our choice: RankMe is at least 1, for equal features. Healthy runs end above 5, a broken one at 1.25.
SAME_RANK: Final = 1.5
NEAR_MEAN: Final = 0.99  # our choice: of the loss of predicting the mean, which a model falls below
# Our choice. A healthy run on normalized targets may be near that loss for a third of its steps; RankMe is
# then still above 0.7 times the first one; in most broken runs, RankMe is below 0.35 times the first one.
PATIENT_UNTIL: Final = 0.5  # of the steps of a run
PATIENT_RANK: Final = 0.5  # of the first RankMe
LEAST_FALL: Final = 0.05  # our choice: of the first held-out loss
FEWEST_HELD_OUT: Final = 16  # our choice: the mean target of fewer videos is close to that of each
ACCURACIES: Final = {"probe_linear": "linear probe", "probe_knn": "k-NN"}  # the better probe first


def probe_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows of metrics.jsonl that probes have written."""
    return [row for row in rows if "rank_me" in row]


def new_warnings(rows: Rows, *, steps: int, videos: int, held_out: int) -> dict[str, str]:
    """The warnings of the last probe that no probe before it gave, by their kind.

    Args:
        steps: of the whole run.
        videos: whose features are measured.
        held_out: videos whose loss is measured.
    """
    sizes = {"steps": steps, "videos": videos, "held_out": held_out}
    known = {kind for number in range(1, len(rows)) for kind in warnings(rows[:number], **sizes)}
    return {kind: text for kind, text in warnings(rows, **sizes).items() if kind not in known}


def warnings(rows: Rows, *, steps: int, videos: int, held_out: int) -> dict[str, str]:
    """The signs of a broken run in the last probe, by their kind; none early in the run."""
    first, last = rows[0], rows[-1]
    if last["step"] < _checked_from(steps):
        return {}
    # A run whose features keep their rank may still begin to learn.
    keeps_rank = last["rank_me"] >= PATIENT_RANK * first["rank_me"]
    patient = keeps_rank and last["step"] < PATIENT_UNTIL * steps
    found = {"collapse": _collapse(first, last)}
    # A first RankMe below 5 cannot fall to a fifth, which `_collapse` looks for.
    if found["collapse"] is None and videos > 1 and not patient and last["rank_me"] < SAME_RANK:
        found["same features"] = (
            f"RankMe was {first['rank_me']:.3g} before the first step and is {last['rank_me']:.3g}; near 1, "
            "the features of all videos are nearly the same. Unless the videos are, try another base_lr or "
            "more steps"
        )
    if held_out >= FEWEST_HELD_OUT:
        found["held-out loss"] = _no_fall(first, last, patient=patient)
    return {kind: f"step {last['step']}: {text}" for kind, text in found.items() if text is not None}


def _collapse(first: Row, last: Row) -> str | None:
    measures = (("feature_std", "the feature std", LEAST_STD), ("rank_me", "RankMe", LEAST_RANK))
    fallen = " and ".join(
        f"{title} fell from {first[key]:.3g} to {last[key]:.3g}"
        for key, title, least in measures
        if last[key] < least * first[key]
    )
    text = f"the features have collapsed: {fallen}. Lower base_lr, or use a longer warm-up"
    return text if fallen else None


def _no_fall(first: Row, last: Row, *, patient: bool) -> str | None:
    """The held-out loss is no better than without learning; a `patient` check waits for the mean's loss."""
    loss, mean = last["heldout_loss"], last["heldout_mean_loss"]
    # Weights that had learned before may have been as good as the mean before the first step.
    if loss is None or (mean is not None and loss <= NEAR_MEAN * mean):
        return None
    if mean is not None and not patient:
        return (
            f"the held-out loss is {loss:.3g}, and predicting the mean of the targets gives {mean:.3g}: "
            "nothing is predicted yet. Try another base_lr or more steps, or check the videos and the mask"
        )
    if loss > (1 - LEAST_FALL) * first["heldout_loss"]:
        return (
            f"the held-out loss was {first['heldout_loss']:.3g} before the first step and is {loss:.3g}: "
            "unless the run began with trained weights, raise base_lr, or check the videos"
        )
    return None


def sentence(rows: Rows, *, steps: int, videos: int, rank_most: int) -> str:
    """The change of the measures from the first probe to the last.

    Args:
        rank_most: the largest RankMe that is possible.
    """
    first, last = rows[0], rows[-1]
    rank = f"RankMe {_moved(first['rank_me'], last['rank_me'])} of {rank_most}"
    found = warnings(rows, steps=steps, videos=videos, held_out=0)
    states = {"collapse": "collapsed", "same features": "are nearly the same for all videos"}
    parts = [rank + "".join(f": the features {states[kind]}" for kind in states if kind in found)]
    key = next((key for key in ACCURACIES if last[key] is not None and first[key] is not None), None)
    if key is not None:
        moved = _moved(first[key], last[key], unit=" %")
        by_image = last[key.replace("probe", "difference")]
        image = "" if by_image is None else f", difference image {by_image:.0f} %"
        parts.insert(0, f"{ACCURACIES[key]} {moved} (chance {last['probe_chance']:.0f} %{image})")
    if last["heldout_loss"] is not None and first["heldout_loss"] is not None:
        text = f"held-out loss {_moved(first['heldout_loss'], last['heldout_loss'], digits=3)}"
        if last["heldout_mean_loss"] is not None:
            text += f" (predicting the mean gives {last['heldout_mean_loss']:.3g})"
        lowest = min((row for row in rows if row["heldout_loss"] is not None), key=itemgetter("heldout_loss"))
        if lowest["heldout_loss"] < (1 - LEAST_FALL) * last["heldout_loss"]:
            text += f", and was as low as {lowest['heldout_loss']:.3g} at step {lowest['step']}"
        parts.insert(0 if key is None else 1, text)
    return "; ".join(parts)


def _moved(before: float, after: float, *, unit: str = "", digits: int = 2) -> str:
    """From one value to another, in words."""
    old, new = (f"{value:.{digits}g}" if value < 10 else f"{value:.0f}" for value in (before, after))
    if old == new:
        return f"stayed at {new}{unit}"
    return f"{'rose' if after > before else 'fell'} from {old}{unit} to {new}{unit}"
