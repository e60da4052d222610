import json
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import append, make_run
from scipy import stats
from small_runs import run as command

from everest.config.recipe import load_recipe
from everest.errors import RecipeError
from everest.models.spec import pretrain_spec
from everest.system.weights import Weights
from everest_workflows.sweep.report import draw_report, list_report_notes, make_report
from everest_workflows.sweep.results import (
    JobNumbers,
    make_metric_title,
    read_job,
    read_results,
    read_run_metrics,
)
from everest_workflows.sweep.statistics import (
    bootstrap_difference,
    compare_pairs,
    find_spread,
    read_outcomes,
)
from everest_workflows.sweep.sweep_jobs import Job
from everest_workflows.sweep.table import format_rows, make_report_table


def results(values: dict[str, dict[int, float | None]], *, metric: str = "top1") -> dict:
    def seed_of(seed: int, value: float | None, gmacs: float) -> dict:
        metrics = {} if value is None else {metric: value, "loss": 1.0}
        row = {"seed": seed, "finished": value is not None, "gmacs": gmacs, "hours": 0.5}
        row["view_gmacs"] = 0.25
        return {**row, "memory_bytes": 2**30, "metrics": metrics, "jobs": [f"eval/{gmacs:g}-{seed}"]}

    variant = {"overrides": {}, "stages": ["finetune", "eval"]}
    variants = [
        {"variant": name, **variant, "seeds": [seed_of(*row, 10.0 * number) for row in of_variant.items()]}
        for number, (name, of_variant) in enumerate(values.items(), start=1)
    ]
    done = sum(value is not None for of_variant in values.values() for value in of_variant.values())
    sweep = {"recipe": "r", "summary": "", "stages": variant["stages"], "seeds": [0, 1, 2]}
    return {
        **sweep,
        **{"against": next(iter(values)), "metric": metric, "variants": variants, "failures": []},
        "jobs": {"all": sum(map(len, values.values())), "finished": done},
    }


BOTH = {"a": {0: 50.0, 1: 55.0, 2: 60.0}, "b": {0: 51.0, 1: 58.0, 2: 61.0}}


def test_the_document_has_the_statistics_unrounded():
    document = make_report(results(BOTH))
    first, second = document["variants"]
    assert first["difference"] is None
    expected = find_spread([51.0, 58.0, 61.0])
    assert (second["mean"], second["std"], tuple(second["interval"])) == expected
    difference = compare_pairs(BOTH["b"], BOTH["a"])
    assert second["difference"]["values"] == [1.0, 3.0, 1.0]
    assert tuple(second["difference"]["interval"]) == difference.interval
    assert second["difference"]["p"] == difference.p
    assert (second["gmacs"], second["hours"]) == (20.0, 0.5)
    rotated = make_report(results(BOTH), against="b")["variants"]
    assert rotated[1]["difference"] is None
    assert rotated[0]["difference"]["values"] == [-1.0, -3.0, -1.0]


def test_intervals_of_percentages_stay_within_what_is_possible():
    rows = make_report(results({"a": {0: 3.0, 1: 40.0}, "b": {0: 99.0, 1: 60.0}}))["variants"]
    assert [tuple(row["interval"]) for row in rows] == [(0, 100), (0, 100)]
    assert rows[1]["difference"]["interval"] == (-100, 100)
    errors = make_report(results({"a": {0: 3.0, 1: 40.0}}, metric="mae"))["variants"]
    assert errors[0]["interval"][0] == 0 < 100 < errors[0]["interval"][1]


def test_losses_of_variants_that_predict_different_tokens_are_not_compared():
    losses = results(BOTH, metric="pretrain_loss")
    assert make_report(losses)["variants"][1]["difference"]
    losses["variants"][1]["overrides"] = {"pretrain.selection": "{strategy: tube}"}
    document = make_report(losses)
    assert [variant["difference"] for variant in document["variants"]] == [None, None]
    notes = "\n".join(list_report_notes(document))
    assert "predict different tokens have losses that do not compare" in notes
    assert "less is better" not in notes


