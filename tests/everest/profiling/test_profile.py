import json
from collections.abc import Callable
from dataclasses import astuple, replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from pydantic import TypeAdapter
from small_runs import called, json_of, refused, sets
from torch.utils.flop_counter import FlopCounterMode

from everest.config.recipe import load_recipe
from everest.config.yaml import read_yaml
from everest.errors import DataError, RecipeError
from everest.inference.videos import Batching
from everest.lists.sample import Sample
from everest.models.clip_spec import ModelSpec
from everest.models.cost import Macs, count_macs, count_tokens
from everest.profiling import timing
from everest.profiling.profile import (
    METHODS,
    PROFILED_STAGES,
    ProfiledStage,
    make_stage_spec,
    profile,
    stage_cost,
)
from everest.profiling.timing import Speed, measure_stage, plan_run
from everest_workflows.recordings import speed

CLIP = ("data.frames=4", "data.size=32")
TINY = ("model.backbone=vit-tiny", "model.tubelet=[2, 8, 8]", *CLIP, "model.depth=2")
profile_of = partial(called, "profile")
json_profile = partial(json_of, "profile")


class PaperFigure(NamedTuple):
    """A row of paper_tables.yaml, which explains the keys."""

    table: int
    what: str
    printed: str
    of: tuple[str, ProfiledStage, tuple[str, ...]]
    unit: str = "GMACs"
    note: str = ""


@cache
def estimate_cost(recipe: str, stage: ProfiledStage, overrides: tuple[str, ...]) -> dict[str, Any]:
    return stage_cost(load_recipe(recipe, overrides=overrides), stage, bytes_per_value=2)


def macs_of(recipe: str, stage: ProfiledStage, overrides: tuple[str, ...] = ()) -> Macs:
    return count_macs(make_stage_spec(load_recipe(recipe, overrides=overrides), stage))


def paper_figures() -> list[PaperFigure]:
    tables = Path(__file__).with_name("paper_tables.yaml")
    return TypeAdapter(list[PaperFigure]).validate_python(read_yaml(tables.read_text("utf-8"), str(tables)))


def test_every_printed_digit_of_computation_and_parameters_is_reproduced():
    figures = paper_figures()
    assert {figure.table for figure in figures} == {1, 5, 10, 11, 12, 15}
    assert len(figures) == 52
    others = []
    for figure in figures:
        cost = estimate_cost(*figure.of)
        ours = cost["gmacs"] if figure.unit == "GMACs" else cost["parameters"] / 1e6
        if f"{ours:.{len(figure.printed.partition('.')[2])}f}" != figure.printed:
            others.append(figure.what)
    assert others == ["MAE (ST-MAE) pre-training"]


def test_counts_are_those_of_fvcore_on_the_released_modules(golden: Callable[[str], Path]):
    told = json.loads(golden("paper_costs.json").read_text())
    figures = [figure for figure in paper_figures() if figure.unit == "GMACs"]
    ours = {(str(figure.table), *astuple(macs_of(*figure.of))[:4]) for figure in figures}
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
    """Tubelets that this program embeds: those encoded, and for importance all but the first time index."""
    measures = spec.selection.strategy == "redundancy-robust"
    changes = spec.candidate_frames // spec.model.tubelet[0] - 1 if measures else 0
    return count_tokens(spec).visible + changes * spec.grid.num_positions


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
    # torch does not count LayerNorm; everest embeds and decodes fewer tokens than the official code.
    expected = macs.linear + macs.attention - left_out_of_last_block(spec)
    offered = spec.candidate_frames // spec.model.tubelet[0] * spec.grid.num_positions
    expected += macs.embedding * embedded(spec) // offered
    assert counted_by_torch(spec) == expected


def test_a_class_token_costs_what_st_maes_costs(golden: Callable[[str], Path]):
    entries = json.loads(golden("paper_costs.json").read_text())["entries"]
    official = next(macs for _, what, *macs in entries if what == "FT MAE (ST-MAE) B")
    found = macs_of("st-mae-k400", "finetune", ("model.class_token=true",))
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
        (["--set", "pretrain.selection.keep_ratio=0.4"], 21.542908),
        (["--recipe", "videomae-k400"], 35.481919),
        pytest.param(
            ["--recipe", "videomae-k400", "--set", "pretrain.selection.mask_ratio=0.75"],
            57.500642,
            marks=pytest.mark.slow,
        ),
        (["--set", "data.frames=24"], 30.649668),
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
    told = json_profile("--backbone", "vit-s", "--compare")
    assert [entry["method"] for entry in told["compare"]] == list(METHODS)
    assert told["compare"][0]["stages"] == told["stages"]
    assert told["compare"][1]["stages"]["pretrain"]["gmacs"] == pytest.approx(11.557245, abs=1e-6)
    shown = profile_of("--backbone", "vit-s", "--compare").stdout
    assert "GMACs" in shown
    assert "videomae-v2" in shown


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (f"--set data.frames={10**21}", "data.frames: must be at most"),
        ("--backbone vit-b --set model.backbone=vit-x", "model.backbone: unknown value 'vit-x'"),
        ("--epochs 5", "--labeled and --epochs need --videos N"),
        ("--gpus cpu", "--gpus needs --measure, --data, --videos or --latency"),
    ],
)
def test_impossible_options_are_one_line_and_code_2(arguments: str, line: str):
    message = refused(f"profile {arguments}", code=2)
    assert message.startswith(f"error: {line}")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("stage", PROFILED_STAGES)
