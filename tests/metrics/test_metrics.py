import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from made_predictions import predictions_of
from numpy.typing import NDArray
from scipy.stats import spearmanr

from everest.config.heads import Head, named_heads
from everest.metrics import head_metrics
from everest.metrics.head_metrics import chance_of, choose_thresholds, mean_loss, metrics_of, per_class
from everest.metrics.predicted import HeadPredictions, Predictions

VIDEOS = 60


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


@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_one_class_are_those_of_scikit_learn(seed: int):
    predictions = single_label(seed)
    head, found = only_head(predictions), metrics_of(predictions)
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
    drawn = np.repeat(np.arange(VIDEOS), weights.astype(int))
    labels, means = head.labels[drawn], head.means[drawn]
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
    labels, predicted = one.labels[drawn], one.means.argmax(axis=1)[drawn]
    assert found["top1"] == pytest.approx(sk.accuracy_score(labels, predicted))
    if len(np.unique(labels)) == 5:
        assert found["mean_class_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
        f1 = sk.f1_score(labels, predicted, labels=range(5), average="macro", zero_division=0)
        assert found["macro_f1"] == pytest.approx(f1)
    of_numbers = only_head(numbers(seed))
    found = head_metrics.HEAD_METRICS["regression"](of_numbers)(weights)
    truth, value = of_numbers.labels[drawn], of_numbers.means[drawn, 0].astype(np.float64)
    assert found["r2"] == pytest.approx(sk.r2_score(truth, value))
    assert found["spearman"] == pytest.approx(spearmanr(truth, value)[0])


def test_metrics_of_numbers_are_those_of_scikit_learn():
    predictions = numbers(0)
    truth, answer = only_head(predictions).labels, only_head(predictions).means[:, 0]
    found = metrics_of(predictions, intervals=True)
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
    found = metrics_of(alike, intervals=True)  # no variance of which a share could be explained
    assert (found["mae"], found["r2"], found["spearman"]) == (0, None, None)
    assert found["intervals"]["r2"] == [None, None]


def test_a_class_without_a_video_has_no_average_precision():
    predictions = multi_label(0, classes=3)
    none_of_last = [(tuple(i for i in classes if i != 2),) for (classes,) in predictions.labels]
    fewer = replace(predictions, labels=none_of_last)
    assert [row["ap"] is None for row in per_class(only_head(fewer), list("abc"))] == [False, False, True]
    two = only_head(fewer)
    expected = sk.average_precision_score(two.labels[:, :2], two.means[:, :2])
    assert metrics_of(fewer)["map"] / 100 == pytest.approx(expected, abs=1e-6)


def test_the_chance_levels_are_of_models_that_have_learned_nothing():
    rng = np.random.default_rng(0)
    several = multi_label(0)
    orders = []
    for _ in range(300):  # answers that know nothing
        outputs = rng.random((VIDEOS, 1, 4)).astype(np.float32)
        orders.append(metrics_of(replace(several, outputs=outputs))["map"])
    chance = chance_of("map", several.heads, several.labels)
    assert np.mean(orders) == pytest.approx(chance, abs=1)
    of_numbers = numbers(0)
    median = np.median(only_head(of_numbers).labels)
    always = replace(of_numbers, outputs=np.full((VIDEOS, 1, 1), median, np.float32))
    assert chance_of("mae", always.heads, always.labels) == pytest.approx(metrics_of(always)["mae"], rel=1e-5)


def test_mixed_heads_are_measured_each_on_its_own():
    one, several, value = single_label(0), multi_label(0), numbers(0)
    heads = named_heads({"verb": 5, "tags": {"multi-label": 4}, "speed": "regression"})
    labels = [(*a, *b, *c) for a, b, c in zip(one.labels, several.labels, value.labels, strict=True)]
    outputs = np.concatenate([one.outputs, several.outputs, value.outputs[:, :2]], axis=-1)
    found = metrics_of(predictions_of(labels, outputs, *heads))
    assert set(found) == {"heads"}
    assert found["heads"]["verb"] == metrics_of(one)
    assert found["heads"]["tags"] == metrics_of(several)
    assert set(found["heads"]["speed"]) == set(metrics_of(value))


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
