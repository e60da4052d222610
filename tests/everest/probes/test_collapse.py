from typing import Any

import pytest

from everest.config.recipe import load_recipe
from everest.engine.stage_plan import learning_rate_advice, plan_stage
from everest.probes.collapse import find_failure_signs, find_new_warnings, select_probe_rows
from everest.probes.during_training import LABELED_VALUES
from everest_cli.output import format_probe

STEPS, VIDEOS = 1500, 240
RUN = {"steps": STEPS, "videos": VIDEOS, "held_out": 64}
# k-NN, RankMe, feature std, held-out loss and the loss of the mean target, before the first step, after a
# fifth of the run and at its end: benchmarks/pretraining.md has the settings.
MEASURED = """
rendered: 10.0 7.69 0.244 0.3676 0.0247 / 12.1 8.60 0.504 0.0228 0.0246 / 10.8 7.59 0.382 0.0214 0.0245
surveillance: 56.3 11.24 0.416 0.5696 0.0587 / 58.3 5.63 0.410 0.0472 0.0561 / 56.3 5.09 0.208 0.0412 0.0579
normalized: 56.3 11.24 0.416 1.2199 0.9813 / 47.9 9.26 0.625 0.9851 0.9849 / 48.6 7.32 0.270 0.9283 0.9844
rendered, base_lr x 100: 10.0 7.69 0.244 0.3676 0.0247 / 11.3 2.53 0.119 0.0267 0.0247
surveillance, base_lr x 100: 63.2 13.08 0.378 1.2109 0.9905 / 56.9 1.25 0.025 1.0063 0.9860
targets of other clips: 56.3 11.24 0.416 0.5695 0.0622 / 56.9 3.34 0.167 0.0683 0.0619
frozen: 56.3 11.24 0.416 0.5696 0.0587 / 56.3 11.24 0.416 0.5696 0.0587
"""  # of `normalized` targets nothing is predicted after a fifth, and the last row is of step 912
RUNS = {
    name: [[float(value) for value in row.split()] for row in rows.split(" / ")]
    for name, _, rows in (line.partition(": ") for line in MEASURED.strip().splitlines())
}
BROKEN = {name: {"held-out loss"} for name, rows in RUNS.items() if len(rows) == 2}
BROKEN["surveillance, base_lr x 100"] = {"collapse", "held-out loss"}


def row(step: int, values: list[float | None]) -> dict[str, Any]:
    names = ("probe_knn", "rank_me", "feature_std", "heldout_loss", "heldout_mean_loss")
    measured = dict(zip(names, values, strict=True))
    missing = dict.fromkeys(LABELED_VALUES)
    return {"step": step, **missing, "probe_chance": 10.0, "probe_seconds": 1.0, **measured}


@pytest.mark.parametrize("name", [name for name in RUNS if name not in BROKEN])
def test_a_healthy_run_is_not_called_broken(name: str):
    rows = [row(step, values) for step, values in zip((0, 304, STEPS), RUNS[name], strict=True)]
    for number in range(1, 4):
        assert find_failure_signs(rows[:number], **RUN) == {}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_is_called_broken_after_a_fifth_of_it_and_once(name: str):
    (first, last), kinds = RUNS[name], BROKEN[name]
    rows = [row(0, first), row(304, last)]
    assert find_failure_signs(rows[:1], **RUN) == {}
    assert set(find_new_warnings(rows, **RUN)) == kinds
    rows.append(row(600, last))
    assert set(find_failure_signs(rows, **RUN)) == kinds
    assert find_new_warnings(rows, **RUN) == {}


def test_features_that_are_and_stay_nearly_the_same_for_all_videos_are_named():
    """RankMe is never below 1, so that it cannot fall to a fifth of a first value below 5."""
    same, good = [10.0, 1.05, 0.05, 0.9, 1.0], [10.0, 3.0, 0.4, 0.5, 1.0]
    rows = [row(0, same), row(304, [*same[:3], 0.5, 1.0])]
    assert find_failure_signs(rows, **RUN) == {}  # may still begin to learn
    rows.append(row(STEPS, [*same[:3], 0.5, 1.0]))
    assert set(find_new_warnings(rows, **RUN)) == {"same features"}
    sign = find_failure_signs(rows, **RUN)["same features"]
    assert "RankMe was 1.05 before the first step and is 1.05" in sign
    assert find_failure_signs(rows, **{**RUN, "videos": 1}) == {}
    assert find_failure_signs([rows[0], row(STEPS, good)], **RUN) == {}
    fell = [row(0, good), row(304, [10.0, 1.05, 0.2, 0.5, 1.0])]
    assert set(find_failure_signs(fell, **RUN)) == {"same features"}  # at once


def test_a_run_that_predicts_nothing_is_called_broken_at_the_latest_after_half_of_it():
    too_little_hidden = [[10.0, 7.69, 0.244, 0.3250, 0.0151], [10.8, 8.92, 0.592, 0.0154, 0.0151]]
    rows = [row(step, values) for step, values in zip((0, 300), too_little_hidden, strict=True)]
    assert find_failure_signs(rows, **RUN) == {}
    rows.append(row(750, too_little_hidden[1]))
    assert set(find_failure_signs(rows, **RUN)) == {"held-out loss"}


def test_nothing_is_called_broken_before_a_fifth_of_the_run():
    first, last = RUNS["frozen"]
    assert find_failure_signs([row(0, first), row(299, last)], **RUN) == {}
    assert find_failure_signs([row(0, first), row(299, last)], **{**RUN, "steps": 10_000}) == {}
    at_end = [row(0, first), row(50, last)]
    assert find_failure_signs(at_end, **{**RUN, "steps": 50})  # the end of a short run
    not_finite = [row(0, [*first[:3], None, None]), row(STEPS, last)]  # as metrics.jsonl has such a loss
    assert find_failure_signs(not_finite, **RUN) == {}


def test_the_line_of_a_probe_has_its_measures_and_the_start():
    rows = [{**row(0, [21.0, 60.0, 0.4, 1.2, 1.0]), "loss": None}, {"step": 3, "loss": 1.0}]
    first = select_probe_rows(rows)[0]
    now = row(8, [33.0, 61.0, 0.5, None, None]) | {"probe_retrieval": 25.0}
    event = {**now, "first": first, "epoch": 0, "epochs": 4, "steps": 32, "rank_most": 64}
    assert format_probe(event) == (
        "epoch 1/4 step 8/32: probe: k-NN 33.0 % (at the start 21.0 %), chance "
        "10.0 %, class of the 10 nearest 25.0 %, RankMe 61.0 of 64, feature std 0.500"
    )


@pytest.mark.parametrize(
    ("base_lr", "new_weights", "advice"),
    [
        (1.6, True, "rate of 0.05 is 12 times the highest usual one (0.004); if little is learned, lower"),
        (1e-3, True, "(base_lr 0.001 x batch 8 / 256) is far below the usual 0.001 for training from"),
        (1e-3, False, None),  # trained weights need less
        (0.016, True, None),
        (1e-6, False, "is below the usual 1e-05; raise base_lr"),
    ],
)
def test_an_unusual_learning_rate_has_advice_of_its_own(base_lr, new_weights, advice):
    overrides = ["pretrain.batch_size=8", f"pretrain.base_lr={base_lr}", "pretrain.min_lr=0"]
    section = load_recipe("small", overrides=overrides).pretrain
    plan = plan_stage(section, num_videos=64, processes=1, largest_micro_batch=8)
    found = learning_rate_advice(plan, new_weights=new_weights)
    assert found is None if advice is None else found is not None and advice in found