def test_measured_steps_are_real(stage):
    found = measure_stage(load_recipe("k400", overrides=TINY), stage, batch=2, cpu=True)
    assert found.step_seconds > 0
    assert found.peak_memory_bytes > 0
    assert found.dump()["clips_per_second"] == pytest.approx(2 / found.step_seconds)


@pytest.fixture
def one_second(monkeypatch: pytest.MonkeyPatch) -> Speed:
    """A speed that `everest profile` measures: a clip a second in steps, and two a second in reading."""
    speed = Speed(
        device="cpu", precision="fp32", batch=4, step_seconds=4.0, peak_memory_bytes=1, read_seconds=0.5
    )
    monkeypatch.setattr(timing, "measure_stage", lambda *_, **__: speed)
    return speed


def test_a_plan_multiplies_the_measured_seconds_and_is_printed_last(one_second: Speed):
    options = ("--videos", 2048, "--labeled", 384, "--epochs", 2, *sets(*TINY))
    document = json_profile(*options)
    plan = document["plan"]
    assert (plan["step_hours"], plan["loader_hours"]) == (4096 / 3600, 2048 / 3600)
    assert plan["hours"] == 1.5 * 4096 / 3600  # on a CPU, steps and reading share the cores
    assert (plan["limit"], plan["batch"], plan["fits"]) == ("step", 4, True)
    tuning = document["finetune_plan"]
    assert tuning["hours"] == 1.5 * 384 * load_recipe("k400").finetune.epochs / 3600
    assert profile_of(*options).stdout.splitlines()[-2:] == [plan["sentence"], tuning["sentence"]]
    assert (
        "takes about 102 min: steps alone 68 min, reading alone 34 min (measured here on cpu"
        in plan["sentence"]
    )


def test_gpus_divide_the_steps_and_share_the_cores_that_read(one_second: Speed):
    recipe, speed = load_recipe("k400"), replace(one_second, device="H100")
    one, four = (plan_run(recipe, "pretrain", speed, videos=1024, gpus=gpus) for gpus in (1, 4))
    assert (one["step_hours"] / four["step_hours"], one["loader_hours"]) == (4, four["loader_hours"])
    assert (one["limit"], one["hours"]) == ("step", one["step_hours"])
    assert (four["limit"], four["hours"]) == ("loader", four["loader_hours"])
    assert "4 of them as fast as 4 times one" in four["sentence"]
    alone = plan_run(recipe, "pretrain", replace(speed, read_seconds=None), videos=1024)
    assert (alone["hours"], alone["loader_hours"]) == (one["hours"], None)
    assert "reading is not included: add --data DIR" in alone["sentence"]
    with pytest.raises(RecipeError, match="batch_size 1024 does not divide over 3 processes"):
        plan_run(recipe, "pretrain", speed, videos=9, gpus=3)


def test_nothing_is_planned_for_a_gpu_that_is_not_there():
    message = refused("profile --videos 1024 --gpus 4", code=5)
    assert "--gpus 4: no GPU here to measure; plan on a machine with one" in message


def test_the_decoder_of_128_frames_costs_what_its_specification_says():
    """Half-precision of the design's table: encoder and decoder blocks, without embedding and tokenizer."""
    changes = [(), ("pretrain.selection.strategy=tube",)]
    costs = [macs_of("lvmae-128", "pretrain", change) for change in changes]
    blocks = [2 * (macs.linear + macs.attention) / 1e9 for macs in costs]
    assert blocks == pytest.approx([278 + 106, 278 + 1144], rel=0.05)
    tokens = estimate_cost("lvmae-128", "pretrain", ())["tokens"]
    assert tokens == {"total": 12544, "kept": 3161, "visible": 1280, "target": 1881}


def test_tubes_are_dropped_in_fine_tuning_only():
    finetune, test = (estimate_cost("lvmae-128", stage, ()) for stage in ("finetune", "eval"))
    assert (finetune["tokens"]["kept"], test["tokens"]["kept"]) == (9984, 12544)
    assert 2 * finetune["gmacs"] / 1e3 == pytest.approx(5.4, rel=0.03)
    assert macs_of("lvmae-128", "eval").total > macs_of("lvmae-128", "finetune").total


def test_a_frozen_tokenizer_is_counted_separately():
    found = profile(load_recipe("lvmae-128"))["stages"]["pretrain"]
    # 1.0 TFLOP for 128 frames, by its designers' count of the encoder.
    assert 2 * found["tokenizer_gmacs"] == pytest.approx(1000, rel=0.05)
    assert "tokenizer_gmacs" not in estimate_cost("k400", "pretrain", ())


def test_a_timeline_without_windows_ends_in_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speed, "TIMED_SECONDS", 0.0)
    monkeypatch.setattr(speed, "compute_over_windows", lambda *_: iter(()))
    monkeypatch.setattr(speed, "PieceModel", SimpleNamespace(of_outputs=lambda _: None))
    model: Any = SimpleNamespace(outputs=None, views=SimpleNamespace(sampling="dense"))
    with pytest.raises(DataError, match=r"empty.mp4: no intact window within 0 s"):
        speed.time_windows(model, [Sample(path="empty.mp4")], Batching(window=1.0))
