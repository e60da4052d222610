import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, softmax
from scipy.stats import norm
from sklearn.metrics import f1_score

from everest.metrics.calibration import (
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    ClassTask,
    apply_temperature,
    choose_thresholds,
    expected_calibration_error,
    fit_temperature,
)

TASKS: tuple[ClassTask, ...] = ("single-label", "multi-label")


def simulate(
    task: ClassTask, *, videos: int, classes: int, scale: float = 1.0, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Draw labels from true probabilities; return probabilities of logits times `scale`, and the labels."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(videos, classes))
    if task == "multi-label":
        return expit(scale * logits).astype(np.float32), rng.random(logits.shape) < expit(logits)
    below = softmax(logits, axis=1).cumsum(axis=1) < rng.random((videos, 1))  # (videos, classes)
    labels = np.minimum(below.sum(axis=1), classes - 1)
    return softmax(scale * logits, axis=1).astype(np.float32), labels


def cross_entropy(probabilities: NDArray[Any], labels: NDArray[Any], task: ClassTask) -> float:
    """The loss of a plain loop over videos; the logarithm of 0 is replaced by that of the next float."""
    chances = []
    for row, label in zip(probabilities.astype(np.float64), labels, strict=True):
        if task == "single-label":
            chances.append(max(row[label], 1e-300))
        else:
            pairs = zip(row, label, strict=True)
            chances += [max(p, 1e-300) if has else max(1 - p, 2**-53) for p, has in pairs]
    return float(-np.log(chances).mean())


def grid_temperature(
    probabilities: NDArray[Any], labels: NDArray[Any], task: ClassTask, grid: Sequence[float]
) -> float:
    """The best of a grid: with the term of a normal distribution of ln T, of the strength of one video."""
    values = [
        cross_entropy(apply_temperature(probabilities, t, task), labels, task)
        - norm(scale=math.log(2)).logpdf(math.log(t)) / len(labels)
        for t in grid
    ]
    return grid[int(np.argmin(values))]


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("task", TASKS)
def test_the_temperature_is_that_of_a_fine_grid(task: ClassTask, scale: float):
    probabilities, labels = simulate(task, videos=300, classes=4, scale=scale)
    found = fit_temperature(probabilities, labels, task)
    coarse = grid_temperature(probabilities, labels, task, np.geomspace(0.05, 20, 200).tolist())
    fine = np.arange(0.96 * coarse, 1.04 * coarse, 5e-4).tolist()
    assert found == pytest.approx(grid_temperature(probabilities, labels, task, fine), abs=1e-3)


@pytest.mark.parametrize("task", TASKS)
def test_the_temperature_undoes_a_scale_of_the_logits(task: ClassTask):
    probabilities, labels = simulate(task, videos=20_000, classes=5, scale=2.5)
    found = fit_temperature(probabilities, labels, task)
    assert found == pytest.approx(2.5, rel=0.03)
    before, _ = expected_calibration_error(probabilities, labels)
    after, _ = expected_calibration_error(apply_temperature(probabilities, found, task), labels)
    assert before > 0.08
    assert after < 0.02


@given(
    task=st.sampled_from(TASKS),
    videos=st.integers(1, 12),
    classes=st.integers(2, 4),
    scale=st.sampled_from([0.0, 0.1, 1.0, 8.0, 100.0]),  # the last has probabilities of exactly 0 and 1
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_a_fitted_temperature_never_raises_the_loss(task, videos, classes, scale, seed):
    probabilities, labels = simulate(task, videos=videos, classes=classes, scale=scale, seed=seed)
    found = fit_temperature(probabilities, labels, task)
    assert found == fit_temperature(probabilities, labels, task)
    assert LOWEST_TEMPERATURE <= found <= HIGHEST_TEMPERATURE
    scaled = [apply_temperature(probabilities, temperature, task) for temperature in (1.0, found)]
    before, after = (cross_entropy(each, labels, task) for each in scaled)
    assert after <= before + 1e-12


@pytest.mark.parametrize("task", TASKS)
def test_a_temperature_of_1_changes_nothing_and_others_keep_the_order(task: ClassTask):
    probabilities, _ = simulate(task, videos=50, classes=6, scale=3.0)
    np.testing.assert_allclose(apply_temperature(probabilities, 1.0, task), probabilities, rtol=2e-6)
    for temperature in (0.3, 4.0):
        scaled = apply_temperature(probabilities, temperature, task)
        assert (scaled.argsort(axis=1) == probabilities.argsort(axis=1)).all()
        if task == "single-label":
            np.testing.assert_allclose(scaled.sum(axis=1), 1)
    certain = np.array([[0, 1], [1, 0]], dtype=np.float32)
    np.testing.assert_allclose(apply_temperature(certain, 1.0, task), certain, atol=1e-7)


def test_few_or_separated_videos_stay_near_1_and_equal_losses_keep_it():
    right = np.array([[0.6, 0.4], [0.4, 0.6]])
    few = fit_temperature(right, np.array([0, 1]), "single-label")
    many = fit_temperature(np.tile(right, (1000, 1)), np.tile([0, 1], 1000), "single-label")
    assert LOWEST_TEMPERATURE < many < 0.5 < few < 1
    assert 1 < fit_temperature(right, np.array([1, 0]), "single-label") < 2 < HIGHEST_TEMPERATURE
    assert fit_temperature(np.full((3, 4), 0.25), np.array([0, 1, 1]), "single-label") == 1
    assert fit_temperature(np.full((3, 2), 0.5), np.eye(3, 2, dtype=bool), "multi-label") == 1


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("task", TASKS)
def test_the_calibration_error_is_that_of_a_plain_loop(task: ClassTask, bins: int):
    probabilities, labels = simulate(task, videos=150, classes=3, scale=2)
    probabilities[0] = [1, 0, 0]  # the ends
    probabilities[1] = [0.4, 0.6, 0]  # 0.6 as float32 is above the end of a bin
    probabilities[2] = [0.5, 0.25, 0.25]  # 0.5 is the end of a bin
    groups: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(probabilities.astype(np.float64), labels, strict=True):
        best = max(range(3), key=lambda c, row=row: row[c])
        pairs = [(row[best], best == label)] if task == "single-label" else zip(row, label, strict=True)
        for confidence, right in pairs:
            number = next(i for i in range(bins) if confidence <= (i + 1) / bins)
            groups[number].append((confidence, bool(right)))
    total = sum(map(len, groups))
    expected = sum(abs(sum(r for _, r in group) - sum(c for c, _ in group)) / total for group in groups)
    error, found = expected_calibration_error(probabilities, labels, bins=bins)
    assert error == found.error == pytest.approx(expected, abs=1e-12)
    assert found.count.tolist() == [len(group) for group in groups]
    for number, group in enumerate(groups):
        confidence, accuracy = np.mean(group, axis=0) if group else (0, 0)
        assert found.confidence[number] == pytest.approx(confidence)
        assert found.accuracy[number] == pytest.approx(accuracy)
    assert found.pairs == (task == "multi-label")


def best_threshold(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """Try all candidates of a class, with sklearn's F1."""
    levels = [0.0, *sorted(set(scores.tolist()))]
    candidates = [(a + b) / 2 for a, b in pairwise(levels)]
    if not positive.any():
        return 0.5
    values = [f1_score(positive, scores >= threshold) for threshold in candidates]
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


def test_thresholds_of_cases_computed_by_hand():
    scores = np.array([[0.1, 0.2], [0.3, 0.9], [0.7, 0.9]], dtype=np.float32)
    labels = np.array([[False, False], [True, False], [True, False]])
    np.testing.assert_allclose(choose_thresholds(scores, labels), [0.2, 0.5])
    equal = np.array([[0.9, 0.98], [0.6, 0.94], [0.5, 0.9], [0.2, 0.6]])  # F1 is 2 / 3 with the first or all
    found = choose_thresholds(equal, np.array([[True, True], [False, False], [False, False], [True, True]]))
    np.testing.assert_allclose(found, [0.75, 0.3])
    neighbors = np.array([[0.5], [np.nextafter(0.5, 1)]])  # no float is between them
    assert choose_thresholds(neighbors, np.array([[False], [True]])) == neighbors[1]
