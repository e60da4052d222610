"""Measures of features that need no labels: their effective rank, and whether they have collapsed.

SimSiam is Chen & He 2021, RankMe is Garrido et al. 2023.

N videos, D width.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

SMALLEST: Final = 1e-7  # RankMe, eq. 1: added to each share

Features = NDArray[np.float32]  # (N, D)


def rank_me(features: Features) -> float:
    """The exponential of the entropy of the normalized singular values (RankMe, eq. 1).

    It is between 1 and min(N, D). Features that are all zero have rank 1.
    """
    values = np.linalg.svd(features.astype(np.float64), compute_uv=False)  # (min(N, D),)
    total = values.sum()
    if not total > 0:
        return 1.0
    shares = values / total + SMALLEST
    return float(np.exp(-(shares * np.log(shares)).sum()))


def feature_std(features: Features) -> float:
    """The mean over channels of the std of unit features, times sqrt(D) (SimSiam, section 4.1).

    It is 0 if all features have one direction, and 1 if they have all directions alike.
    """
    units = unit_rows(features)
    return float(units.std(axis=0).mean() * np.sqrt(units.shape[1]))


def unit_rows(features: Features) -> NDArray[np.float64]:
    """The rows (N, D) divided by their norms; a row of zeros stays."""
    rows = features.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)
