import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import json_profile, profile_of
from small_runs import refused

from everest.config.recipe import load_recipe
from everest.profiling.planner import GPUS, HAND_OVER_MS, PASS_SECONDS, SHARE, plan_pretraining


def plan(*options: object) -> dict:
    return json_profile(*options)["plan"]


def test_hours_follow_from_flops_peak_and_share():
    planned = plan("--videos", "10240", "--epochs", "800", "--gpu", "h200")
    clips = 800 * 10240
    flops = 6 * 19.8072768e9  # forward and backward, Table 1's GMACs
    seconds = clips * flops / (SHARE * 989e12) + clips / 1024 * PASS_SECONDS
    assert planned["gpu_hours"] == pytest.approx(seconds / 3600, rel=1e-3)
    # 8 workers, a clip from each decoded video.
    assert planned["loader_hours"] == pytest.approx(clips * (13.0 + HAND_OVER_MS) / 8000 / 3600, rel=1e-3)
    assert planned["hours"] == max(planned["gpu_hours"], planned["loader_hours"])
    assert (planned["fits"], planned["batch"]) == (True, 1024)
    assert planned["memory_gib"] < 139


def test_frame_selection_decodes_more_frames():
    options = ("--videos", 1000, "--epochs", 80, "--gpu", "h200")
    alphas = (f"pretrain.frame_selection.alpha={alpha}" for alpha in (1, 1.5))
    one, other = (plan("--set", alpha, *options)["loader_hours"] for alpha in alphas)
    assert other / one == pytest.approx(1.5)


def test_tf32_is_planned_with_its_own_peak():
    fp32 = [*("--videos", "1000", "--epochs", "80"), *("--set", "train.precision=fp32")]
    tf32 = [*fp32, "--set", "train.tf32=true"]
    shares = {
        gpu: [plan(*options, "--gpu", gpu)["sentence"].split("measured: ")[1] for options in (fp32, tf32)]
        for gpu in GPUS
    }
    for gpu, (before, after) in shares.items():
        assert before.startswith(f"40% of {GPUS[gpu].fp32_tflops:g} TFLOP/s")
        # The 4090's TF32 is as fast as its float32 at best; the T4 has none.
        is_faster = gpu in ("h200", "a100")
        assert after.startswith(f"20% of {GPUS[gpu].tf32_tflops:g}") if is_faster else after == before


@pytest.mark.parametrize("gpu", GPUS)
def test_the_sentence_states_hours_memory_and_the_assumption(gpu: str):
    planned = plan("--videos", "10000", "--epochs", "800", "--gpu", gpu.upper())
    assert GPUS[gpu].name in planned["sentence"]
    assert f"{planned['hours']:.1f} hours" in planned["sentence"]
    assert f"and fits: {planned['batch']} clips" in planned["sentence"]
    assert "Assumed, not measured: 20% of" in planned["sentence"]
    assert ("no bf16: train.precision=auto is fp16" in planned["sentence"]) == (gpu == "t4")
    text = profile_of("--videos", "10000", "--epochs", "800", "--gpu", gpu)
    assert text.stdout.splitlines()[-1] == planned["sentence"]


def test_a_run_that_does_not_fit_says_so_with_a_remedy():
    huge = ["--backbone", "vit-h", "--frames", "512", "--videos", "100"]
    planned = plan(*huge, "--gpu", "t4")
    assert (planned["fits"], planned["hours"], planned["batch"]) == (False, None, 0)
    assert "does not fit on one T4" in planned["sentence"]
    assert "train.checkpointing=true" in planned["sentence"]
    assert plan(*huge, "--gpu", "h200")["fits"]


def test_a_larger_tokenizer_takes_more_memory():
    small, large = (
        plan_pretraining(load_recipe("lvmae-128", overrides=overrides), GPUS["4090"], videos=100, epochs=1)
        for overrides in ([], ["tokenizer.size=magvit-b"])
    )
    assert small["fits"]
    assert large["fits"]
    assert large["memory_gib"] - small["memory_gib"] > 0.5


def test_between_views_a_pass_has_all_clips_of_a_step():
    few, many = (
        plan_pretraining(
            load_recipe("views", overrides=[f"pretrain.batch_size={batch}"]), GPUS["t4"], videos=100, epochs=1
        )
        for batch in (16, 4096)
    )
    assert (few["fits"], few["batch"]) == (True, 16)
    assert not many["fits"]
    assert many["memory_gib"] > GPUS["t4"].gib
    assert "try a smaller pretrain.batch_size, train.checkpointing=true" in many["sentence"]
    assert "views_per_decode" not in few["sentence"]


@given(
    videos=st.integers(1, 10**6),
    epochs=st.integers(1, 5000),
    gpu=st.sampled_from(sorted(GPUS)),
    recipe=st.sampled_from(["small", "custom", "k400"]),
)
@pytest.mark.slow
def test_more_epochs_take_proportionally_longer(videos: int, epochs: int, gpu: str, recipe: str):
    loaded = load_recipe(recipe)
    once = plan_pretraining(loaded, GPUS[gpu], videos=videos, epochs=epochs)
    twice = plan_pretraining(loaded, GPUS[gpu], videos=videos, epochs=2 * epochs)
    assert once["fits"]
    assert twice["hours"] == pytest.approx(2 * once["hours"], rel=0.01, abs=2e-4)
    assert once["memory_gib"] <= GPUS[gpu].gib
    assert twice["batch"] == once["batch"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--videos 5", "--videos and --epochs plan a run on a GPU: add --gpu, one of h200, a100, 4090, t4"),
        ("--epochs 5", "--videos and --epochs plan a run on a GPU"),
        ("--gpu a100", "--gpu plans a run: add --videos N"),
        ("--gpu a10 --videos 5", "--gpu: unknown name 'a10'; did you mean 'a100'?"),
    ],
)
def test_options_of_a_plan_that_miss_another_are_one_line(options: str, message: str):
    assert message in refused(f"profile {options}", code=2)
