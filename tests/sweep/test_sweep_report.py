import json
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from small_runs import run

from everest.config.settings import DataSettings, Recipe
from everest.errors import RecipeError
from everest.sweep.budgets import Budget
from everest.sweep.figure import _draw_arms, _draw_names, draw_report
from everest.sweep.metric_names import headline
from everest.sweep.report import make_report, notes, table_columns, table_rows
from everest.sweep.statistics import paired, spread


def results(values: dict[str, dict[int, float | None]], *, metric: str = "top1") -> dict:
    def seed_of(seed: int, value: float | None, gmacs: float) -> dict:
        metrics = {} if value is None else {metric: value, "loss": 1.0}
        row = {"seed": seed, "finished": value is not None, "gmacs": gmacs, "hours": 0.5}
        return {**row, "metrics": metrics, "jobs": []}

    arm = {"overrides": {}, "stages": ["finetune", "eval"]}
    arms = [
        {"arm": name, **arm, "seeds": [seed_of(*row, 10.0 * number) for row in of_arm.items()]}
        for number, (name, of_arm) in enumerate(values.items(), start=1)
    ]
    done = sum(value is not None for of_arm in values.values() for value in of_arm.values())
    sweep = {"recipe": "r", "summary": "", "stages": arm["stages"], "seeds": [0, 1, 2], "equal": "steps"}
    return {
        **sweep,
        **{"against": next(iter(values)), "metric": metric, "arms": arms, "failures": []},
        "jobs": {"all": sum(map(len, values.values())), "finished": done},
    }


BOTH = {"a": {0: 50.0, 1: 55.0, 2: 60.0}, "b": {0: 51.0, 1: 58.0, 2: 61.0}}


def test_the_document_has_the_statistics_unrounded():
    document = make_report(results(BOTH))
    first, second = document["arms"]
    assert first["difference"] is None
    expected = spread([51.0, 58.0, 61.0])
    assert (second["mean"], second["std"], tuple(second["interval"])) == expected
    difference = paired(BOTH["b"], BOTH["a"])
    assert difference is not None
    assert second["difference"]["values"] == [1.0, 3.0, 1.0]
    assert tuple(second["difference"]["interval"]) == difference.interval
    assert tuple(second["difference"]["bootstrap"]) == difference.bootstrap
    assert second["difference"]["p"] == difference.p
    assert (second["gmacs"], second["hours"]) == (20.0, 0.5)
    turned = make_report(results(BOTH), against="b")["arms"]
    assert turned[1]["difference"] is None
    assert turned[0]["difference"]["values"] == [-1.0, -3.0, -1.0]


def test_differences_use_the_seeds_that_both_arms_have():
    document = make_report(results({"a": {0: 50.0, 1: None, 2: 60.0}, "b": {0: 51.0, 1: 58.0, 2: 61.0}}))
    assert document["arms"][0]["seeds"] == [0, 2]
    assert document["arms"][1]["difference"]["seeds"] == [0, 2]
    said = list(notes(document))
    assert "5 of 6 jobs have finished" in said
    assert "a difference uses the seeds that both arms have; their means are over all of their seeds" in said
    assert [note for note in said if note.startswith("2 seeds: with fewer than 5")]


def test_few_pairs_have_no_bootstrap_interval_in_the_table():
    many = {seed: 50.0 + seed**2 for seed in range(5)}
    for reference, drawn in (({0: 49.0, 1: 49.5}, False), (dict.fromkeys(range(5), 49.0), True)):
        document = make_report(results({"a": reference, "b": many}))
        assert document["arms"][1]["difference"]["bootstrap"] is not None
        assert bool(list(table_rows(document))[1][6]) == drawn


def test_a_metric_of_a_later_job_is_not_called_unknown():
    document = results({"a": {0: None}, "b": {0: None}})
    for metric in ("macro_f1", "top1", "verb.top1"):
        with pytest.raises(RecipeError, match=f"no seed of any arm has {metric} yet"):
            make_report(document, metric=metric)


