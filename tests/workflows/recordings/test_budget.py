import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everest.config.heads import Head
from everest.errors import DataError, RecipeError
from everest_workflows.annotations.bout import CHECKED, TO_CHECK, UNSCORED, Bout, group_by_video
from everest_workflows.recordings.checked_windows import (
    checked_window_seconds,
    choose_first_sample,
    divide_footage,
    sample_windows,
    windows_for_half,
)
from everest_workflows.recordings.time_budget import compute_time_budget
from everest_workflows.recordings.totals import CheckedAmounts
from everest_workflows.recordings.window_plan import plan_windows, read_fold_tests

LENGTH = 10.0


def bout(video: str, start: float, end: float, label: str = "a") -> Bout:
    return Bout(video=video, start=start, end=end, label=label)


def test_windows_cover_the_footage():
    extents = {"x": (0.0, 25.0), "y": (5.0, 15.0)}
    windows = divide_footage(extents, LENGTH)
    assert [(one.video, one.start, one.end) for one in windows] == [
        ("x", 0, 10), ("x", 10, 20), ("x", 20, 25), ("y", 5, 15),
    ]  # fmt: skip
    sampled = sample_windows(extents, {}, LENGTH, 3)
    assert len(set(sampled) & set(windows)) == 3
    assert sample_windows(extents, {}, LENGTH, 3) == sampled


def test_a_budget_computed_by_hand():
    extents = {"x": (0.0, 40.0)}
    predicted = group_by_video([bout("x", 2, 6), bout("x", 22, 24)])
    # The person saw 5 s in the first window, and 1 s in the third, of a bout that may have begun before it.
    checked = group_by_video(
        [
            *(bout("x", 0, 10, CHECKED), bout("x", 20, 30, CHECKED), bout("x", 2, 7), bout("x", 20, 21)),
            *(bout("x", 2, 7), bout("x", 50, 60)),  # a repeated row, and one after the end of the footage
        ]
    )
    document = compute_time_budget(extents, predicted, checked)
    assert (document["windows"], document["checked"], document["window"]) == (4, 2, 10)
    assert document["unused"] == 1
    row, background = document["rows"]
    # Seconds: 5 + 1 seen in 20 s, so as many in the 20 s left; two windows cannot tune a weight of the model.
    assert (row["model"], row["checked"], row["seconds"], row["percent"]) == (6, 6, 12, 30)
    assert (row["minutes_per_hour"], row["footage"], row["saved_windows"]) == (18, 40, 0)
    assert (row["bouts"], row["mean_bout"], row["checked_percent"]) == (2, 6, 30)
    low, high = row["bouts_interval"]
    assert low < 2 < high
    assert high - low > row["bouts"]  # one bout seen in two windows says little
    low, high = row["interval"]
    assert row["checked"] < low < 12 < high < 26  # the 20 s left can hold no more
    assert row["watched_only"] == {"seconds": 12, "interval": [low, high]}
    assert (background["class"], background["seconds"], background["percent"]) == ("background", 28, 70)


def test_bouts_at_the_border_of_two_checked_windows_count_once_and_where_they_are_seen_to_begin():
    extents = {"x": (0.0, 30.0), "y": (0.0, 10.0)}
    windows = [bout("x", 0, 10, CHECKED), bout("x", 10, 20, CHECKED), bout("x", 20, 30, CHECKED)]
    windows.append(bout("y", 0, 10, CHECKED))

    def bouts_seen(*bouts: Bout) -> dict[str, float]:
        document = compute_time_budget(extents, {}, group_by_video([*windows, *bouts]))
        return {row["class"]: row["bouts"] for row in document["rows"] if row["class"] != "background"}

    parts = [bout("x", 0, 10), bout("x", 10, 20, "b"), bout("x", 20, 30), bout("y", 0, 10, "b")]
    assert bouts_seen(*parts) == {"a": 2, "b": 2}
    assert bouts_seen(bout("x", 5, 10), bout("x", 10, 20), bout("x", 20, 25)) == {"a": 1}  # one in three rows
    assert bouts_seen(bout("x", 5, 25)) == {"a": 1}


def test_the_bouts_of_a_checked_group_are_known_and_every_interval_holds_its_number():
    extents = {"a": (0.0, 20.0), "b": (0.0, 200.0)}
    spans = [("a", 0), ("a", 10), ("b", 20), ("b", 90), ("b", 150)]
    windows = [bout(video, begin, begin + 10, CHECKED) for video, begin in spans]
    seen = [bout("a", 2, 4), bout("a", 10, 12), bout("b", 20, 22), bout("b", 95, 97), bout("b", 151, 153)]
    groups = {"A": ["a"], "B": ["b"]}
    checked = group_by_video([*windows, *seen])
    rows = compute_time_budget(extents, {}, checked, strata=[*groups.values()], groups=groups)["rows"]
    assert all(row["bouts_interval"][0] <= row["bouts"] <= row["bouts_interval"][1] for row in rows)
    (known,) = [row for row in rows if (row["group"], row["class"]) == ("A", "a")]
    assert (known["bouts"], known["bouts_interval"]) == (2, [2, 2])


