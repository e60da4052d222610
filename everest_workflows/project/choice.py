"""Which candidate of a project is selected: the one with the lowest loss on groups that it has not seen.

N videos, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from everest.config.heads import METRIC_OF_TASK, MULTI_LABEL, Head
from everest.lists.labels import Label
from everest.metrics.head_metrics import compute_metrics
from everest.metrics.predictions import Predictions
from everest.probes.classifiers import Labels
from everest.probes.linear import compute_losses
from everest.system.types import Floats
from everest_workflows.project.candidates import MEAN
from everest_workflows.project.feature_kinds import LINEAR
from everest_workflows.project.result import NETWORK

SIMPLE_FIRST: Final = (*LINEAR, NETWORK, MEAN)
TIE: Final = 0.01  # heuristic: losses within this fraction of the lowest one are equal
MIN_GROUPS: Final = 4  # heuristic: with fewer groups, a standard error is over samples


@dataclass(frozen=True, kw_only=True)
class BestCandidate:
    """The candidate that is selected, and why."""

    name: str
    reason: str
    mean_of: tuple[str, ...] = ()  # the candidates of the mean; empty: there is no mean
    # The metric of each candidate on samples that none has learned from.
    validation: Mapping[str, float | None] = field(default_factory=dict)
    learned: bool = True  # whether its loss is lower than that of guessing by the frequencies of the labels

    @property
    def explanation(self) -> str:
        """The candidates of a mean, the reason, and whether it has learned anything."""
        reason = f"of {' and '.join(self.mean_of)}, {self.reason}" if self.name == MEAN else self.reason
        return reason if self.learned else f"{reason}, though no lower than that of guessing"

    @property
    def members(self) -> tuple[str, ...]:
        """The candidates that the selected model consists of."""
        return self.mean_of if self.name == MEAN else (self.name,)


def choose(
    outputs: Mapping[str, Floats], labels: Labels, groups: Sequence[str], head: Head, *, forced: str | None
) -> BestCandidate:
    """Choose a candidate by its mean loss on samples of groups that it has not seen.

    Linear candidates are compared on all samples, by cross-validation. The mean of the outputs of the best
    one and of the next one with other features is a candidate, too; a tie goes to the simpler one. A network
    has outputs for the validation list only; it, or its mean with the best of them, is chosen if its loss
    there is lower by a standard error.

    On seven sets of 70 to 280 clips, with and without weights, the choice was never clearly worse than the
    best single candidate (14 cases). A choice by the accuracy on a single validation list was worse.

    Args:
        outputs: (N, C) of each candidate; nan for samples that it has learned from.
        groups: of the samples; two of one group are not independent.
        forced: the candidate to select; None: the best.
    """
    linear = {name: rows for name, rows in outputs.items() if name in LINEAR}
    choice, best = _choose_linear(linear, labels, head)
    if NETWORK in outputs:
        simple = average(outputs, choice.members)
        gain_of = {
            name: _measure_gain(simple, average(outputs, members), labels, groups, head)
            for name, members in ((NETWORK, [NETWORK]), (MEAN, [best, NETWORK]))
        }
        winner = max(gain_of, key=gain_of.__getitem__)
        if gain_of[winner] > 0:
            reason = "clearly lower loss on the validation list"
            choice = BestCandidate(name=winner, reason=reason, mean_of=(best, NETWORK))
    if forced is not None:
        choice = replace(choice, name=forced, reason="by --model", learned=True)
    candidates = {**outputs, MEAN: average(outputs, choice.mean_of)} if choice.mean_of else outputs
    common = ~np.any([np.isnan(rows[:, 0]) for rows in candidates.values()], axis=0)
    metric = METRIC_OF_TASK[head.task]
    validation = {
        name: _measure(rows[common], labels[common], head, metric) if common.any() else None
        for name, rows in candidates.items()
    }
    return replace(choice, validation=validation)


def _choose_linear(linear: Mapping[str, Floats], labels: Labels, head: Head) -> tuple[BestCandidate, str]:
    """The best linear candidate, or mean of two, and the name of the best single one."""
    first = next(iter(linear))
    seen = ~np.isnan(linear[first][:, 0])  # (N,)
    if not seen.any():
        reason = "the videos are of one group, so none can be compared"
        return BestCandidate(name=first, reason=reason), first

    def mean_loss(outputs: Floats) -> float:
        return compute_losses(outputs[seen], labels[seen], head).mean()

    loss_of = {name: mean_loss(rows) for name, rows in linear.items()}
    best, *others = sorted(linear, key=loss_of.__getitem__)
    kinds = set(LINEAR[best])  # two models of one encoder would compute it twice
    others = [name for name in others if not (kinds <= set(LINEAR[name]) or kinds >= set(LINEAR[name]))]
    mean_of = (best, others[0]) if others else ()
    if mean_of:
        loss_of[MEAN] = mean_loss(average(linear, mean_of))
    limit = (1 + TIE) * min(loss_of.values())
    name = next(name for name in SIMPLE_FIRST if loss_of.get(name, math.inf) <= limit)
    learned = bool(loss_of[name] < mean_loss(_guess(labels, head)))
    reason = "lowest loss in cross-validation over groups"
    return BestCandidate(name=name, reason=reason, mean_of=mean_of, learned=learned), best


def average(outputs: Mapping[str, Floats], names: Sequence[str]) -> Floats:
    """The mean outputs (N, C) of some candidates."""
    return np.mean([outputs[name] for name in names], axis=0)


def _guess(labels: Labels, head: Head) -> Floats:
    """The same output for each sample (N, C): how frequent each class is, or the mean number."""
    if head.task == "single-label":
        labels = np.eye(head.outputs)[labels]
    mean = labels.reshape(len(labels), -1).mean(axis=0, dtype=np.float64)  # (C,)
    return np.tile(mean, (len(labels), 1)).astype(np.float32)


def _measure_gain(simple: Floats, other: Floats, labels: Labels, groups: Sequence[str], head: Head) -> float:
    """How much lower the mean loss of the other outputs (N, C) is, less a standard error of that difference.

    Only samples with both outputs count. The error is over their groups; if these are few, over the samples.
    Minus infinity if there are fewer than two samples.
    """
    seen = ~np.isnan(simple[:, 0]) & ~np.isnan(other[:, 0])
    if seen.sum() < 2:
        return -math.inf
    gain = compute_losses(simple[seen], labels[seen], head) - compute_losses(other[seen], labels[seen], head)
    _, numbers = np.unique(np.asarray(groups)[seen], return_inverse=True)
    count = int(numbers.max()) + 1
    if count < MIN_GROUPS:
        numbers, count = np.arange(len(gain)), len(gain)
    sums = np.bincount(numbers, gain - gain.mean())  # of each group
    return float(gain.mean() - np.sqrt((sums**2).sum() * count / (count - 1)) / len(gain))


def _measure(outputs: Floats, labels: Labels, head: Head, metric: str) -> float | None:
    listed: list[Label] = [
        tuple(np.flatnonzero(row).tolist()) if head.task == MULTI_LABEL else row.item() for row in labels
    ]
    predictions = Predictions(
        videos=[str(number) for number in range(len(labels))],
        labels=[(label,) for label in listed],
        outputs=outputs[:, None],
        skipped=[],
        heads=(head,),
    )
    return compute_metrics(predictions)[metric]
