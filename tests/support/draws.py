"""The random numbers of the official code: Python's and numpy's old generators under the new names."""

import random

import numpy as np


class PythonDraws:
    """What they draw with the module `random`; arrays come from `numpy.random`, seeded alike."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self._numpy = np.random.RandomState(seed)

    def integers(self, low, high=None, size=None):
        if size is not None:
            return self._numpy.randint(low, high, size=size)
        return self._random.randrange(low) if high is None else self._random.randrange(low, high)

    def uniform(self, low, high):
        return self._random.uniform(low, high)

    def random(self):
        return self._random.random()

    def normal(self, mean, std):
        return self._random.gauss(mean, std)


class NumpyDraws:
    """What they draw with `numpy.random`."""

    def __init__(self, seed: int):
        self._numpy = np.random.RandomState(seed)

    def integers(self, low, high, size=None):
        return self._numpy.randint(low, high, size=size)

    def random(self):
        return self._numpy.rand()

    def beta(self, a, b):
        return self._numpy.beta(a, b)