def test_variants_that_start_from_weights_say_what_their_intervals_leave_out():
    started = results(BOTH)
    assert "weights" not in "\n".join(list_report_notes(make_report(started)))
    started["variants"][0]["init"] = "runs/everest"
    notes = "\n".join(list_report_notes(make_report(started)))
    assert "leave out the training of the weights" in notes
    assert "the intervals do not cover their training" in notes
    started["variants"][0]["init"] = "runs/everest{seed}"
    assert "the intervals" not in "\n".join(list_report_notes(make_report(started)))


def test_differences_use_the_seeds_that_both_variants_have():
    document = make_report(results({"a": {0: 50.0, 1: None, 2: 60.0}, "b": {0: 51.0, 1: 58.0, 2: 61.0}}))
    assert document["variants"][0]["seeds"] == [0, 2]
    assert document["variants"][1]["difference"]["seeds"] == [0, 2]
    said = list(list_report_notes(document))
    assert "5 of 6 jobs have finished" in said
    assert (
        "a difference uses the seeds that both variants have; their means are over all of their seeds" in said
    )


def test_one_seed_has_no_interval_and_the_report_states_it():
    document = make_report(results({"a": {0: 50.0}, "b": {0: 52.0}}))
    assert [variant["interval"] for variant in document["variants"]] == [None, None]
    assert document["variants"][1]["difference"]["interval"] is None
    assert [note for note in list_report_notes(document) if note.startswith("one seed: no interval")]
    columns, *rows = make_report_table(document)
    assert rows == [
        ("a", "1", "50.0", "", "", "", "", "", "10", "0.25", "1.0", "30.0"),
        ("b", "1", "52.0", "", "+2.0", "", "", "", "20", "0.25", "1.0", "30.0"),
    ]
    assert columns[2:5] == ("top-1, mean (%)", "95 % CI", "Δ vs. a (points)")
    assert columns[8:] == ("training GMACs", "GMACs a view", "peak memory (GiB)", "training time (min)")
    empty = make_report(results({"a": {0: 50.0}, "b": {0: None}}))
    assert empty["variants"][1]["mean"] is None
    assert list(make_report_table(empty))[2] == ("b", "0", *[""] * 10)


@pytest.mark.parametrize(
    ("metric", "fractions", "expected"),
    [
        ("top1", (50.0, 50.0), ["chance: 10.0 %", "always the most frequent class: 50.0 %"]),
        ("verb.top1", (50.0, 20.0), ["chance: 10.0 %", "always the most frequent class: 20.0 % or 50.0 %"]),
        ("macro_f1", (50.0, 50.0), []),
    ],
)
def test_the_report_names_what_needs_no_learning(metric: str, fractions, expected: list[str]):
    document = results(BOTH, metric=metric)
    for variant, fraction in zip(document["variants"], fractions, strict=True):
        for row in variant["seeds"]:
            row["metrics"] |= {"majority_top1": fraction, "verb.majority_top1": fraction}
            row["metrics"] |= {"chance_top1": 10.0, "verb.chance_top1": 10.0, "chance_mae": 3.0}
    report = make_report(document)
    assert [note for note in list_report_notes(report) if "frequent" in note or "chance" in note] == expected
    assert [variant["chance"] for variant in report["variants"]] == [10.0 if expected else None] * 2


def test_brackets_in_the_name_of_a_variant_are_shown(tmp_path: Path):
    for name in ("layers=[qkv]", "[/x]"):
        (tmp_path / "results.json").write_text(json.dumps(results({name: {0: 50.0}, "b": {0: 51.0}})))
        shown = command("sweep report", tmp_path)
        assert f"Δ vs. {name} " in shown
        assert f"│ {name} " in shown


def write_outcomes(folder: Path, outcomes: dict[str, list[int]], *, per_group: int) -> None:
    (folder / "eval").mkdir(parents=True)
    for name, rows in outcomes.items():
        lines = [f"v{number}.mp4,g{number // per_group},{row}" for number, row in enumerate(rows)]
        (folder / "eval" / f"{name}.csv").write_text("\n".join(["video,group,correct", *lines]))


