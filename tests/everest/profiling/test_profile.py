import json
import re
from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import called, json_of, refused, sets
from torch.utils.flop_counter import FlopCounterMode

from everest.config.recipe import load_recipe
from everest.errors import DataError
from everest.lists.sample import Sample
from everest.models.clip_spec import ModelSpec
from everest.models.cost import count_macs, count_tokens
from everest.profiling import timing
from everest.profiling.other_gpu import (
    DECODE_MS,
    GPUS,
    HAND_OVER_MS,
    MJPEG_MS,
    PASS_SECONDS,
    PEAK_SHARE,
    plan_run,
)
from everest.profiling.profile import (
    METHODS,
    PROFILED_STAGES,
    compute_paper_figures,
    estimate_cost,
    make_stage_spec,
    profile,
)
from everest.profiling.timing import time_steps
from everest_workflows.recordings import speed

CLIP = ("data.frames=4", "data.size=32")
TINY = ("model.backbone=vit-tiny", "model.tubelet=[2, 8, 8]", *CLIP, "model.depth=2")
profile_of = partial(called, "profile")
json_profile = partial(json_of, "profile")


def test_every_printed_digit_of_computation_and_parameters_is_reproduced():
    rows = [row for row in (figure.dump() for figure in compute_paper_figures()) if row["ours"] is not None]
    computed = [row for row in rows if row["unit"] != "GB"]
    assert {row["table"] for row in computed} == {1, 5, 10, 11, 12, 15}
    assert len(computed) == 52
    others = [row["what"] for row in computed if row["rounded"] != row["paper"]]
    assert others == ["MAE (ST-MAE) pre-training"]
    memory = [row for row in rows if row["unit"] == "GB"]
    assert {row["table"] for row in memory} == {3, 4, 5}
    assert all(row["ours"] < float(row["paper"]) for row in memory)


def test_counts_are_those_of_fvcore_on_the_released_modules(golden: Callable[[str], Path]):
    told = json.loads(golden("paper_costs.json").read_text())
    ours = {
        (str(figure.table), *astuple(estimate_cost(*figure.of).macs)[:4])
        for figure in compute_paper_figures()
        if figure.of is not None and figure.unit == "GMACs"
    }
    for table, entry, *macs in told["entries"]:
        assert (table, *macs) in ours or "ST-MAE" in entry, entry


def counted_by_torch(spec: ModelSpec) -> int:
    """Multiply-accumulates of the products that a forward pass runs."""
    # Without gradients: the counter of torch 2.15 fails at a module that is handed a parameter.
    with torch.device("meta"):
        model = spec.build().eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, spec.candidate_frames, *spec.size, device="meta"))
    return counter.get_total_flops() // 2


def embedded(spec: ModelSpec) -> int:
    """Tubelets that this program embeds: the encoded, and for importance those of all slices but one."""
    measures = spec.selection.strategy == "redundancy-robust"
    changes = spec.candidate_frames // spec.model.tubelet[0] - 1 if measures else 0
    return count_tokens(spec).visible + changes * spec.grid.per_slice


def left_out_of_last_block(spec: ModelSpec) -> int:
    """What last blocks do not compute: queries, attention and MLP of tokens that have no output.

    These are the class token in the encoder and the visible tokens in the decoder.
    """
    tokens, size = count_tokens(spec), spec.model.backbone_size
    stacks = [(size.width, int(spec.model.class_token), tokens.visible)]
    if spec.kind == "pretrain":
        stacks.append((size.decoder_width, tokens.visible, tokens.target))
    return sum(
        (1 + 1 + 8) * width**2 * without
        + 2 * without * (without + outputs) * width  # queries, projection, MLP
        for width, without, outputs in stacks
    )


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        *((name, ()) for name in METHODS.values()),
        ("k400", ("pretrain.frame_selection.alpha=1.5",)),
        ("k400", ("model.embedding_layers=3", "model.tubelet=[2, 16, 16]", "data.size=64")),
        ("k400", ("data.frames=24", "model.backbone=vit-s")),
        ("k400", ("model.pooling=class-attention",)),
        ("k400", ("model.class_token=true", "model.positions=learned-separable")),
        ("k400", ("model.class_token=true", "model.pooling=class-attention")),
    ],
)
def test_counts_equal_torchs_except_for_known_terms(recipe: str, changes: tuple[str, ...], stage):
    spec = make_stage_spec(load_recipe(recipe, overrides=[*TINY, *changes]), stage)
    macs = count_macs(spec)
    # torch does not count LayerNorm; everest embeds and decodes fewer tokens than the released programs.
    expected = macs.linear + macs.attention - left_out_of_last_block(spec)
    offered = spec.candidate_frames // spec.model.tubelet[0] * spec.grid.per_slice
    expected += macs.embedding * embedded(spec) // offered
    assert counted_by_torch(spec) == expected


