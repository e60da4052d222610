import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta, binom, norm, spearmanr, t

from everest.config.heads import Head, named_heads
from everest.metrics import head_metrics
from everest.metrics.class_metrics import class_tests, per_class
from everest.metrics.head_metrics import (
    choose_thresholds,
    compute_metrics,
    find_chance,
    mean_loss,
)
from everest.metrics.intervals import MetricFunction, bootstrap, limit_interval
from everest.metrics.names import value_text
from everest.metrics.predictions import HeadPredictions, Predictions

VIDEOS = 60


def predictions_of(labels: Sequence[Any], outputs: Any, *heads: Head) -> Predictions:
    """Of videos 0, 1, ...; a label is a tuple with one for each head, or that of the only head."""
    return Predictions(
        videos=[str(number) for number in range(len(labels))],
        labels=[label if isinstance(label, tuple) and len(heads) > 1 else (label,) for label in labels],
        outputs=np.asarray(outputs, dtype=np.float32),
        skipped=[],
        heads=heads,
    )


def single_label(seed: int, classes: int = 5) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=VIDEOS).tolist()
    return predictions_of(labels, rng.dirichlet(np.ones(classes), size=(VIDEOS, 2)), Head(outputs=classes))


def multi_label(seed: int, classes: int = 4, thresholds: tuple[float, ...] = ()) -> Predictions:
    rng = np.random.default_rng(seed)
    present = rng.random((VIDEOS, classes)) < 0.3
    scores = np.round(rng.random((VIDEOS, 2, classes)), 1)  # with ties
    labels = [tuple(np.flatnonzero(row).tolist()) for row in present]
    head = Head(task="multi-label", outputs=classes, chosen_thresholds=thresholds)
    return predictions_of(labels, scores, head)


def numbers(seed: int) -> Predictions:
    rng = np.random.default_rng(seed)
    truth = rng.normal(5, 2, size=VIDEOS)
    answers = truth[:, None, None] + rng.normal(size=(VIDEOS, 3, 1))
    return predictions_of(truth.tolist(), answers, Head(task="regression", outputs=1, mean=5.0, std=2.0))


def only_head(predictions: Predictions) -> HeadPredictions:
    return predictions.by_head()[""]


def test_the_recall_of_a_class_has_the_interval_of_its_own_videos():
    labels = [0] * 40 + [1] * 8 + [2] * 12
    chosen = [0] * 30 + [1] * 18 + [2] * 6 + [0] * 6
    predictions = only_head(predictions_of(labels, np.eye(3)[chosen][:, None], Head(outputs=3)))
    groups = [*range(48), *([50] * 6), *([51] * 6)]  # the third class has two
    first, second, third = class_tests(predictions, "abc", groups)
    assert (first["recall"], first["precision"]) == (75, pytest.approx(100 * 30 / 36, abs=1e-3))
    assert first["interval"][0] < 75 < first["interval"][1]
    assert (second["recall"], second["interval"][1]) == (100, 100)
    assert second["interval"][0] == pytest.approx(100 * 0.025 ** (1 / 8), abs=1e-3)  # of eight groups
    assert (third["recall"], third["interval"]) == (50, [0, 100])
    assert "worst_group" not in second
    assert (third["worst_group"], third["worst"]) == (51, [0, 6])
    alone = class_tests(predictions, "abc", range(60))
    assert not any("worst_group" in row for row in alone)  # each video is its own group
    assert class_tests(predictions, "abc", None)[0]["interval"] is None
    assert (first["taken_for"], first["taken"]) == ("b", 25)
    assert "taken" not in second  # all are right
    assert (third["taken_for"], third["taken"]) == ("a", 50)


def test_a_perfect_average_precision_has_the_bound_of_the_groups_with_the_class():
    rare = np.arange(40) < 6
    scores = np.stack([rare * 0.5 + 0.2, np.linspace(0, 1, 40)], axis=1)[:, None]
    labels = [(0, 1) if is_rare else (1,) for is_rare in rare]
    head = Head(task="multi-label", outputs=2)
    first, second = class_tests(only_head(predictions_of(labels, scores, head)), "ab", range(40))
    assert (first["ap"], first["interval"][1]) == (100, 100)
    assert first["interval"][0] == pytest.approx(100 * 0.025 ** (1 / 6), abs=1e-3)
    lowest = pytest.approx(100 * 0.025 ** (1 / 40), abs=1e-3)
    assert (second["ap"], second["interval"]) == (100, [lowest, 100])