def test_equal_values_and_differences_are_named_instead_of_an_interval_without_width():
    document = make_report(results({"a": {0: 20.0, 1: 20.0}, "b": {0: 20.0, 1: 30.0}}))
    assert document["arms"][0]["interval"] is None
    said = list(notes(document))
    assert "a: all seeds have the same value, which gives no interval" in said
    assert not [note for note in said if note.startswith("b: ")]
    document = make_report(results({"a": {0: 55.4, 1: 61.1345}, "b": {0: 55.5, 1: 61.2345}}))
    assert document["arms"][1]["difference"]["interval"] is None
    assert "b: all differences are equal, which gives no interval" in list(notes(document))


def test_one_seed_has_no_interval_and_the_report_states_it():
    document = make_report(results({"a": {0: 50.0}, "b": {0: 52.0}}))
    assert [arm["interval"] for arm in document["arms"]] == [None, None]
    assert document["arms"][1]["difference"]["interval"] is None
    assert [note for note in notes(document) if note.startswith("one seed: no interval")]
    assert list(table_rows(document)) == [
        ("a", "1", "50.0 %", "", "", "", "", "", "10", "0.5"),
        ("b", "1", "52.0 %", "", "+2.0", "", "", "", "20", "0.5"),
    ]
    assert len(table_columns(document)) == 10
    empty = make_report(results({"a": {0: 50.0}, "b": {0: None}}))
    assert empty["arms"][1]["mean"] is None
    assert list(table_rows(empty))[1] == ("b", "0", *[""] * 8)


@pytest.mark.parametrize(
    ("metric", "shares", "expected"),
    [
        ("top1", (50.0, 50.0), ["chance: 10.0 %", "always the most frequent class: 50.0 %"]),
        (
            "verb.top1",
            (50.0, 20.0),
            [
                "chance: 10.0 %",
                "b: always the most frequent class: 20.0 %",
                "a: always the most frequent class: 50.0 %",
            ],
        ),
        ("macro_f1", (50.0, 50.0), []),
    ],
)
def test_the_report_names_what_needs_no_learning(metric: str, shares, expected: list[str]):
    document = results(BOTH, metric=metric)
    for arm, share in zip(document["arms"], shares, strict=True):
        for row in arm["seeds"]:
            row["metrics"] |= {"majority_top1": share, "verb.majority_top1": share}
            row["metrics"] |= {"chance_top1": 10.0, "verb.chance_top1": 10.0, "chance_mae": 3.0}
    report = make_report(document)
    assert [note for note in notes(report) if "frequent" in note or "chance" in note] == expected
    assert [arm["chance"] for arm in report["arms"]] == [10.0 if expected else None] * 2


def test_a_metric_of_validation_and_of_a_probe_has_its_chance():
    for metric, chance in (("val_top1", "val_chance_top1"), ("v.probe.knn.top1", "v.probe.knn.chance_top1")):
        document = results(BOTH, metric=metric)
        for row in (row for arm in document["arms"] for row in arm["seeds"]):
            row["metrics"][chance] = 25.0
        assert {arm["chance"] for arm in make_report(document)["arms"]} == {25.0}


def test_brackets_in_the_name_of_an_arm_are_shown(tmp_path: Path):
    for name in ("layers=[qkv]", "[/x]"):
        (tmp_path / "results.json").write_text(json.dumps(results({name: {0: 50.0}, "b": {0: 51.0}})))
        shown = run("sweep report", tmp_path)
        assert f"minus {name} " in shown
        assert f"│ {name} " in shown


def test_the_report_names_the_steps_of_equal_compute():
    document = results(BOTH)
    document["arms"][1]["budgets"] = {"finetune": Budget(300, 150, 30, 15, 8, 2.5)._asdict()}
    text = "b: finetune 300 -> 150 steps, x 0.5 (2.5 GMACs a clip, batch 8), warm-up 30 -> 15"
    assert text in list(notes(make_report(document)))


def test_the_share_is_one_for_arms_with_other_numbers_of_seeds():
    document = results({"a": {0: 50.0, 1: 55.0, 2: 60.0}, "b": {0: 51.0, 1: 58.0}})
    for arm in document["arms"]:
        for row in arm["seeds"]:
            row["metrics"]["majority_top1"] = 90.9091
    frequent = [note for note in notes(make_report(document)) if "frequent" in note]
    assert frequent == ["always the most frequent class: 90.9 %"]