def report_of_outcomes(folder: Path, gains: list[int], *, per_group: int) -> dict:
    """Two variants of equal seeds; the second is better by `gains`."""
    rows = {"10": [0] * len(gains), "20": gains}
    outcomes = {f"{name}-{seed}": row for name, row in rows.items() for seed in range(2)}
    write_outcomes(folder, outcomes, per_group=per_group)
    return make_report(results({"a": {0: 0.0, 1: 0.0}, "b": {0: 50.0, 1: 50.0}}), folder=folder)


def test_an_interval_over_groups_and_seeds_draws_both(tmp_path: Path):
    intervals, titles, notes = [], [], []
    for per_group in (1, 2, 20):  # all videos of a group gain, or none of them
        gains = [number // 2 % 2 for number in range(20)]
        document = report_of_outcomes(tmp_path / str(per_group), gains, per_group=per_group)
        assert document["variants"][1]["difference"]["interval"] is None  # all seeds are equal
        intervals.append(document["variants"][1]["difference"]["group_interval"])
        titles.append(next(iter(make_report_table(document)))[6])
        notes.append(next(note for note in list_report_notes(document) if "test video" in note))
    (low, high), (low_of_groups, high_of_groups), none = intervals
    assert high_of_groups - low_of_groups == pytest.approx(2**0.5 * (high - low), rel=0.1)
    assert none is None
    assert titles == [f"95 % CI ({unit} and seeds)" for unit in ("videos", "groups", "groups")]
    assert notes == [
        "differences over 20 test videos",
        "differences over 20 test videos of 10 groups",
        "differences over 20 test videos of 1 group: no interval over groups",
    ]
    few = report_of_outcomes(tmp_path / "few", [1, 1, 0, 0], per_group=2)
    assert few["variants"][1]["difference"]["group_interval"] == (-100, 100)  # 2 groups: t has 1 degree
    assert any("fewer than 10, their interval is widened" in note for note in list_report_notes(few))
    equal = report_of_outcomes(tmp_path / "equal", [1] * 20, per_group=1)
    assert equal["variants"][1]["difference"]["group_interval"] is None
    assert read_outcomes(tmp_path / "1" / "eval" / "10-0.csv", "macro_f1") == {}

    rng = np.random.default_rng(0)
    effects = rng.normal(3, 5, size=(200, 1)) + rng.normal(0, 2, size=(1, 8))  # of videos and of seeds
    pairs = [
        ({(str(v), ""): gain for v, gain in enumerate(column)}, {(str(v), ""): 0.0 for v in range(200)})
        for column in effects.T
    ]
    low, high = bootstrap_difference(pairs).group_interval
    expected = np.hypot(5 / 200**0.5, 2 / 8**0.5)  # the standard error of both
    assert high - low == pytest.approx(2 * 1.96 * expected, rel=0.25)
    assert bootstrap_difference([({}, {})]) == (None, 0, 0)


def test_the_best_of_a_tuned_setting_by_validation_is_reported():
    values = {f"{variant}, base_lr={rate}": {0: 50.0 + rate} for variant in "ab" for rate in (1, 2)}
    sweep = results(values)
    for variant, validation in zip(sweep["variants"], (70.0, 60.0, 60.0, 70.0), strict=True):
        variant["overrides"] = {"finetune.base_lr": int(variant["variant"][-1])}
        variant["seeds"][0]["metrics"]["val_top1"] = validation
    document = make_report(sweep, tuned="finetune.base_lr")
    assert [(variant["variant"], variant["tuned"], variant["mean"]) for variant in document["variants"]] == [
        ("a", 1, 51),
        ("b", 2, 52),
    ]
    assert document["variants"][1]["difference"]["values"] == [1.0]
    note = "finetune.base_lr: the best on data.val of the same values for each variant: 1 for a, 2 for b"
    assert note in list(list_report_notes(document))
    with pytest.raises(RecipeError, match=r"--tuned finetune\.steps: give each variant the same values"):
        make_report(sweep, tuned="finetune.steps")
    del sweep["variants"][0]["seeds"][0]["metrics"]["val_top1"]
    with pytest.raises(RecipeError, match="needs the validation of all jobs"):
        make_report(sweep, tuned="finetune.base_lr")


def test_the_table_is_printed_for_papers_and_sheets():
    several = [make_report(results(BOTH), metric=metric) for metric in ("top1", "loss")]
    rows = list(make_report_table(*several))
    assert {len(row) for row in rows} == {18}
    rows = [("a_b", "x", "", *"wxyz"), ("lr=1e-3", "Δ|-2.0 to -1.0 %", "", *"1234")]
    assert format_rows(rows, "latex", ["20 videos", "", "p_1"]).splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"a\_b & x \\",
        r"\midrule",
        r"lr=1e-3 & $\Delta$|$-$2.0 to $-$1.0 \% \\",
        r"\bottomrule",
        r"\end{tabular}",
        "",
        r"\medskip",
        r"\begin{tabular}{lrrrr}",
        r"\toprule",
        r"a\_b & w & x & y & z \\",
        r"\midrule",
        r"lr=1e-3 & 1 & 2 & 3 & 4 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\caption{20 videos; p\_1.}",
        r"\end{table}",
    ]
    assert format_rows([("a", "b"), ("1", "x|y")], "markdown") == "| a | b |\n|---|---|\n| 1 | x\\|y |\n"
    assert format_rows([("a", "b"), ("1", "x,y")], "csv") == 'a,b\n1,"x,y"\n'