def test_a_class_token_costs_what_st_maes_costs(golden: Callable[[str], Path]):
    entries = json.loads(golden("paper_costs.json").read_text())["entries"]
    official = next(macs for _, what, *macs in entries if what == "FT MAE (ST-MAE) B")
    found = estimate_cost("st-mae-k400", "finetune", ("model.class_token=true",)).macs
    head = found.linear - official[1]  # with other numbers of classes
    assert (found.embedding, found.attention) == (official[0], official[2])
    assert head % 768 == 0
    assert abs(head) < 768 * 400


def test_json_has_the_documented_keys():
    told = json_profile("--backbone", "vit-b")
    assert (told["backbone"], told["frames"], told["size"], told["compare"]) == ("vit-b", 16, 224, [])
    pretrain, finetune, test = (told["stages"][stage] for stage in PROFILED_STAGES)
    assert pretrain["tokens"] == {"total": 1568, "kept": 470, "visible": 156, "target": 314}
    assert finetune["tokens"] == {"total": 1568, "kept": 940}
    assert pretrain["gmacs"] == pytest.approx(19.8072768)
    for stage in told["stages"].values():
        assert stage["gflops"] == 2 * stage["gmacs"]
    assert pretrain["parameters"] == 94_210_944
    assert pretrain["model_state_bytes"] == 16 * pretrain["parameters"]
    assert test["model_state_bytes"] == 4 * test["parameters"]
    views = test["views"]
    assert test["gmacs"] == pytest.approx(views["clips"] * views["crops"] * finetune["gmacs"])


@pytest.mark.parametrize(
    ("arguments", "gmacs"),
    [
        (["--keep", "0.4"], 21.542908),
        (["--method", "videomae"], 35.481919),
        (["-mvideomae", "--set=pretrain.selection.strategy=redundancy-robust", "--keep=0.4"], 21.542908),
        pytest.param(
            ["--method", "videomae", "--set", "pretrain.selection.mask_ratio=0.75"],
            57.500642,
            marks=pytest.mark.slow,
        ),
        (["--frames", "24"], 30.649668),
        (["--backbone", "vit_s"], 5.748033),
        (["--recipe", "videomae-ucf101"], 35.481919),
        pytest.param(["--set", "model.embedding_layers=2"], 34.604781, marks=pytest.mark.slow),
    ],
)
def test_options_change_what_is_counted(arguments: list[str], gmacs: float):
    told = json_profile(*arguments)
    assert told["stages"]["pretrain"]["gmacs"] == pytest.approx(gmacs, abs=1e-6)


@pytest.mark.slow
def test_compare_puts_all_methods_side_by_side():
    told = json_profile("--backbone", "vit-s", "--keep", "0.2", "--compare")
    assert [entry["method"] for entry in told["compare"]] == list(METHODS)
    assert told["compare"][0]["stages"] == told["stages"]
    assert told["compare"][1]["stages"]["pretrain"]["gmacs"] == pytest.approx(11.557245, abs=1e-6)
    shown = profile_of("--backbone", "vit-s", "--compare").stdout
    assert "GMACs" in shown
    assert "videomae-v2" in shown