@pytest.mark.parametrize("period", [4 / 3, 1.37])
def test_numbers_of_bouts_have_no_bias_if_bouts_begin_exactly_with_windows(period: float):
    """A third of the bouts, or none, starts at the start of a window; the list has them cut to windows."""
    extents = {"x": (0.0, 300.0)}
    starts = np.arange(0, 299, period)
    truth = [bout("x", start, start + period, "ab"[i % 2]) for i, start in enumerate(starts)]
    found = []
    for seed in range(10):
        sampled = sample_windows(extents, {}, 0.5, 300, seed=seed)
        seen = [
            bout("x", max(one.start, part.start), min(one.end, part.end), one.label)
            for part in sampled
            for one in truth
            if min(one.end, part.end) - max(one.start, part.start) > 0.001
        ]
        marks = [bout(*part, CHECKED) for part in sampled]
        rows = compute_time_budget(extents, {}, group_by_video([*marks, *seen]))["rows"]
        found.append([row["bouts"] for row in rows[:2]])
    assert np.mean(found) * 2 == pytest.approx(len(starts), rel=0.05)


def test_the_model_never_makes_an_interval_wider_and_classes_add_up_to_the_footage():
    """The model finds more of `a` than a person, and is right in little more than half of the windows."""
    rng = np.random.default_rng(0)
    extents = {f"m{animal}": (0.0, 400.0) for animal in range(4)}
    num_saved = 0
    for seed in range(5):
        sampled = sample_windows(extents, {}, LENGTH, 8, seed=seed, strata=[[name] for name in extents])
        truth, predicted = (
            [
                bout(video, 10.0 * i + 5 * j, 10.0 * i + 5 * (j + 1), label)
                for video in extents
                for i in range(40)
                for j, label in enumerate(rng.choice(["a", "b", "c"], 2, p=rates))
            ]
            for rates in ([0.1, 0.3, 0.6], [0.3, 0.2, 0.5])
        )
        predicted = [one if i % 2 else replace(one, label=truth[i].label) for i, one in enumerate(predicted)]
        checked = group_by_video([*(bout(*part, CHECKED) for part in sampled), *truth])
        strata, groups = [[name] for name in extents], {name: [name] for name in extents}
        rows = compute_time_budget(extents, group_by_video(predicted), checked, strata=strata, groups=groups)[
            "rows"
        ]
        for row in rows:
            (low, high), (least, most) = row["interval"], row["watched_only"]["interval"]
            assert high - low <= most - least
            assert (row["saved_windows"] > 0) == (high - low < most - least)
            num_saved += row["saved_windows"] > 0
        for name in ["", *groups]:
            of_group = [row for row in rows if row["group"] == name]
            assert sum(row["seconds"] for row in of_group) == pytest.approx(of_group[0]["footage"], abs=0.01)
            assert all((row["borrowed"] > 0) == bool(name) for row in of_group)
    assert 0 < num_saved < 5 * 5 * 3


def test_a_class_that_nobody_found_has_an_upper_bound_and_one_seen_has_a_bout_in_each_recording():
    extents = {"x": (0.0, 40.0), "y": (0.0, 40.0)}
    windows = [bout("x", 10, 20, CHECKED), bout("y", 10, 20, CHECKED), bout("y", 30, 40, CHECKED)]
    whole = [bout("x", 10, 20), bout("y", 10, 20), bout("y", 30, 40)]  # which may have begun before
    document = compute_time_budget(extents, {}, group_by_video([*windows, *whole]), classes=["a", "b"])
    seen, absent, _ = document["rows"]
    assert (seen["class"], seen["bouts"], seen["bouts_interval"][0]) == ("a", 2, 2)
    assert (absent["class"], absent["seconds"], absent["interval"][0]) == ("b", 0, 0)
    assert absent["interval"][1] > 5


def test_rows_of_two_draws_that_describe_one_bout_count_once():
    extents = {"x": (0.0, 40.0)}
    windows = [bout("x", 0, 10, CHECKED), bout("x", 10, 20, CHECKED)]
    once = compute_time_budget(extents, {}, group_by_video([*windows, bout("x", 8, 12)]))
    twice = compute_time_budget(
        extents, {}, group_by_video([*windows, bout("x", 8, 12), bout("x", 10, 11.9)])
    )
    assert once == twice
    assert once["rows"][0]["checked"] == 4