def test_unknown_names_and_missing_results_are_refused(tmp_path: Path):
    without = results(BOTH, metric="spearman")
    for variant in without["variants"]:
        variant["seeds"] = [{**row, "metrics": {"loss": 1.0, "spearman": None}} for row in variant["seeds"]]
    for document, options, message in (
        (without, {"metric": "spearman"}, "--metric: unknown name 'spearman'; known: loss"),
        (results(BOTH), {"metric": "x"}, "--metric: unknown name 'x'; known: loss, top1"),
        (results(BOTH), {"against": "x"}, "--against: unknown name 'x'; known: a, b"),
        (results({"a": {0: None}}), {}, r"no job has measured anything \(0 of 1 jobs have finished\)"),
    ):
        with pytest.raises(RecipeError, match=message):
            make_report(document, **options)
    with pytest.raises(RecipeError, match=r"no results.json; name the folder"):
        read_results(tmp_path)


def test_the_chance_of_a_probe_is_that_of_its_first_metric(tmp_path: Path):
    job = Job(stage="probe", key="k", seed=0, recipe=load_recipe("custom"), needs=None, init="none")
    (tmp_path / "probe").mkdir()
    for first, chance in {"map": "chance_map", "mae": "chance_mae", "top1": "chance_top1"}.items():
        document = {"probes": {"linear": {first: 50.0}}, "chance": 10.0}
        job.file(tmp_path, "json").write_text(json.dumps(document))
        metrics = {f"probe.linear.{first}": 50.0, f"probe.linear.{chance}": 10.0}
        assert read_job(job, tmp_path) == JobNumbers(metrics)
    job.file(tmp_path, "json").write_text("[]")
    assert read_job(job, tmp_path) is None


def test_the_hours_of_a_run_count_a_step_whose_speed_is_rounded_to_none(tmp_path: Path):
    run = make_run(tmp_path / "pretrain" / "k", logged=3, finished=4)  # 4 clips a step, 2 clips a second
    append(run, '{"step": 4, "loss": 0.1, "lr": 0.1, "clips_per_second": 0.0}\n')  # below 0.005
    recipe = load_recipe("custom")
    spec = pretrain_spec(recipe)
    weights = Weights(kind=spec.kind, settings=spec.dump(), classes=None, recipe="r", step=4)
    weights.save(run / "model.safetensors")
    job = Job(stage="pretrain", key="k", seed=0, recipe=recipe, needs=None, init="none")
    numbers = read_job(job, tmp_path)
    assert numbers.hours * 3600 == pytest.approx(806)


