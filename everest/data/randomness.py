"""Random generators that depend only on a position in a run.

No state is saved, and the numbers are equal on any process and worker, and after a resume.
A position is a purpose and numbers such as (seed, epoch, index). Positions are spawn keys: as entropy,
[1, 2] and [1, 2, 0] would give the same numbers.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """The use of the random numbers; two purposes never share numbers."""

    ORDER = 0  # the order of the samples, by epoch
    NOISE = 1  # the noise of a sample, by epoch and index
    VIEWS = 2  # a sample's frames and crops, by epoch, index and 0; its replacements, by attempt
    WEIGHTS = 3  # initial weights
    STEP = 4  # torch's global generator (dropout), by step, process and micro-batch
    BATCH = 5  # mixup, cutmix and erasing, by step, process and micro-batch
    ALL_TOKENS = 6  # whether a tokenizer sees all tokens, by step
    DISCRIMINATOR = 7  # initial weights of the discriminator
    DROP_PATH = 9  # which clips of a step leave out a branch, by step (8 is no longer used)


def generator_at(seed: int, purpose: Purpose, *position: int) -> np.random.Generator:
    """The generator of a position, independent of the generators of all other positions."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(purpose), *position)))


def seed_at(seed: int, purpose: Purpose, *position: int) -> int:
    """A seed for a generator of another library."""
    return int(np.random.SeedSequence(seed, spawn_key=(int(purpose), *position)).generate_state(1)[0])