@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_one_class_are_those_of_scikit_learn(seed: int):
    predictions = single_label(seed)
    head, found = only_head(predictions), compute_metrics(predictions)
    predicted = head.means.argmax(axis=1)
    expected = {
        "top1": sk.accuracy_score(head.labels, predicted),
        "mean_class_accuracy": sk.balanced_accuracy_score(head.labels, predicted),
        "macro_f1": sk.f1_score(head.labels, predicted, average="macro"),
    }
    assert {name: found[name] / 100 for name in expected} == pytest.approx(expected, abs=1e-6)
    assert mean_loss(predictions) == pytest.approx(sk.log_loss(head.labels, head.means, labels=range(5)))
    report = sk.classification_report(head.labels, predicted, output_dict=True)
    for number, row in enumerate(per_class(head, list("abcde"))):
        of_class = report[str(number)]
        assert row["videos"] == of_class["support"]
        assert [row[name] / 100 for name in ("precision", "recall", "f1")] == pytest.approx(
            [of_class["precision"], of_class["recall"], of_class["f1-score"]], abs=1e-6
        )
        ap = sk.average_precision_score(head.labels == number, head.means[:, number])
        assert row["ap"] / 100 == pytest.approx(ap, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_several_classes_of_drawn_videos_are_measured_as_scikit_learn_does(seed: int):
    predictions = multi_label(seed, thresholds=(0.3, 0.5, 0.5, 0.9) if seed % 2 else ())
    head, tiny = only_head(predictions), np.finfo(np.float32).tiny
    right = np.where(head.labels, head.means, 1 - head.means).astype(np.float64)
    assert mean_loss(predictions) == pytest.approx(-np.log(np.maximum(right, tiny)).mean(), rel=1e-4)
    weights = np.random.default_rng(seed).multinomial(VIDEOS, np.ones(VIDEOS) / VIDEOS).astype(np.float64)
    found = head_metrics.HEAD_METRICS["multi-label"](head)(weights)
    sampled = np.repeat(np.arange(VIDEOS), weights.astype(int))
    labels, means = head.labels[sampled], head.means[sampled]
    chosen = means >= np.array(head.head.chosen_thresholds or (0.5,) * 4)
    complete = labels.any(axis=0).all()  # else there is no mean over the classes
    assert found == pytest.approx(
        {
            "map": sk.average_precision_score(labels, means) if complete else np.nan,
            "micro_f1": sk.f1_score(labels, chosen, average="micro"),
            "macro_f1": sk.f1_score(labels, chosen, average="macro", zero_division=0) if complete else np.nan,
            "exact_match": sk.accuracy_score(labels, chosen),
        },
        nan_ok=True,
    )
    one = only_head(single_label(seed))
    found = head_metrics.HEAD_METRICS["single-label"](one)(weights)
    labels, predicted = one.labels[sampled], one.means.argmax(axis=1)[sampled]
    assert found["top1"] == pytest.approx(sk.accuracy_score(labels, predicted))
    if len(np.unique(labels)) == 5:
        assert found["mean_class_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
        f1 = sk.f1_score(labels, predicted, labels=range(5), average="macro", zero_division=0)
        assert found["macro_f1"] == pytest.approx(f1)
    of_numbers = only_head(numbers(seed))
    found = head_metrics.HEAD_METRICS["regression"](of_numbers)(weights)
    truth, value = of_numbers.labels[sampled], of_numbers.means[sampled, 0].astype(np.float64)
    assert found["r2"] == pytest.approx(sk.r2_score(truth, value))
    assert found["spearman"] == pytest.approx(spearmanr(truth, value)[0])


def test_metrics_of_numbers_are_those_of_scikit_learn():
    predictions = numbers(0)
    truth, answer = only_head(predictions).labels, only_head(predictions).means[:, 0]
    found = compute_metrics(predictions, intervals=True)
    expected = {
        "mae": sk.mean_absolute_error(truth, answer),
        "rmse": sk.root_mean_squared_error(truth, answer),
        "r2": sk.r2_score(truth, answer),
        "spearman": spearmanr(truth, answer)[0],
        "chance_mae": min(np.abs(truth - value).mean() for value in truth),  # of a constant answer
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert all(low < found[name] < high for name, (low, high) in found["intervals"].items())
    alike = predictions_of([1.0, 1.0], np.ones((2, 1, 1)), Head(task="regression", outputs=1))
    found = compute_metrics(alike, intervals=True)  # no variance of which a fraction could be explained
    assert (found["mae"], found["r2"], found["spearman"]) == (0, None, None)
    assert found["intervals"]["r2"] == [None, None]


def test_a_class_without_a_video_has_no_average_precision():
    predictions = multi_label(0, classes=3)
    none_of_last = [(tuple(i for i in classes if i != 2),) for (classes,) in predictions.labels]
    fewer = replace(predictions, labels=none_of_last)
    assert [row["ap"] is None for row in per_class(only_head(fewer), list("abc"))] == [False, False, True]
    two = only_head(fewer)
    expected = sk.average_precision_score(two.labels[:, :2], two.means[:, :2])
    assert compute_metrics(fewer)["map"] / 100 == pytest.approx(expected, abs=1e-6)


def test_the_chance_levels_are_of_models_that_have_learned_nothing():
    rng = np.random.default_rng(0)
    several = multi_label(0)
    orders = []
    for _ in range(300):  # answers that know nothing
        outputs = rng.random((VIDEOS, 1, 4)).astype(np.float32)
        orders.append(compute_metrics(replace(several, outputs=outputs))["map"])
    chance = find_chance("map", several.heads, several.labels)
    assert np.mean(orders) == pytest.approx(chance, abs=1)
    of_numbers = numbers(0)
    median = np.median(only_head(of_numbers).labels)
    always = replace(of_numbers, outputs=np.full((VIDEOS, 1, 1), median, np.float32))
    assert find_chance("mae", always.heads, always.labels) == pytest.approx(
        compute_metrics(always)["mae"], rel=1e-5
    )


def test_mixed_heads_are_measured_each_on_its_own():
    one, several, value = single_label(0), multi_label(0), numbers(0)
    heads = named_heads({"verb": 5, "tags": {"multi-label": 4}, "speed": "regression"})
    labels = [(*a, *b, *c) for a, b, c in zip(one.labels, several.labels, value.labels, strict=True)]
    outputs = np.concatenate([one.outputs, several.outputs, value.outputs[:, :2]], axis=-1)
    found = compute_metrics(predictions_of(labels, outputs, *heads))
    assert set(found) == {"heads"}
    assert found["heads"]["verb"] == compute_metrics(one)
    assert found["heads"]["tags"] == compute_metrics(several)
    assert set(found["heads"]["speed"]) == set(compute_metrics(value))


def best_threshold(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Try all candidates of a class, with sklearn's F1."""
    levels = [0.0, *sorted(set(scores.tolist()))]
    candidates = [(a + b) / 2 for a, b in pairwise(levels)]
    if not positive.any():
        return 0.5
    values = [sk.f1_score(positive, scores >= threshold) for threshold in candidates]
    equal = [c for c, value in zip(candidates, values, strict=True) if math.isclose(value, max(values))]
    return min(equal, key=lambda threshold: abs(threshold - 0.5))


@pytest.mark.parametrize("decimals", [1, 6])  # 1: many equal scores
def test_thresholds_are_those_of_a_search_over_all_middles(decimals: int):
    rng = np.random.default_rng(decimals)
    labels = rng.random((25, 12)) < np.linspace(0, 1, 12)  # of the first class never, of the last always
    scores = np.clip(rng.normal(0.4 + 0.2 * labels, 0.3), 0.01, 0.99).round(decimals)
    found = choose_thresholds(scores, labels)
    expected = [best_threshold(scores[:, i], labels[:, i]) for i in range(12)]
    assert found[0] == 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


Right = NDArray[np.bool_]


def fraction(right: NDArray[np.floating] | Right) -> MetricFunction:
    return lambda weights: {"top1": float(weights @ right / weights.sum())}


def interval(right: Right, groups: Sequence[Hashable] | None = None) -> tuple[float, float]:
    return bootstrap(fraction(right), range(len(right)) if groups is None else groups)["top1"]


@pytest.mark.parametrize(("right", "videos"), [(9, 50), (45, 50), (300, 400), (12, 3000)])
def test_the_interval_of_a_fraction_is_that_of_the_binomial(right: int, videos: int):
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
    found = compute_metrics(predictions_of([0, 1] * 10, outputs, Head(outputs=2)), intervals=True)
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
        The fraction of intervals that contain a half, and their mean width.
    """
    rng = np.random.default_rng(0)
    ends = np.empty((sets, 2))
    for row in ends:
        of_group = rng.beta(0.5, 0.5, size=len(groups) // size)  # videos of a group correlate by 0.5
        right = (rng.random(len(groups)) < np.repeat(of_group, size)).astype(np.float64)
        row[:] = bootstrap(fraction(right), groups, resamples=draws)["top1"]
    low, high = ends.T
    return float(((low <= 0.5) & (high >= 0.5)).mean()), float((high - low).mean())


def test_the_interval_of_few_groups_is_wider_by_the_t_distribution():
    right = np.repeat([0.9, 0.8, 0.7, 0.6], 10)
    low, high = bootstrap(lambda counts: {"": counts @ right / counts.sum()}, np.arange(40) // 10)[""]
    draws = np.random.default_rng(0).integers(4, size=(2000, 4))
    ends = np.quantile(right[::10][draws].mean(axis=1), [0.025, 0.975])
    factor = np.sqrt(4 / 3) * t.ppf(0.975, 3) / norm.ppf(0.975)
    assert (low, high) == pytest.approx(0.75 + factor * (ends - 0.75), abs=0.01)


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
    assert "intervals" not in compute_metrics(two)["heads"]["verb"]
    found = compute_metrics(two, intervals=True)
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
        return compute_metrics(predictions, intervals=True)["intervals"]

    found = intervals(24)
    assert found["macro_f1"] == found["mean_class_accuracy"] == [None, None]
    assert None not in found["top1"]
    assert None not in intervals(20)["macro_f1"]  # one class that occurs


@pytest.mark.parametrize(
    ("metric", "is_difference", "expected"),
    [
        ("verb.top1", False, (0, 100)),
        ("macro_f1", True, (-100, 100)),
        ("mae", False, (0, 213)),
        ("r2", False, (-156.3, 1)),
        ("spearman", True, (-2, 2)),
    ],
)
def test_an_interval_has_only_values_that_the_metric_can_have(metric, is_difference, expected):
    assert limit_interval(metric, (-156.3, 213), is_difference=is_difference) == expected
