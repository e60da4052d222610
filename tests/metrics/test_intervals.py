from collections.abc import Hashable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_predictions import predictions_of
from numpy.typing import NDArray
from scipy.stats import beta, binom

from everest.config.heads import Head, named_heads
from everest.metrics.head_metrics import metrics_of
from everest.metrics.intervals import MetricFunction, bootstrap
from everest.metrics.names import value_text

Right = NDArray[np.bool_]


def share(right: NDArray[np.floating] | Right) -> MetricFunction:
    return lambda weights: {"top1": float(weights @ right / weights.sum())}


def interval(right: Right, groups: Sequence[Hashable] | None = None) -> tuple[float, float]:
    return bootstrap(share(right), range(len(right)) if groups is None else groups)["top1"]


@pytest.mark.parametrize(("right", "videos"), [(9, 50), (45, 50), (300, 400), (12, 3000)])
def test_the_interval_of_a_share_is_that_of_the_binomial(right: int, videos: int):
    """The number of right answers among resampled videos has a binomial distribution."""
    low, high = interval(np.arange(videos) < right)
    spread = binom(videos, right / videos)
    near = (1 + 0.1 * spread.std()) / videos  # a video, and the noise of 2000 draws
    assert low == pytest.approx(spread.ppf(0.025) / videos, abs=near)
    assert high == pytest.approx(spread.ppf(0.975) / videos, abs=near)
    assert low < right / videos < high


@given(rights=st.lists(st.booleans(), min_size=1, max_size=30))
@settings(max_examples=10, deadline=None)
def test_an_interval_has_the_accuracy_inside_and_is_the_same_each_time(rights: list[bool]):
    right = np.array(rights)
    low, high = interval(right)
    assert (low, high) == interval(right)
    assert 0 <= low <= right.mean() <= high <= 1
    assert low < high


@pytest.mark.parametrize("videos", [1, 10, 500])
def test_videos_that_are_all_alike_have_the_exact_bound(videos: int):
    """Resampling cannot vary them, and would report ten of ten as exactly 100 %."""
    every = np.ones(videos, bool)
    low, high = interval(every)
    assert (low, high) == (pytest.approx(beta.ppf(0.025, videos, 1)), 1)  # Clopper and Pearson
    assert interval(~every) == (0, pytest.approx(1 - low))


def test_one_answer_for_all_videos_has_the_same_mean_class_accuracy_in_every_draw():
    outputs = np.tile(np.eye(2, dtype=np.float32)[:1], (20, 1, 1))
    found = metrics_of(predictions_of([0, 1] * 10, outputs, Head(outputs=2)), intervals=True)
    assert found["intervals"]["mean_class_accuracy"] == [50, 50]


def test_groups_of_one_video_have_the_numbers_of_videos_drawn_by_themselves():
    right = np.random.default_rng(3).random(57) < 0.7
    names = [f"v{number}" for number in reversed(range(57))]
    generator = np.random.default_rng(0)
    draws = [right[generator.integers(57, size=57)].mean() for _ in range(2000)]
    expected = tuple(np.quantile(draws, [0.025, 0.975]))
    assert interval(right, names) == interval(right) == pytest.approx(expected)
    assert expected == pytest.approx((0.578947, 0.807018), abs=1e-6)


def contained(groups: Sequence[Hashable], *, size: int, sets: int, draws: int = 200) -> tuple[float, float]:
    """Simulate groups of `size` videos, of which each group's share is right, on average a half.

    Returns:
        The share of intervals that contain a half, and their mean width.
    """
    rng = np.random.default_rng(0)
    ends = np.empty((sets, 2))
    for row in ends:
        of_group = rng.beta(0.5, 0.5, size=len(groups) // size)  # videos of a group correlate by 0.5
        right = (rng.random(len(groups)) < np.repeat(of_group, size)).astype(np.float64)
        row[:] = bootstrap(share(right), groups, draws=draws)["top1"]
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


def test_accuracies_have_intervals_on_request_by_head():
    rng = np.random.default_rng(0)
    probabilities = np.concatenate(
        [rng.dirichlet(np.ones(count), size=(100, 2)) for count in (3, 7)], axis=-1, dtype=np.float32
    )
    labels = np.stack([rng.integers(3, size=100), rng.integers(7, size=100)], axis=1)
    labels = [(int(verb), int(noun)) for verb, noun in labels]
    two = predictions_of(labels, probabilities, *named_heads({"verb": 3, "noun": 7}))
    assert "intervals" not in metrics_of(two)["heads"]["verb"]
    found = metrics_of(two, intervals=True)
    assert set(found) == {"heads", "action_top1", "chance_action_top1", "intervals"}
    assert found["chance_action_top1"] == pytest.approx(100 / 21, abs=1e-4)
    assert set(found["intervals"]) == {"action_top1"}
    measured = {"top1", "top5", "mean_class_accuracy", "macro_f1", "clip_top1"}
    for head, chance in (("verb", (100 / 3, 100)), ("noun", (100 / 7, 500 / 7))):
        row = found["heads"][head]
        assert (row["chance_top1"], row["chance_top5"]) == pytest.approx(chance, abs=1e-4)
        assert set(row["intervals"]) == measured
        assert all(low <= row[name] <= high for name, (low, high) in row["intervals"].items())


def test_percentages_near_0_and_100_are_not_rounded_to_them():
    shown = [value_text("top1", value) for value in (0, 0.25, 18, 99.98, 100)]
    assert shown == ["0.0 %", "0.25 %", "18.0 %", "99.98 %", "100.0 %"]


def test_means_over_classes_have_no_interval_if_a_class_has_few_videos():
    labels = np.array([0] * 20 + [1] * 4)
    outputs = np.eye(2, dtype=np.float32)[np.random.default_rng(0).integers(2, size=24)][:, None]

    def intervals(counted: int) -> dict[str, list[float | None]]:
        predictions = predictions_of(labels[:counted].tolist(), outputs[:counted], Head(outputs=2))
        return metrics_of(predictions, intervals=True)["intervals"]

    found = intervals(24)
    assert found["macro_f1"] == found["mean_class_accuracy"] == [None, None]
    assert None not in found["top1"]
    assert None not in intervals(20)["macro_f1"]  # one class that occurs
