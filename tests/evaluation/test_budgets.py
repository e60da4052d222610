"""Evaluation within a budget of computation, and with as many tokens as the content of a clip needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_runs import called, json_of, refused, run

import everest
from everest.models.cost import content_cost, gmacs_of_clip, share_cost, share_of_budget

QUICK = ("-q", "--no-interval")


def test_a_budget_gives_the_largest_keep_ratio_that_costs_at_most_as_much(classifier_run: Path):
    spec = everest.load_model(classifier_run).spec
    for tokens in (1, 7, 32):
        exact = gmacs_of_clip(spec, tokens)
        share = share_of_budget(spec, exact)
        assert share_cost(spec, share)["tokens"] == tokens
        assert share == 1 or share_cost(spec, share + 1e-4)["tokens"] == tokens + 1
    assert share_of_budget(spec, 1e6) == 1


def test_a_mean_cost_is_the_mean_of_the_views_costs(classifier_run: Path):
    spec = everest.load_model(classifier_run).spec
    few, all_tokens = gmacs_of_clip(spec, 4), gmacs_of_clip(spec, 32)
    cost = content_cost(spec, np.array([[4, 32], [4, 4]]))
    assert (cost["tokens"], cost["keep"]) == (11.0, round(11 / 32, 4))
    assert cost["gmacs"] == round((3 * few + all_tokens) / 4, 4)
    assert content_cost(spec, np.array([16]))["gmacs"] == share_cost(spec, 0.5)["gmacs"]


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


def test_eval_measures_thresholds_and_offers_more(classifier_run: Path):
    nothing, everything = 1e9, -1
    options = ["--keep", "1", "--keep-above", f"{nothing},{everything}"]
    found = json_of("eval", "-c", classifier_run, *QUICK, *options)
    all_tokens, of_few, of_all = found["sweep"]
    assert (of_few["above"], of_few["tokens"]) == (nothing, 1.0)
    assert (of_all["above"], of_all["keep"]) == (everything, 1.0)
    assert {k: v for k, v in of_all.items() if k != "above"} == all_tokens
    thresholds = [row["above"] for row in found["thresholds"]]
    assert [row["keep"] for row in found["thresholds"]] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert thresholds == sorted(thresholds, reverse=True)
    middle = json_of("eval", "-c", classifier_run, *QUICK, "--keep-above", thresholds[4])["sweep"][0]
    assert middle["keep"] == pytest.approx(0.5, abs=0.05)
    shown = run("eval", "-c", classifier_run, *QUICK, "--keep", "1", "--keep-above", thresholds[4])
    (row,) = [line for line in shown.splitlines() if f"above {thresholds[4]:.4g}" in line][:1]
    assert f" {middle['keep']:g} " in row
    assert "thresholds for a mean keep ratio of these views: 0.1: " in shown


def test_predict_states_the_cost_of_each_video_and_its_mean(classifier_run: Path, clip_files: Path):
    videos = [clip_files / f"clip{number}.mp4" for number in range(3)]
    options = ["-c", classifier_run, "--clips", 1, "--crops", 1]
    every = json_of("predict", *videos, *options, "-q", "--keep-above", "-1")
    assert [(row["keep"], row["tokens"]) for row in every] == [(1.0, 32.0)] * 3
    plain = json_of("predict", *videos, *options, "-q", "--keep", 1)
    assert [row["predictions"] for row in every] == [row["predictions"] for row in plain]
    evaluated = json_of("eval", "-c", classifier_run, *QUICK, "--keep-above", "0")
    threshold = evaluated["thresholds"][3]["above"]
    one, three = (
        json_of("predict", *videos, *options, "-q", "--keep-above", threshold, "--batch", batch)
        for batch in (1, 3)
    )
    assert [row["tokens"] for row in one] == [row["tokens"] for row in three]
    for row, other in zip(one, three, strict=True):
        pairs = zip(row["predictions"], other["predictions"], strict=True)
        assert all(a["probability"] == pytest.approx(b["probability"], abs=1e-5) for a, b in pairs)
    shown = called("predict", *videos, *options, "--keep-above", threshold, "--format", "csv")
    assert shown.stdout.splitlines()[0].endswith(",keep,tokens,gmacs")
    assert "a view on average: keep ratio 0." in shown.stderr
    window = ["--timeline", "--window", 1, "--keep-above", threshold]
    (row,) = json_of("predict", videos[0], "-c", classifier_run, "-q", *window)
    assert all(part["gmacs"] > 0 for part in row["windows"])


def test_thresholds_that_do_not_go_are_refused_in_one_line(classifier_run: Path, clip_files: Path):
    of_model = ["-c", classifier_run]
    for text, problem in {"many": "give thresholds", "nan": "give thresholds", "1,1": "given twice"}.items():
        assert problem in refused("eval", *of_model, "--keep-above", text, code=2)
    both = ["--keep", "0.5", "--keep-above", "0.1"]
    message = refused("predict", clip_files / "clip0.mp4", *of_model, *both, code=2)
    assert "--keep-above 0.1: takes the place of --keep; leave one of them out" in message
    ascending = ["--set", "finetune.selection.order=ascending", "--keep-above", "0.1"]
    assert "does not keep the most important tokens" in refused("eval", *of_model, *ascending, code=2)