def test_titles_of_metrics_name_their_head_probe_and_list_and_less_is_better_for_errors():
    document = make_report(results(BOTH, metric="mae"))
    assert (document["percent"], document["higher_is_better"]) == (False, False)
    assert "mean absolute error: less is better" in list(list_report_notes(document))
    for name, title in {
        "top1": "top-1",
        "verb.mae": "verb mean absolute error",
        "v.probe.linear.top1": "v probe linear top-1",
        "val_macro_f1": "val macro F1",
        "pretrain_loss": "pretrain loss",
    }.items():
        assert make_metric_title(name) == title


def test_the_figure_has_every_variant_with_values(tmp_path: Path):
    document = make_report(results({"scratch": {0: 50.0, 1: 52.0}, "b": {0: 51.0}, "none": {0: None}}))
    draw_report(tmp_path / "few.png", document)
    many = make_report(results({f"variant {number}": {0: 50.0 + number, 1: 52.0} for number in range(20)}))
    draw_report(tmp_path / "many.png", many)
    heights = [plt.imread(tmp_path / f"{name}.png").shape[0] for name in ("few", "many")]
    assert heights[1] > 3 * heights[0]


VALIDATIONS = [
    {"step": 2, "val_top1": 50.0, "val_macro_f1": 70.0, "val_loss": 0.5},
    {"step": 4, "val_top1": 80.0, "val_macro_f1": 60.0, "val_loss": 0.9},
    {"step": 6, "val_top1": 80.0, "val_macro_f1": 65.0, "val_loss": 0.8},
    {"step": 8, "val_top1": 70.0, "val_macro_f1": 65.0, "val_loss": 0.1},
]


@pytest.mark.parametrize(("best", "step"), [("top1", 6), ("macro_f1", 2), ("loss", 8)])
def test_validation_metrics_are_those_of_the_weights_that_were_kept(tmp_path: Path, best: str, step: int):
    (tmp_path / "recipe.yaml").write_text(f"finetune: {{best: {best}}}\n")
    rows = [{"step": 1, "loss": 1.0}, *VALIDATIONS]
    kept = next(row for row in VALIDATIONS if row["step"] == step)
    metrics = read_run_metrics("finetune", tmp_path, rows)
    assert metrics == {name: value for name, value in kept.items() if name != "step"}
    assert next(iter(metrics)) == f"val_{best}"


samples = st.lists(
    st.floats(-1000, 1000, allow_nan=False).map(lambda value: round(value, 4)), min_size=2, max_size=12
)


@given(samples)
def test_the_interval_is_that_of_scipys_t_distribution(sample: list[float]):
    found = find_spread(sample)
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
    found = compare_pairs(first | {99: 1.0}, {**dict(reversed(second.items())), 98: 2.0})
    assert found.seeds == list(first)
    assert found.values == [first[seed] - second[seed] for seed in first]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly equal differences
        test = stats.ttest_rel(sample, others)
    if np.std(found.values, ddof=1) > 1e-6:
        assert found.p == pytest.approx(test.pvalue, rel=1e-6)
        interval = test.confidence_interval(0.95)
        assert found.interval == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)


def test_one_seed_equal_values_and_no_common_seed_have_no_interval():
    assert find_spread([3.0]) == (3.0, None, None)
    found = compare_pairs({0: 3.0}, {0: 1.0})
    assert (found.mean, found.interval, found.p) == (2.0, None, None)
    for value in (20.0, 0.0, 0.1):
        assert find_spread([value] * 3).interval is None
    assert compare_pairs({0: 1.0}, {1: 1.0}) is None
    first = {0: 55.4, 1: 61.1345, 2: 70.2}
    for others in (first, {seed: value + 0.1 for seed, value in first.items()}):  # whatever their rounding
        found = compare_pairs(others, first)
        assert (found.interval, found.p) == (None, None)
