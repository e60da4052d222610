import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from everest.errors import RecipeError
from everest.sweep.report import make_report
from everest.sweep.results import metrics_of_run, read_results
from everest.sweep.statistics import DRAWS, bootstrap, paired, spread

SEED = {"seed": 0, "gmacs": 1.0, "hours": 0.5, "metrics": {"pretrain_loss": 0.5}}
DOCUMENT: dict[str, Any] = {
    **{"recipe": "r", "summary": "", "stages": ["pretrain"], "against": "a", "equal": "steps"},
    **{"metric": "pretrain_loss", "jobs": {"all": 1, "finished": 1}, "failures": []},
    "arms": [{"arm": "a", "overrides": {}, "seeds": [SEED]}],
}
VALIDATIONS = [
    {"step": 2, "val_top1": 50.0, "val_macro_f1": 70.0, "val_loss": 0.5},
    {"step": 4, "val_top1": 80.0, "val_macro_f1": 60.0, "val_loss": 0.9},
    {"step": 6, "val_top1": 80.0, "val_macro_f1": 65.0, "val_loss": 0.8},
    {"step": 8, "val_top1": 70.0, "val_macro_f1": 65.0, "val_loss": 0.1},
]


@pytest.mark.parametrize(("best", "step"), [("top1", 6), ("macro_f1", 2), ("loss", 8)])
def test_all_validation_metrics_are_those_of_the_weights_that_were_kept(tmp_path: Path, best: str, step: int):
    (tmp_path / "recipe.yaml").write_text(f"finetune: {{best: {best}}}\n")
    rows = [{"step": 1, "loss": 1.0}, *VALIDATIONS]
    kept = next(row for row in VALIDATIONS if row["step"] == step)
    expected = {name: value for name, value in kept.items() if name != "step"}
    assert metrics_of_run("finetune", tmp_path, rows) == expected


def test_results_are_read_as_they_were_written(tmp_path: Path):
    (tmp_path / "results.json").write_text(json.dumps(DOCUMENT))
    assert read_results(tmp_path) == DOCUMENT
    assert make_report(DOCUMENT)["arms"][0]["mean"] == 0.5
    with pytest.raises(RecipeError, match=r"results.json: no results.json; name the folder"):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((name, None) for name in DOCUMENT),
        ("jobs", {}),
        ("arms", []),
        ("failures", [{}]),
        ("arms.0.arm", 5),
        ("arms.0.seeds.0.metrics", None),
        ("arms.0.seeds.0.metrics.pretrain_loss", "0.5"),
        ("arms.0.seeds.0.metrics.pretrain_loss", 1e300),
        ("arms.0.seeds.0.gmacs", None),
    ],
)
def test_damaged_results_are_refused_in_a_line(tmp_path: Path, place: str, value: object):
    document = copy.deepcopy(DOCUMENT)
    *parents, last = place.split(".")
    part: Any = document
    for name in parents:
        part = part[int(name)] if name.isdigit() else part[name]
    part[last] = value
    (tmp_path / "results.json").write_text(json.dumps(document))
    with pytest.raises(RecipeError, match=rf"results.json: damaged \({place}") as refusal:
        read_results(tmp_path)
    assert "\n" not in str(refusal.value)


values = st.floats(-1000, 1000, allow_nan=False).map(lambda value: round(value, 4))
samples = st.lists(values, min_size=2, max_size=12)


@given(samples)
def test_the_interval_is_that_of_scipys_t_distribution(sample: list[float]):
    found = spread(sample)
    assert found.mean == pytest.approx(np.mean(sample), abs=1e-9)
    assert found.std == pytest.approx(np.std(sample, ddof=1), abs=1e-9)
    scale = stats.sem(sample)
    if scale > 1e-9:
        expected = stats.t.interval(0.95, len(sample) - 1, loc=np.mean(sample), scale=scale)
        assert found.interval == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(samples, st.randoms())
def test_differences_are_paired_by_seed_and_p_is_of_the_paired_t_test(sample: list[float], random):
    others = [value + round(random.uniform(-9, 9), 4) for value in sample]
    first, second = dict(enumerate(sample)), dict(enumerate(others))
    found = paired(first | {99: 1.0}, {**dict(reversed(second.items())), 98: 2.0})
    assert found is not None
    assert found.seeds == list(first)
    assert found.values == [first[seed] - second[seed] for seed in first]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly equal differences
        test = stats.ttest_rel(sample, others)
    if np.std(found.values, ddof=1) > 1e-6:
        assert found.p == pytest.approx(test.pvalue, rel=1e-6)
        interval = test.confidence_interval(0.95)
        assert found.interval == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)


def test_the_bootstrap_is_scipys_percentile_interval_within_the_error_of_its_draws():
    sample = [1.0, 3.5, 2.0, 7.0, 4.5]
    expected = stats.bootstrap((sample,), np.mean, n_resamples=DRAWS, method="percentile", rng=1)
    low, high = bootstrap(sample)
    assert low == pytest.approx(expected.confidence_interval.low, abs=0.1)
    assert high == pytest.approx(expected.confidence_interval.high, abs=0.1)
    assert (low, high) == bootstrap(sample)  # the same draws


@given(samples)
def test_the_bootstrap_stays_within_the_values(sample: list[float]):
    low, high = bootstrap(sample)
    assert min(sample) - 1e-9 <= low <= high <= max(sample) + 1e-9


def test_one_seed_equal_values_and_no_common_seed_have_no_interval():
    assert spread([3.0]) == (3.0, None, None)
    found = paired({0: 3.0}, {0: 1.0})
    assert found is not None
    assert (found.mean, found.interval, found.bootstrap, found.p) == (2.0, None, None, None)
    for value in (20.0, 0.0, 0.1):
        found = spread([value] * 3)
        assert (found.mean, found.interval) == (pytest.approx(value), None)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_equal_differences_have_neither_intervals_nor_p_whatever_their_rounding():
    first = {0: 55.4, 1: 61.1345, 2: 70.2}
    for others in (first, {seed: value + 0.1 for seed, value in first.items()}):
        found = paired(others, first)
        assert found is not None
        assert (found.interval, found.bootstrap, found.p) == (None, None, None)