def test_a_checked_window_with_unscored_time_is_refused():
    windows = [bout("x", 0, 10, CHECKED), bout("x", 10, 20, CHECKED), bout("x", 30, 40, UNSCORED)]
    extents = {"x": (0.0, 40.0)}
    assert compute_time_budget(extents, {}, group_by_video(windows), classes=["a"])["checked"] == 2
    with pytest.raises(DataError, match="x, 10 to 20 s: is 'checked' and partly 'unscored'; score it, or"):
        compute_time_budget(extents, {}, group_by_video([*windows, bout("x", 19, 25, UNSCORED)]))


def sample(
    labeled: list[float], predicted: list[float], left: list[float], windows: list[int]
) -> CheckedAmounts:
    return CheckedAmounts(
        labeled=np.array(labeled),
        predicted=np.array(predicted),
        cells=np.arange(len(labeled)) % len(windows),
        windows=np.array(windows),
        predicted_left=np.array(left),
        is_fraction=True,
    )


def test_the_weight_of_the_model_is_its_covariance_with_the_labels_over_its_variance():
    labeled, predicted = [0.0, 0.5, 1.0, 1.0], [0.0, 0.4, 0.8, 1.0]
    amounts = sample(labeled, predicted, [0.2], [100])
    weight = amounts.tune()
    assert weight == pytest.approx(1.0)  # clipped: the slope is 1.08
    estimate = amounts.estimate_all(weight)
    assert estimate.mean == pytest.approx(0.2 + 0.625 - 0.55)
    assert estimate.spread < amounts.estimate_all(0.0).spread
    assert sample(labeled, [1.0, 0.5, 0.0, 0.0], [0.2], [100]).tune() == 0.0  # a model that is always wrong
    low, middle, high = (estimate.total(10.0, 200.0)[place] for place in (1, 0, 2))
    assert 10 < low < middle == 65 < high < 210


def test_what_nobody_saw_has_the_bound_of_a_fraction_and_all_windows_checked_leave_no_doubt():
    absent = sample([0.0] * 8, [0.0] * 8, [0.0], [1000])
    middle, low, high = absent.estimate_all(0.0).total(0.0, 100.0)
    assert (middle, low) == (0, 0)
    assert 36.9 < high < 45  # the exact bound is 36.9 %
    complete = sample([0.5, 0.0, 0.45], [0.4, 0.2, 0.4], [0.0], [3])
    assert complete.estimate_all(complete.tune()).total(9.5, 0.0) == [9.5, 9.5, 9.5]


def test_groups_that_are_alike_share_their_errors_and_others_keep_theirs():
    alike = sample([1.0, 0.0] * 8, [0.0] * 16, [0.0] * 4, [50] * 4)
    assert {round(each.mean, 6) for each in alike.estimate_cells(0.0)} == {1.0, 0.0}  # cells differ
    mixed = sample([1.0, 1.0, 0.0, 0.0] * 4, [0.0] * 16, [0.0, 0.0], [50] * 2)
    pooled = mixed.estimate_cells(0.0)
    assert [each.mean for each in pooled] == [0.5, 0.5]
    assert pooled[0].spread < sample([1.0, 0.0] * 4, [0.0] * 8, [0.0], [50]).estimate_all(0.0).spread
    with_empty = replace(mixed, windows=np.array([50, 50, 50]), predicted_left=np.zeros(3))
    assert with_empty.estimate_cells(0.0)[2].mean == 0.5  # a group without a checked window


def test_windows_of_an_earlier_draw_are_not_drawn_again():
    extents = {"x": (0.0, 45.0)}
    marks = group_by_video([bout("x", 10, 20, CHECKED), bout("x", 40, 45, TO_CHECK), bout("x", 12, 13)])
    assert [window.start for window in sample_windows(extents, marks, LENGTH, 3)] == [0, 20, 30]
    with pytest.raises(RecipeError, match="--draw 4: only 3 windows of 10 s left; draw fewer"):
        sample_windows(extents, marks, LENGTH, 4)
    with pytest.raises(RecipeError, match="only 5 windows of 10 s; use --window 3, which gives 15"):
        sample_windows({"x": (0.0, 46.0)}, {}, LENGTH, 6)


