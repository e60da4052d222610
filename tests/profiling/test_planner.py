import json
from pathlib import Path

import pytest
from profiles import json_profile, profile_of
from small_runs import refused, sets

from everest.config.recipe import load_recipe
from everest.profiling import timing
from everest.profiling.plan import DECODE_MS, GPUS, HAND_OVER_MS, PASS_SECONDS, SHARE, plan_pretraining

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
MEASURED = json.loads((RESULTS / "gpu_page.json").read_text())["rows"]


def plan(recipe: str, gpu: str, *overrides: str, videos: int = 100, epochs: int = 1) -> dict:
    return plan_pretraining(load_recipe(recipe, overrides=overrides), gpu, videos=videos, epochs=epochs)


def test_hours_follow_from_flops_peak_and_share_and_the_sentence_is_printed_last():
    options = ("--videos", "10240", "--epochs", "800", "--gpu", "H200", "--set", "train.workers=128")
    planned = json_profile(*options)["plan"]
    clips = 800 * 10240
    flops = 6 * 19.8072768e9  # forward and backward, Table 1's GMACs
    seconds = clips * flops / (SHARE * 989e12) + clips / 1024 * PASS_SECONDS
    assert planned["hours"] == pytest.approx(seconds / 3600, rel=1e-3)
    assert (planned["fits"], planned["batch"]) == (True, 1024)
    assert planned["memory_gib"] < 139
    small = ("data.size=32", "model.tubelet=[2, 8, 8]", "model.depth=1", "train.workers=128")
    sentence = plan("k400", "h200", *small, videos=10_240, epochs=800)["sentence"]
    assert profile_of(*options, *sets(*small)).stdout.splitlines()[-1] == sentence


