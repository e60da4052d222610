import random
from statistics import quantiles

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_predictions import predictions_of
from scipy.stats import beta, binom

from everest.config.heads import Head, named_heads
from everest.evaluation.metric_text import percent
from everest.metrics.intervals import bootstrap_intervals
from everest.metrics.metrics import measure


@pytest.mark.parametrize(("right", "videos"), [(9, 50), (45, 50), (300, 400), (12, 3000)])
def test_the_interval_of_a_share_is_that_of_the_binomial(right: int, videos: int):
    """The number of right answers among resampled videos has a binomial distribution."""
    correct = np.arange(videos) < right
    low, high = bootstrap_intervals({"top1": correct}, correct, np.zeros(videos, np.int64))["top1"]
    spread = binom(videos, right / videos)
    near = 100 * (1 + 0.1 * spread.std()) / videos  # a video, and the noise of 2000 draws
    assert low == pytest.approx(100 * spread.ppf(0.025) / videos, abs=near)
    assert high == pytest.approx(100 * spread.ppf(0.975) / videos, abs=near)
    assert low < 100 * right / videos < high


def test_the_interval_of_the_mean_over_classes_is_that_of_a_plain_loop():
    generator = random.Random(1)
    labels = [0] * 40 + [1] * 15 + [2] * 3
    correct = [generator.random() < (0.9, 0.5, 0.3)[label] for label in labels]
    means = []
    for _ in range(4000):
        drawn = generator.choices(range(len(labels)), k=len(labels))
        of_class = {label: [correct[i] for i in drawn if labels[i] == label] for label in range(3)}
        means.append(np.mean([np.mean(rights) for rights in of_class.values() if rights]))
    expected = quantiles(means, n=40)  # the first is at 2.5 %, the last at 97.5 %
    found = bootstrap_intervals({}, np.array(correct), np.array(labels))["mean_class_accuracy"]
    assert found == pytest.approx([100 * expected[0], 100 * expected[-1]], abs=1.5)


@given(
    rights=st.lists(st.booleans(), min_size=1, max_size=30), classes=st.integers(1, 4), seed=st.integers(0, 9)
)
@settings(max_examples=10, deadline=None)
def test_an_interval_has_the_accuracy_inside_and_is_the_same_each_time(rights, classes, seed):
    correct = np.array(rights)
    labels = np.random.default_rng(seed).integers(classes, size=len(rights))
    found = bootstrap_intervals({"top1": correct}, correct, labels)
    assert found == bootstrap_intervals({"top1": correct}, correct, labels)
    low, high = found["top1"]
    assert 0 <= low <= 100 * correct.mean() <= high <= 100
    assert low < high


@pytest.mark.parametrize("videos", [1, 10, 500])
def test_videos_that_are_all_alike_have_the_exact_bound(videos: int):
    """Resampling cannot vary them, and would report ten of ten as exactly 100 %."""
    every = np.ones(videos, bool)
    low, high = bootstrap_intervals({"top1": every}, every, np.zeros(videos, np.int64))["top1"]
    assert (low, high) == (pytest.approx(100 * beta.ppf(0.025, videos, 1)), 100)  # Clopper and Pearson
    none = bootstrap_intervals({"top1": ~every}, ~every, np.zeros(videos, np.int64))["top1"]
    assert none == [0, pytest.approx(100 - low)]


def test_accuracies_have_intervals_on_request_by_head():
    rng = np.random.default_rng(0)
    probabilities = np.concatenate(
        [rng.dirichlet(np.ones(count), size=(100, 2)) for count in (3, 7)], axis=-1, dtype=np.float32
    )
    labels = np.stack([rng.integers(3, size=100), rng.integers(7, size=100)], axis=1)
    labels = [(int(verb), int(noun)) for verb, noun in labels]
    two = predictions_of(labels, probabilities, *named_heads({"verb": 3, "noun": 7}))
    assert "intervals" not in measure(two)["heads"]["verb"]
    found = measure(two, intervals=True)
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
    shown = [percent(value).replace("\N{NO-BREAK SPACE}", " ") for value in (0, 0.25, 18, 99.98, 100)]
    assert shown == ["0.0 %", "0.25 %", "18.0 %", "99.98 %", "100.0 %"]


def test_means_over_classes_have_no_interval_if_a_class_has_few_videos():
    labels = np.array([0] * 20 + [1] * 4)
    outputs = np.eye(2, dtype=np.float32)[np.random.default_rng(0).integers(2, size=24)][:, None]

    def intervals(counted: int) -> dict[str, list[float | None]]:
        predictions = predictions_of(labels[:counted].tolist(), outputs[:counted], Head(outputs=2))
        return measure(predictions, intervals=True)["intervals"]

    found = intervals(24)
    assert found["macro_f1"] == found["mean_class_accuracy"] == [None, None]
    assert None not in found["top1"]
    assert None not in intervals(20)["macro_f1"]  # one class that occurs


def test_all_wrong_multi_label_videos_have_the_exact_bound():
    outputs = np.tile([0.1, 0.9], (12, 1, 1))
    wrong = predictions_of([(0,)] * 12, outputs, Head(task="multi-label", outputs=2))
    low, high = measure(wrong, intervals=True)["intervals"]["exact_match"]
    assert (low, high) == (0, pytest.approx(100 * beta.ppf(0.975, 1, 12), abs=1e-3))