def test_the_rest_of_a_recording_joins_its_last_window_if_it_is_shorter_than_half():
    extents = {"x": (0.0, 20.2), "y": (0.0, 0.2), "z": (5.0, 20.0)}
    windows = divide_footage(extents, LENGTH)
    assert [(one.video, one.start, one.end) for one in windows] == [
        *(("x", 0, 10), ("x", 10, 20.2), ("y", 0, 0.2), ("z", 5, 15), ("z", 15, 20))
    ]
    checked = group_by_video([bout(*one, CHECKED) for one in windows])
    assert compute_time_budget(extents, {}, checked)["window"] == LENGTH


def test_strata_are_weighed_by_their_windows():
    extents = {"x": (0.0, 40.0), "y": (0.0, 400.0)}
    strata = [["x"], ["y"]]
    sampled = sample_windows(extents, {}, LENGTH, 2, strata=strata)
    assert [one.video for one in sampled] == ["x", "x", "y", "y"]
    seen = group_by_video(
        [*(bout(*one, CHECKED) for one in sampled), *(bout(*one) for one in sampled if one.video == "x")]
    )
    groups = {"x": ["x"], "y": ["y"]}
    document = compute_time_budget(extents, {}, seen, strata=strata, groups=groups)
    amounts = {(row["group"], row["class"]): row["seconds"] for row in document["rows"]}
    assert (amounts["", "a"], amounts["x", "a"], amounts["y", "a"]) == (40, 40, 0)
    (mean, _) = document["means"]
    assert mean == {"class": "a", "percent": 50, "sem": 50, "n": 2}
    few = {"x": seen["x"], "y": seen["y"][:1]}
    with pytest.raises(DataError, match="needed in each group of the draw, not 1"):
        compute_time_budget(extents, {}, few, strata=strata)


def test_a_second_draw_does_not_choose_the_neighbors_of_the_first():
    extents = {"x": (0.0, 10_000.0)}
    first = sample_windows(extents, {}, LENGTH, 10)
    second = sample_windows(extents, group_by_video([bout(*one, CHECKED) for one in first]), LENGTH, 10)
    near = [min(abs(one.start - other.start) for other in first) <= 2 * LENGTH for one in second]
    assert sum(near) < 5


def test_the_advice_on_windows_to_draw():
    assert checked_window_seconds({"x": (0.0, 36000.0)}, 30) == 10
    assert checked_window_seconds({"x": (0.0, 100.0), "y": (5.0, 85.0)}, 30) == 2
    for seconds, advice in ((36000.0, (30, 2)), (40.0, (13, 1)), (20.7, (6, 1)), (0.7, (2, 0.35))):
        assert choose_first_sample({"x": (0.0, seconds)}) == advice
        assert len(sample_windows({"x": (0.0, seconds)}, {}, advice[1], advice[0])) == advice[0]
    for windows, checked in ((90, 30), (100_000, 30), (4, 4)):
        half = windows_for_half(windows, checked)
        ratio = (windows - half) / half * checked / max(windows - checked, 1)
        assert ratio == pytest.approx(0.25, rel=0.05) or half == windows


def test_windows_of_another_draw_are_refused():
    extents = {"x": (0.0, 40.0)}
    with pytest.raises(DataError, match="keep windows as --draw wrote them"):
        compute_time_budget(
            extents, {}, group_by_video([bout("x", 0, 10, CHECKED), bout("x", 15, 25, CHECKED)])
        )
    with pytest.raises(DataError, match="the label 'checked' are needed, not 0"):
        compute_time_budget(extents, {}, {})
    with pytest.raises(DataError, match="the label 'checked' are needed, not 1"):
        compute_time_budget(
            extents, {}, group_by_video([bout("x", 10, 20, CHECKED), bout("x", 10, 20.001, CHECKED)])
        )
    last = group_by_video([bout("x", 30, 40, CHECKED), bout("y", 0, 7, CHECKED)])  # whole, or shorter
    with pytest.raises(RecipeError, match="--window: give the length"):
        compute_time_budget(extents | {"y": (0.0, 7.0)}, {}, last)
    assert compute_time_budget(extents | {"y": (0.0, 7.0)}, {}, last, window=10.0)["windows"] == 5


@pytest.mark.parametrize(
    ("end", "seconds", "error"), [(1e308, 10, DataError), (9, np.nan, RecipeError), (9, np.inf, RecipeError)]
)
def test_windows_that_cannot_be_counted_are_refused(end: float, seconds: float, error: type[Exception]):
    with pytest.raises(error, match=r"more than 10000000 windows|must be a positive number"):
        divide_footage({"x": (0, end)}, seconds)


