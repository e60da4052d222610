"""How the batches of a loader are divided among its worker processes.

A batch is made of groups of clips, so that several workers make one batch. Batches are written into the slots
of a ring in turn; the ring has as many slots as the groups that are read ahead need.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Final, NamedTuple

GROUP: Final = 16  # our choice: clips, views included, that a worker passes on at once
# Our choice: groups that wait for one worker. Their descriptions must fit into the buffer of a connection.
MOST_AHEAD: Final = 16

SampleKey = tuple[int, int]  # (epoch, or number of the draw; index of the sample)


class Group(NamedTuple):
    """Samples that a worker reads, and where it writes them."""

    number: int  # among all groups of a loader
    slot: int  # of the ring
    first: int  # row of the first sample in the slot
    keys: Sequence[SampleKey]


class Division(NamedTuple):
    """How batches are divided."""

    samples: int  # of a group, at most
    ahead: int  # groups for one worker that are not yet taken; 0 without workers
    slots: int  # of the ring

    def groups(self, batches: Iterable[Sequence[SampleKey]]) -> Iterator[list[Group]]:
        """Yields the groups of each batch."""
        numbers = count()
        for batch, keys in enumerate(batches):
            slot, starts = batch % self.slots, range(0, len(keys), self.samples)
            yield [Group(next(numbers), slot, first, keys[first : first + self.samples]) for first in starts]


def divide(*, batch: int, views: int, workers: int, batches: int, group: int = GROUP) -> Division:
    """Divides batches into groups of about equal size, and chooses how many groups are read ahead.

    While a batch is used, the next one is read as a whole, and one more group by each worker; at least two
    groups by each. With fewer, a worker would wait for the step; with more, the ring would be larger.

    Args:
        batch: samples in the largest batch.
        views: of a sample.
        batches: in all.
        group: clips in a group, views included; a group has at least one sample.
    """
    parts = max(1, math.ceil(batch / max(1, group // views)))
    samples = max(1, math.ceil(batch / parts))
    if not workers:
        return Division(samples, ahead=0, slots=1)
    parts = max(1, math.ceil(batch / samples))
    ahead = min(workers + max(parts, workers), workers * MOST_AHEAD)
    slots = min(1 + math.ceil(ahead / parts), max(1, batches))
    return Division(samples, ahead=math.ceil(ahead / workers), slots=slots)
