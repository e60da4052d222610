"""Generators that follow from a place in a run: no state to save, equal on any process, worker and resume.

A place is a purpose and numbers such as (seed, epoch, index). Places are spawn keys: as entropy, [1, 2] and
[1, 2, 0] would give the same numbers.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What is drawn; two purposes never share numbers."""

    ORDER = 0  # of the samples, by epoch
    NOISE = 1  # of a sample's masks, by epoch and index
    VIEWS = 2  # of a sample's frames and crops, by epoch, index and 0; what takes its place, by attempt
    WEIGHTS = 3  # the first ones
    STEP = 4  # drop path, by step, process and pass
    BATCH = 5  # mixup, cutmix and erasing, by step, process and pass
    ALL_TOKENS = 6  # whether a tokenizer sees all tokens, by step
    DISCRIMINATOR = 7  # its first weights


def generator_at(seed: int, purpose: Purpose, *place: int) -> np.random.Generator:
    """The generator of a place, independent of all others."""
    return np.random.Generator(np.random.PCG64(_sequence(seed, purpose, place)))


def seed_at(seed: int, purpose: Purpose, *place: int) -> int:
    """A seed for a generator of another library."""
    return int(_sequence(seed, purpose, place).generate_state(1)[0])


def _sequence(seed: int, purpose: Purpose, place: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(int(purpose), *place))
