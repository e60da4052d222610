"""What appearance alone and change alone reach on the groups that candidates were compared on.

N videos, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from everest.config.heads import MEASURED_BY, Head
from everest.metrics.head_metrics import HEAD_METRICS
from everest.metrics.intervals import bootstrap
from everest.metrics.names import METRICS
from everest.metrics.predicted import HeadPredictions
from everest.probes.classifiers import Floats, Labels
from everest.project.candidates import INPUTS
from everest.project.choice import BestCandidate
from everest.project.result import InputTest

FEWEST_GROUPS: Final = 6  # five that all agree are no evidence: 2 / 2 ** 5 > 5 %, by the sign test


def compare_inputs(
    outputs: Mapping[str, Floats], choice: BestCandidate, labels: Labels, groups: Sequence[str], head: Head
) -> list[InputTest]:
    """How far the chosen candidate is above a model of each input, on videos that both have not seen.

    Empty if the candidate has learned nothing, or there are too few groups.

    Args:
        outputs: (N, C) of each candidate and each input; nan for samples that it has learned from.
    """
    metric = MEASURED_BY[head.task]
    sign = 1 if METRICS[metric].higher else -1
    scale = 100 if METRICS[metric].percent else 1
    chosen = np.mean([outputs[name] for name in choice.members], axis=0)  # (N, C)
    tests = []
    for name in filter(outputs.__contains__, INPUTS):
        rows = outputs[name]
        seen = ~np.isnan(chosen[:, 0]) & ~np.isnan(rows[:, 0])  # (N,)
        known = [group for group, is_seen in zip(groups, seen, strict=True) if is_seen]
        if not choice.learned or len(set(known)) < FEWEST_GROUPS:
            continue
        better, simple = (
            HEAD_METRICS[head.task](
                HeadPredictions(head=head, labels=labels[seen], outputs=part[seen][:, None])
            )
            for part in (chosen, rows)
        )
        gain = bootstrap(
            lambda counts, better=better, simple=simple: {
                "": sign * scale * (better(counts)[metric] - simple(counts)[metric])
            },
            known,
            shares=False,
        )[""]
        if not any(map(np.isnan, gain)):
            tests.append(InputTest(name=name, gain=[round(end, 4) for end in gain]))
    return tests