def test_paper_prints_every_table():
    shown = profile_of("--paper").stdout
    for table in (1, 3, 4, 5, 10, 11, 12, 15):
        assert re.search(rf"^Table {table}: \w+", shown, re.MULTILINE)  # with its subject
    assert "Table 7 and the text have 0.3" in shown
    assert "needs GPU" in shown


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--keep 0.05", "k400.yaml: pretrain.selection.visible_ratio: 0.1 is more than keep_ratio (0.05)"),
        ("--method videomae --keep 0.2", "--keep: strategy tube has no keep ratio"),
        (f"--frames {10**21}", "data.frames: must be at most"),
        ("--size 0", "--size 0: give a number of pixels"),
        ("--size 224x", "--size 224x: give a number of pixels, or HEIGHTxWIDTH"),
        ("--backbone vit-b --set model.backbone=vit-x", "model.backbone: unknown value 'vit-x'"),
        ("--method mae", "--method: unknown name 'mae'"),
        ("--recipe k400 --method videomae", "--method and --recipe both choose a recipe"),
        ("--videos 5", "--videos, --labeled and --epochs need --gpu"),
        ("--epochs 5", "--videos, --labeled and --epochs need --gpu"),
        ("--gpu a100 --videos 5 --gpus cpu", "--gpus needs --measure, --data or --latency, or is a number"),
        ("--gpu a100", "--gpu plans a run: add --videos N"),
        ("--gpu a10 --videos 5", "--gpu: unknown name 'a10'; did you mean 'a100'?"),
        ("--gpu t4 --videos 9 --gpus 3", "batch_size 1024 does not divide over 3 processes"),
    ],
)
def test_impossible_options_are_one_line_and_code_2(arguments: str, line: str):
    message = refused(f"profile {arguments}", code=2)
    assert message.startswith(f"error: {line}")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("stage", PROFILED_STAGES)
def test_measured_steps_are_real(stage):
    found = time_steps(load_recipe("k400", overrides=TINY), stage, batch=2)
    seconds = found["step_seconds"]
    assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
    assert found["clips_per_second"] == pytest.approx(2 / seconds["median"])
    assert found["peak_memory_bytes"] > 0


def test_the_decoder_of_128_frames_costs_what_its_specification_says():
    """Half-precision of the design's table: encoder and decoder blocks, without embedding and tokenizer."""
    changes = [(), ("pretrain.selection.strategy=tube",)]
    adaptive, every = (estimate_cost("lvmae-128", "pretrain", change) for change in changes)
    blocks = [2 * (cost.macs.linear + cost.macs.attention) / 1e9 for cost in (adaptive, every)]
    assert blocks == pytest.approx([278 + 106, 278 + 1144], rel=0.05)
    assert adaptive.tokens == {"total": 12544, "kept": 3161, "visible": 1280, "target": 1881}


def test_tubes_are_dropped_in_fine_tuning_only():
    finetune, test = (estimate_cost("lvmae-128", stage, ()) for stage in ("finetune", "eval"))
    assert (finetune.tokens["kept"], test.tokens["kept"]) == (9984, 12544)
    assert 2 * finetune.macs.total / 1e12 == pytest.approx(5.4, rel=0.03)
    assert test.macs.total > finetune.macs.total


def test_a_frozen_tokenizer_is_counted_separately():
    found = profile(load_recipe("lvmae-128"))["stages"]["pretrain"]
    # 1.0 TFLOP for 128 frames, by its designers' count of the encoder.
    assert 2 * found["tokenizer_gmacs"] == pytest.approx(1000, rel=0.05)
    assert "tokenizer_gmacs" not in estimate_cost("k400", "pretrain", ()).dump()


def plan(recipe: str, gpu: str, *overrides: str, videos: int = 100, epochs: int = 1, **options: Any) -> dict:
    read = load_recipe(recipe, overrides=overrides)
    return plan_run(read, gpu, videos=videos, epochs=epochs, **options)


def test_hours_follow_from_flops_peak_and_share_and_the_sentence_is_printed_last():
    options = ("--videos", "10240", "--epochs", "800", "--gpu", "H200", "--set", "train.workers=128")
    planned = json_profile(*options)["plan"]
    clips = 800 * 10240
    flops = 6 * 19.8072768e9  # forward and backward, Table 1's GMACs
    seconds = clips * flops / (PEAK_SHARE * 989e12) + clips / 1024 * PASS_SECONDS
    assert planned["hours"] == pytest.approx(seconds / 3600, rel=1e-3)
    assert (planned["fits"], planned["batch"]) == (True, 1024)
    assert planned["memory_gib"] < 139
    small = ("data.size=32", "model.tubelet=[2, 8, 8]", "model.depth=1", "train.workers=128")
    sentence = plan("k400", "h200", *small, videos=10_240, epochs=800)["sentence"]
    assert profile_of(*options, *sets(*small)).stdout.splitlines()[-1] == sentence