def test_a_plan_follows_from_the_tests_of_the_folds(tmp_path: Path):
    names, labels = ["a", "b"], [0, 1] * 20
    for fold in range(2):  # in the first fold every window is right, in the second a quarter is wrong
        right = [label if number % 4 or not fold else 1 - label for number, label in enumerate(labels)]
        outputs = {"selected": np.eye(2)[right].tolist()}
        file = tmp_path / "folds" / str(fold) / "report" / "outputs.json"
        file.parent.mkdir(parents=True)
        groups = [f"m{number % 3}" for number in range(40)]
        file.write_text(json.dumps({"labels": labels, "groups": groups, "outputs": outputs}))
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir(exist_ok=True)
    weights.touch()
    tests = read_fold_tests(str(weights), Head(outputs=2), names)
    assert tests["a"].labeled.tolist() == [1.0, 0.0] * 40
    assert 0.5 < tests["a"].tune() < 1
    extents = {f"m{animal}": (0.0, 1000.0 * (1 + animal)) for animal in range(3)}
    rows = plan_windows(extents, {name: [name] for name in extents}, tests, 2.0)
    assert [(row["group"], row["windows"], row["minutes"]) for row in rows[:2]] == [
        ("", 15, 1.8),
        ("m0", 5, 0.6),
    ]
    halves = [row["half_width"]["a"] for row in rows if row["group"] == "m2"]
    assert halves == sorted(halves, reverse=True)
    assert halves[2] / halves[4] == pytest.approx(5**0.5, rel=0.1)  # 20 and 100 windows
    with pytest.raises(DataError, match="a group has only 5 windows of 2 s; use less --window"):
        plan_windows({"x": (0.0, 10.0)}, {}, tests, 2.0)
    with pytest.raises(DataError, match="no tests of folds beside runs/other; train with --folds N"):
        read_fold_tests("runs/other", Head(outputs=2), names)


def simulated(rng: np.random.Generator, fraction: float) -> tuple[Any, Any, Any]:
    """Twenty recordings of 600 s, each with its own rate of bouts and its own rate of errors of the model."""
    extents, truth, predicted = {}, [], []
    for number in range(20):
        video = f"v{number}"
        extents[video] = (0.0, 600.0)
        activity, quality = rng.gamma(1.0, fraction), rng.beta(6, 2)
        at = rng.exponential(5 / activity)
        while at < 595:
            end = min(at + rng.uniform(1, 9), 600.0)
            truth.append(bout(video, at, end))
            if rng.random() < quality:
                first = min(max(0.0, at + rng.normal(0, 0.7)), end - 0.1)
                predicted.append(bout(video, first, max(first + 0.1, min(600.0, end + rng.normal(0, 0.7)))))
            at = end + rng.exponential(5 / activity)
        for start in rng.uniform(0, 590, rng.poisson(3 * (1 - quality) * 5)):
            predicted.append(bout(video, start, start + rng.uniform(1, 5)))
    return extents, group_by_video(truth), group_by_video(predicted)


def coverage(fraction: float, number: int, repeats: int) -> dict[str, float]:
    """How often the intervals of seconds and bouts contain the true totals."""
    hits = {"seconds": 0, "bouts": 0}
    for seed in range(repeats):
        extents, truth, predicted = simulated(np.random.default_rng(seed), fraction)
        of_all = [one for video in truth.values() for one in video]
        totals = {"seconds": sum(one.seconds for one in of_all), "bouts": len(of_all)}
        sampled = sample_windows(extents, {}, LENGTH, number, seed=seed + 10_000)
        checked = [bout(*one, CHECKED) for one in sampled]
        for one in sampled:
            inside = [b for b in truth.get(one.video, ()) if b.start < one.end and b.end > one.start]
            checked += inside  # whole bouts, as a person would write them
        found = {video: list(dict.fromkeys(of)) for video, of in group_by_video(checked).items()}
        row, _ = compute_time_budget(extents, predicted, found)["rows"]
        for key, total in totals.items():
            low, high = row["interval" if key == "seconds" else "bouts_interval"]
            hits[key] += low - 1e-6 <= total <= high + 1e-6
    return {key: count / repeats for key, count in hits.items()}


def test_intervals_contain_the_totals_in_simulated_footage():
    found = coverage(0.5, 60, 60)
    assert min(found.values()) >= 0.87  # 95 % of 60: at most 4 standard errors below


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.5, 0.03])
@pytest.mark.parametrize("number", [30, 120, 480, 960])
def test_the_coverage_is_95_percent_or_more(fraction: float, number: int):
    """Of 1200 windows, 2.5, 10, 40 and 80 % are checked; benchmarks/budget_coverage.py has real errors."""
    found = coverage(fraction, number, 400)
    assert min(found.values()) >= 0.92