def test_the_loader_limits_a_fast_gpu_and_frame_selection_decodes_more_frames():
    alphas = (f"pretrain.frame_selection.alpha={alpha}" for alpha in (1, 1.5))
    options = {"videos": 100_000, "epochs": 80}
    one, other = (plan("k400", "h200", "train.workers=1", alpha, **options) for alpha in alphas)
    clips = 80 * (100_000 // 1024 * 1024)  # without the incomplete batch of each epoch
    assert one["hours"] == pytest.approx(clips * (DECODE_MS + HAND_OVER_MS) / 1000 / 3600, rel=1e-3)
    assert other["hours"] / one["hours"] == pytest.approx(1.5)
    assert "limited by reading videos" in one["sentence"]
    assert one["limit"] == "loader"


@pytest.mark.parametrize(
    ("item", "views", "tolerance"),
    [("loader 15 workers", 1, 0.01), ("loader 15 workers", 4, 0.01), ("run", 1, 0.06), ("run", 4, 0.09)],
)
def test_a_plan_comes_near_what_was_measured_on_the_h100(item: str, views: int, tolerance: float):
    plural = "s" if views > 1 else ""
    name = f"run {views}_view{plural}" if item == "run" else f"{item}, {views} views"
    (measured,) = (row["clips_per_second"] for row in MEASURED if row["item"] == name)
    overrides = [f"pretrain.views_per_decode={views}", "pretrain.batch_size=256", "train.workers=15"]
    recipe = load_recipe("k400", overrides=overrides)
    planned = plan_pretraining(recipe, "h100", videos=25_600, epochs=8)
    assert planned["limit"] == "loader"
    assert 8 * 25_600 * views / planned["hours"] / 3600 == pytest.approx(measured, rel=tolerance)


@pytest.mark.parametrize("clips", [128, 256, 1024])
def test_a_step_of_a_plan_takes_as_long_as_measured_on_the_h100(clips: int):
    (measured,) = (
        row["ms"] for row in MEASURED if row["item"] == "step blocks-everest-b" and row["batch"] == clips
    )
    recipe = load_recipe("k400", overrides=[f"pretrain.batch_size={clips}"])
    planned = plan_pretraining(recipe, "h100", videos=clips, epochs=1000, loader=1e9)
    assert planned["limit"] == "step"
    assert 3600 * planned["hours"] == pytest.approx(measured, rel=0.03)


def test_several_gpus_divide_the_steps_and_have_workers_each():
    for workers, limit in ((1, "loader"), (500, "step")):
        recipe = load_recipe("k400", overrides=[f"train.workers={workers}"])
        one, four = (plan_pretraining(recipe, "h100", videos=102_400, epochs=8, gpus=n) for n in (1, 4))
        assert (one["limit"], four["limit"]) == (limit, limit)
        assert one["hours"] / four["hours"] == pytest.approx(4, rel=0.05)
    hours = f"{four['step_hours']:.1f} hours, reading alone {four['loader_hours']:.1f}. "
    assert f"on 4 H100, limited by the GPUs: the steps alone take {hours}" in four["sentence"]
    assert "4 GPUs as fast as 4 times one" in four["sentence"]
    assert "does not divide over 3 processes" in refused("profile --gpu t4 --videos 9 --gpus 3", code=2)


def test_a_measured_loader_replaces_the_assumed_one(clip_files: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "LOADER_SECONDS", 0.2)
    monkeypatch.setattr(timing, "READING_SECONDS", 0.1)
    small = ("--backbone", "vit-tiny", "--frames", 4, "--size", 64, "--data", clip_files)
    document = json_profile(*small, "--videos", 4096, "--epochs", 9, "--gpu", "t4", "--gpus", 2)
    speed = document["stages"]["pretrain"]["loading"]["clips_per_second"]
    assert f"the {speed:.0f} clips/s that this machine's loader reached" in document["plan"]["sentence"]
    assert "measured" not in document["stages"]["pretrain"]  # a step of this machine is not of the plan
    assert document["plan"]["loader_hours"] == pytest.approx(9 * 4096 / speed / 3600)
    assert document["plan"]["hours"] == max(document["plan"][f"{each}_hours"] for each in ("step", "loader"))
    loading = document["stages"]["pretrain"]["loading"]
    assert loading["step_clips_per_second"] == document["plan"]["step_clips_per_second"]


@pytest.mark.parametrize("gpu", GPUS)
def test_the_sentence_states_hours_memory_and_the_assumption(gpu: str):
    planned = plan("k400", gpu, videos=10_000, epochs=800)
    assert f"{planned['hours']:.1f} hours on one {GPUS[gpu].name}" in planned["sentence"]
    assert f"It fits in memory: {planned['batch']} clips" in planned["sentence"]
    assert "Assumed: 30% of" in planned["sentence"]
    assert planned["memory_gib"] <= GPUS[gpu].gib


@pytest.mark.slow
def test_a_run_that_does_not_fit_says_so_with_a_remedy():
    huge = ("model.backbone=vit-h", "data.frames=512")
    planned = plan("k400", "t4", *huge)
    assert (planned["fits"], planned["hours"], planned["batch"]) == (False, None, 0)
    assert "does not fit on one T4" in planned["sentence"]
    assert "train.checkpointing=true" in planned["sentence"]
    assert plan("k400", "h200", *huge)["fits"]


@pytest.mark.slow
def test_a_larger_tokenizer_takes_more_memory():
    small, large = (plan("lvmae-128", "4090", f"tokenizer.size={size}") for size in ("lite", "magvit-b"))
    assert small["fits"]
    assert large["fits"]
    assert large["memory_gib"] - small["memory_gib"] > 0.5


def test_between_views_a_pass_has_all_clips_of_a_step():
    few, many = (plan("views", "t4", f"pretrain.batch_size={batch}") for batch in (16, 4096))
    assert (few["fits"], few["batch"]) == (True, 16)
    assert not many["fits"]
    assert many["memory_gib"] > GPUS["t4"].gib


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--videos 5", "--videos and --epochs need --gpu"),
        ("--epochs 5", "--videos and --epochs need --gpu"),
        ("--gpu a100 --videos 5 --gpus cpu", "--gpus needs --measure, --data or --latency, or is a number"),
        ("--gpu a100", "--gpu plans a run: add --videos N"),
        ("--gpu a10 --videos 5", "--gpu: unknown name 'a10'; did you mean 'a100'?"),
    ],
)
def test_options_of_a_plan_that_miss_another_are_one_line(options: str, message: str):
    assert message in refused(f"profile {options}", code=2)