def test_the_plan_of_300_000_unlabeled_and_20_000_labeled_videos_is_that_of_the_page():
    page = (Path(__file__).parents[3] / "docs" / "large.md").read_text("utf-8")
    place = ("--gpu", "h100", "--gpus", "8", "--codec", "mjpeg", "--set", "train.workers=15")
    size = ("--recipe", "k400", "--epochs", "160", "--videos", "300000", "--labeled", "20000")
    documents = [
        json_profile(*size, *place, *sets(*changes))
        for changes in (
            (),
            ("pretrain.selection={strategy: tube, mask_ratio: 0.9}", "finetune.selection={strategy: all}"),
        )
    ]
    clips = 35 * (20_000 // 384 * 384)
    for document in documents:
        tuning = document["finetune_plan"]
        reading = clips * (MJPEG_MS + HAND_OVER_MS) / 1000 / (8 * 15)
        assert tuning["loader_hours"] == pytest.approx(reading / 3600)
        assert "Fine-tuning vit-b on 20,000 videos for 35 epochs takes" in tuning["sentence"]
        assert "120 workers at 85 clips/s each (320 x 240, Motion JPEG)" in tuning["sentence"]
    for row, key in (("reading Motion JPEG", "loader_hours"), ("steps", "step_hours")):
        hours = " | ".join(f"{document['plan'][key]:.1f}" for document in documents)
        assert re.search(rf"^\| {row}.* \| {hours} \|$", page, re.MULTILINE), (row, hours)


def test_the_loader_limits_a_fast_gpu_and_frame_selection_decodes_more_frames():
    alphas = (f"pretrain.frame_selection.alpha={alpha}" for alpha in (1, 1.5))
    options = {"videos": 100_000, "epochs": 80}
    one, other = (plan("k400", "h200", "train.workers=1", alpha, **options) for alpha in alphas)
    clips = 80 * (100_000 // 1024 * 1024)  # without the incomplete batch of each epoch
    assert one["hours"] == pytest.approx(clips * (DECODE_MS + HAND_OVER_MS) / 1000 / 3600, rel=1e-3)
    assert other["hours"] / one["hours"] == pytest.approx(1.5)
    assert "limited by reading videos" in one["sentence"]
    assert one["limit"] == "loader"


def test_several_gpus_divide_the_steps_and_have_workers_each():
    for workers, limit in ((1, "loader"), (500, "step")):
        planned = partial(plan, "k400", "h100", f"train.workers={workers}", videos=102_400, epochs=8)
        one, four = planned(gpus=1), planned(gpus=4)
        assert (one["limit"], four["limit"]) == (limit, limit)
        assert one["hours"] / four["hours"] == pytest.approx(4, rel=0.05)
    step, loader = (60 * four[key] for key in ("step_hours", "loader_hours"))
    minutes = f"{step:.1f} minutes, reading alone {loader:.1f} minutes. "
    assert f"on 4 H100, limited by the GPUs: the steps alone take {minutes}" in four["sentence"]
    assert "4 GPUs as fast as 4 times one" in four["sentence"]


def test_a_measured_loader_replaces_the_assumed_one(clip_files: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "LOADER_SECONDS", 0.2)
    monkeypatch.setattr(timing, "READING_SECONDS", 0.1)
    small = ("--backbone", "vit-tiny", "--frames", 4, "--size", 64, *sets("model.depth=2", "train.workers=1"))
    document = json_profile(
        *small, "--data", clip_files, "--videos", 4096, "--epochs", 9, "--gpu", "t4", "--gpus", 2
    )
    speed = document["stages"]["pretrain"]["loading"]["clips_per_second"]
    assert f"the {speed:.0f} clips/s that this machine's loader reached" in document["plan"]["sentence"]
    assert "measured" not in document["stages"]["pretrain"]  # a step of this machine is not of the plan
    assert document["plan"]["loader_hours"] == pytest.approx(9 * 4096 / speed / 3600)
    assert document["plan"]["hours"] == max(document["plan"][f"{each}_hours"] for each in ("step", "loader"))
    loading = document["stages"]["pretrain"]["loading"]
    assert loading["step_clips_per_second"] == document["plan"]["step_clips_per_second"]


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


def test_a_timeline_without_windows_ends_in_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speed, "TIMED_SECONDS", 0.0)
    monkeypatch.setattr(speed, "compute_over_windows", lambda *_: iter(()))
    job: Any = SimpleNamespace(
        model=SimpleNamespace(outputs=None), samples=[Sample(path="empty.mp4")], passes=None
    )
    with pytest.raises(DataError, match=r"empty.mp4: no intact window within 0 s"):
        speed.time_timeline(job)
