"""Evaluation within a budget of computation."""

from __future__ import annotations

from pathlib import Path

from small_runs import called, json_of, refused

import everest
from everest.models.cost import gmacs_of_clip, share_cost, share_of_budget

QUICK = ("-q", "--no-interval")


def test_a_budget_gives_the_largest_keep_ratio_that_costs_at_most_as_much(classifier_run: Path):
    spec = everest.load_model(classifier_run).spec
    for tokens in (1, 7, 32):
        exact = gmacs_of_clip(spec, tokens)
        share = share_of_budget(spec, exact)
        assert share_cost(spec, share)["tokens"] == tokens
        assert share == 1 or share_cost(spec, share + 1e-4)["tokens"] == tokens + 1
    assert share_of_budget(spec, 1e6) == 1


def test_eval_states_the_keep_ratio_of_its_budget(classifier_run: Path):
    spec = everest.load_model(classifier_run).spec
    budget = gmacs_of_clip(spec, 8)
    found = json_of("eval", "-c", classifier_run, *QUICK, "--budget", budget, "--keep", "0.25,0.6")
    assert (found["budget"], found["keep"], found["tokens"]) == (budget, 0.2812, 8)
    assert found["top1"] == found["sweep"][0]["top1"]
    assert [row["tokens"] for row in found["sweep"]] == [8, 19]
    shown = called("eval", "-c", classifier_run, "--no-interval", "--budget", budget)
    assert "keep ratio 0.2812, 8 tokens" in shown.stdout
    assert "allows a keep ratio of 0.2812, and the model was trained with 0.59" in shown.stderr
    for wrong, message in (
        ("1e-6", "GMACs with the fewest tokens"),
        ("-1", "GMACs with the fewest tokens"),
        ("nan", "a finite number"),
        ("inf", "a finite number"),
    ):
        assert message in refused("eval", "-c", classifier_run, "--budget", wrong, code=2)
