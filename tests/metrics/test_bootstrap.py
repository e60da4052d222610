from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import beta, binom
from sklearn.metrics import accuracy_score, average_precision_score, recall_score

from everest.metrics.intervals import bootstrap, bootstrap_intervals

VIDEOS = 60


@pytest.fixture(scope="module")
def answers() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], list[str]]:
    """Labels of three classes, predictions, scores and groups of VIDEOS videos."""
    rng = np.random.default_rng(5)
    labels = rng.integers(3, size=VIDEOS)
    predicted = np.where(rng.random(VIDEOS) < 0.6, labels, rng.integers(3, size=VIDEOS))
    scores = np.round((labels == 1) + rng.normal(size=VIDEOS), 1)  # some are equal
    return labels, predicted, scores, [f"m{number}" for number in rng.integers(12, size=VIDEOS)]


def test_the_weights_of_a_draw_count_whole_groups(answers):
    groups = np.array(answers[3])
    drawn: list[NDArray[np.float64]] = []

    def statistics(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        drawn.append(weights)
        return weights[:1]

    bootstrap(statistics, answers[3], draws=50)
    names = np.unique(groups)
    for weights in drawn:
        of_group = [np.unique(weights[groups == name]) for name in names]
        assert [len(values) for values in of_group] == [1] * len(names)
        assert sum(float(values[0]) for values in of_group) == len(names)
    assert (weights.dtype, weights.shape, len(drawn)) == (np.float64, (VIDEOS,), 50)


def test_statistics_of_weights_are_those_of_repeated_videos(answers):
    """scikit-learn with `sample_weight` in a draw equals scikit-learn on the videos that were drawn."""
    labels, predicted, scores, groups = answers

    def metrics(videos: NDArray[np.int64], weights: NDArray[np.float64] | None) -> list[float]:
        y, found, target = labels[videos], predicted[videos], labels[videos] == 1
        present = np.unique(y)
        return [
            float(accuracy_score(y, found, sample_weight=weights)),
            float(recall_score(y, found, labels=present, average="macro", sample_weight=weights)),
            float(average_precision_score(target, scores[videos], sample_weight=weights)),
        ]

    repeated: list[list[float]] = []

    def statistics(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        repeated.append(metrics(np.repeat(np.arange(VIDEOS), weights.astype(int)), None))
        drawn = np.flatnonzero(weights)
        of_weights = metrics(drawn, weights[drawn])
        assert of_weights == pytest.approx(repeated[-1], abs=1e-12)
        return np.array(of_weights)

    low, high = bootstrap(statistics, groups, draws=40)
    expected = np.quantile(repeated, [0.025, 0.975], axis=0)
    np.testing.assert_allclose([low, high], expected, atol=1e-12)


def test_the_accuracies_are_those_of_scikit_learn_in_every_draw(answers):
    labels, predicted, _, names = answers
    groups = [int(name[1:]) % 4 for name in names]  # four groups have only 35 different draws

    @cache
    def of_counts(counts: tuple[float, ...]) -> tuple[float, float]:
        drawn = np.flatnonzero(counts)
        y, found, weights = labels[drawn], predicted[drawn], np.array(counts)[drawn]
        recall = recall_score(y, found, labels=np.unique(y), average="macro", sample_weight=weights)
        return float(np.average(y == found, weights=weights)), float(recall)

    def statistics(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array(of_counts(tuple(weights.tolist())))

    correct = labels == predicted
    found = bootstrap_intervals({"top1": correct}, correct, labels, groups=groups)
    expected = 100 * np.transpose(bootstrap(statistics, groups))
    np.testing.assert_allclose(list(found.values()), expected, atol=1e-4)
    assert of_counts.cache_info().currsize == 35


def test_groups_of_one_video_have_the_numbers_of_videos_drawn_by_themselves():
    rng = np.random.default_rng(3)
    correct, labels = rng.random(57) < 0.7, rng.integers(4, size=57)
    found = bootstrap_intervals({"top1": correct}, correct, labels)
    # Computed before videos had groups.
    assert found == {"top1": [57.8947, 80.7018], "mean_class_accuracy": [58.8919, 82.5306]}
    names = [f"v{number}" for number in reversed(range(57))]
    assert bootstrap_intervals({"top1": correct}, correct, labels, groups=names) == found

    def by_hand() -> NDArray[np.float64]:
        draws, generator = [], np.random.default_rng(0)
        for _ in range(2000):
            draws.append(correct[generator.integers(57, size=57)].mean())
        return np.quantile(draws, [0.025, 0.975])

    low, high = bootstrap(lambda weights: np.array([weights @ correct / weights.sum()]), names)
    np.testing.assert_array_equal([low[0], high[0]], by_hand())


def test_a_draw_without_a_value_is_left_out_of_that_statistic_only():
    """The mean of the last of three videos is missing in the draws without it, (2 / 3)^3 = 30 % of them."""
    outcome = np.array([0.0, 1.0, 1.0])

    def statistics(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        last = np.nan if weights[2] == 0 else outcome[2]
        return np.array([weights @ outcome / weights.sum(), last, np.nan])

    low, high = bootstrap(statistics, ["a", "b", "c"])
    assert (low[1], high[1]) == (1, 1)
    assert np.isnan([low[2], high[2]]).all()
    alone = bootstrap(lambda weights: statistics(weights)[:1], ["a", "b", "c"])
    assert (low[0], high[0]) == (alone[0][0], alone[1][0]) == (0, 1)


def test_the_exact_bound_counts_groups():
    right, labels = np.ones(10, bool), np.zeros(10, np.int64)
    found = bootstrap_intervals({"top1": right}, right, labels, groups=["a"] * 5 + ["b"] * 5)
    expected = pytest.approx(100 * beta.ppf(0.025, 2, 1), abs=1e-4)  # Clopper and Pearson, two of two
    assert found == {"top1": [expected, 100], "mean_class_accuracy": [expected, 100]}


def contained(groups: Sequence[Hashable], *, size: int, sets: int, draws: int = 200) -> tuple[float, float]:
    """Simulate groups of `size` videos, of which each group's share is right, on average a half.

    Returns:
        The share of intervals that contain a half, and their mean width.
    """
    rng = np.random.default_rng(0)
    ends = np.empty((sets, 2))
    for interval in ends:
        share = rng.beta(0.5, 0.5, size=len(groups) // size)  # videos of a group correlate by 0.5
        right = (rng.random(len(groups)) < np.repeat(share, size)).astype(np.float64)
        low, high = bootstrap(
            lambda weights, right=right: np.array([weights @ right / weights.sum()]), groups, draws=draws
        )
        interval[:] = low[0], high[0]
    low, high = ends.T
    return float(((low <= 0.5) & (high >= 0.5)).mean()), float((high - low).mean())


def test_intervals_of_groups_contain_the_mean_and_those_of_single_videos_do_not():
    """40 groups of 10 videos; the variance of the mean is 1 + 9 x 0.5 = 5.5 times that of single videos."""
    sets = 300
    grouped, wide = contained([number // 10 for number in range(400)], size=10, sets=sets)
    single, narrow = contained(range(400), size=10, sets=sets)
    low, high = binom(sets, 0.95).ppf([0.001, 0.999]) / sets
    assert low <= grouped <= high
    assert single < 0.75
    assert wide == pytest.approx(narrow * np.sqrt(5.5), rel=0.05)