def test_unknown_names_and_missing_results_are_refused():
    nothing = results({"a": {0: None}})
    unmeasured = {**nothing, "jobs": {"all": 1, "finished": 1}}
    for document, options, message in (
        (results(BOTH), {"metric": "x"}, "--metric: unknown name 'x'; known: loss, top1"),
        (results(BOTH), {"against": "x"}, "--against: unknown name 'x'; known: a, b"),
        (nothing, {}, r"no seed of any arm has top1 yet \(0 of 1 jobs"),
        (unmeasured, {}, "no job has measured anything; add the stage eval"),
        ({**results(BOTH), "metric": "pretrain_loss"}, {}, "--metric: unknown name 'pretrain_loss'"),
    ):
        with pytest.raises(RecipeError, match=message):
            make_report(document, **options)


def test_less_is_better_for_errors():
    document = make_report(results(BOTH, metric="mae"))
    assert (document["percent"], document["higher_is_better"]) == (False, False)
    assert "mean absolute error: less is better" in list(notes(document))


TASKS = {
    "top1": DataSettings(),
    "map": DataSettings(task="multi-label"),
    "mae": DataSettings(task="regression"),
    "action_top1": DataSettings(heads={"verb": 3, "noun": 4}),
    "speed.mae": DataSettings(heads={"speed": "regression", "noun": 4}),
}


@pytest.mark.parametrize("metric", TASKS)
def test_the_headline_is_the_metric_of_the_task(metric: str):
    recipe = Recipe(name="r", data=TASKS[metric])
    assert headline(recipe, ("pretrain", "finetune", "eval", "probe")) == metric
    assert headline(recipe, ("pretrain",)) == "pretrain_loss"
    of_probe = {"action_top1": "verb.probe.linear.top1", "speed.mae": "speed.probe.linear.mae"}
    assert headline(recipe, ("pretrain", "probe")) == of_probe.get(metric, f"probe.linear.{metric}")


@pytest.mark.parametrize("same_cost", [True, False])
def test_labels_of_the_figure_do_not_overlap(tmp_path: Path, same_cost: bool):
    rng = np.random.default_rng(0)
    values = {f"arm {number}": {seed: 50 + rng.normal() for seed in range(3)} for number in range(20)}
    document = make_report(results(values))
    for arm in document["arms"]:
        arm["gmacs"] = 5.0 if same_cost else arm["gmacs"]
    figure = Figure(figsize=(10, 7), dpi=120)
    panel = figure.subplots()
    _draw_names(panel, document["arms"], _draw_arms(panel, document["arms"], percent=False))
    figure.draw_without_rendering()
    boxes = sorted((Text.get_window_extent(text) for text in panel.texts), key=lambda box: box.y0)
    assert len(boxes) == 20
    assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes))
    assert all(0 <= text.get_position()[1] <= 1 for text in panel.texts)
    draw_report(tmp_path / "report.png", document)
    assert plt.imread(tmp_path / "report.png").shape[2] == 4


def test_a_level_leaves_the_scale_of_small_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    axes = []
    subplots = Figure.subplots
    monkeypatch.setattr(Figure, "subplots", lambda figure: axes.append(subplots(figure)) or axes[-1])
    document = make_report(results({"a": {0: 0.011, 1: 0.012}}, metric="mae"))
    document["arms"][0]["chance"] = 0.02
    draw_report(tmp_path / "report.png", document)
    low, high = axes[0].get_ylim()
    assert -0.1 < low < 0.011
    assert 0.02 < high < 0.1
    (name,) = axes[0].texts  # at the height of its mean in these limits
    assert name.get_position()[1] == pytest.approx((document["arms"][0]["mean"] - low) / (high - low))


def test_costs_that_only_the_rounding_of_steps_separates_are_drawn_as_one(tmp_path: Path):
    document = make_report(results({name: {0: 50.0, 1: 52.0} for name in ("从头训练", "b", "c")}))
    for arm, cost in zip(document["arms"], (79.41, 79.35, 79.38), strict=True):
        arm["gmacs"] = cost
    panel = Figure().subplots()
    _draw_arms(panel, document["arms"], percent=True)
    (tick,) = panel.get_xticklabels()
    assert tick.get_text() == "79.38"
    places = [float(bar.lines[0].get_xdata()[0]) for bar in panel.containers]
    assert places == sorted(places)  # in the order of the arms
    draw_report(tmp_path / "report.png", document)  # also the letters that matplotlib's font lacks
