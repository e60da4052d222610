"""Metrics of weighted videos, compared with scikit-learn and scipy on repeated videos."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, r2_score

from everest.metrics.weighted import average_precisions, rank_correlation, share_of_variance


@given(seed=st.integers(0, 10**6), videos=st.integers(2, 20))
@settings(max_examples=60)
def test_weighted_videos_count_as_often_as_repeated_ones(seed: int, videos: int):
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 4, videos)
    weights[0] += 1  # some video counts
    repeated = np.repeat(np.arange(videos), weights)
    as_floats = weights.astype(np.float64)
    labels, scores = rng.random((videos, 4)) < 0.4, rng.integers(0, 6, (videos, 4)) / 5  # with ties
    found = average_precisions(labels, scores)(as_floats)
    for c in range(4):
        truth = labels[repeated, c]
        expected = average_precision_score(truth, scores[repeated, c]) if truth.any() else np.nan
        assert found[c] == pytest.approx(expected, nan_ok=True)


@given(seed=st.integers(0, 10**6), videos=st.integers(2, 20))
@settings(max_examples=60)
def test_weighted_numbers_count_as_often_as_repeated_ones(seed: int, videos: int):
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 4, videos)
    weights[0] += 1
    repeated = np.repeat(np.arange(videos), weights)
    truth, predicted = rng.integers(0, 5, (2, videos)).astype(np.float64)  # with ties
    as_floats = weights.astype(np.float64)
    varies = [np.ptp(values[repeated]) > 0 for values in (truth, predicted)]
    expected = spearmanr(truth[repeated], predicted[repeated]).statistic if all(varies) else np.nan
    assert rank_correlation(truth, predicted)(as_floats) == pytest.approx(expected, nan_ok=True)
    expected = r2_score(truth[repeated], predicted[repeated]) if varies[0] else np.nan
    assert share_of_variance(truth, predicted, as_floats) == pytest.approx(expected, nan_ok=True)
