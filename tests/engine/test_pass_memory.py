"""The memory of a pass: advice where it does not fit, and the check on a CPU."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from small_runs import called

from everest.config.stage_settings import (
    ContrastSettings,
    FinetuneSettings,
    PixelPretrainSettings,
    PretrainSettings,
    ViewPretrainSettings,
)
from everest.engine.pass_memory import PassMemory
from everest.engine.plan import StagePlan, plan_stage
from everest.errors import EnvironmentProblem
from everest.system import machine

GIB = 2**30


def bytes_of(checkpointing: bool, bytes_per_value: int) -> int:
    """Half of them float32 in any precision: 1 GiB in float32, a quarter of it with checkpointing."""
    return (4 + bytes_per_value) * 2 ** (25 if checkpointing else 27)


def memory(*, checkpointing: bool = False, compares_clips: bool = False) -> PassMemory:
    return PassMemory(
        bytes_of=bytes_of,
        state_bytes=8 * GIB,
        copy_bytes=0,
        bytes_per_value=4,
        checkpointing=checkpointing,
        compares_clips=compares_clips,
    )


def of_32_clips(stage: PretrainSettings | None = None) -> StagePlan:
    stage = stage or PixelPretrainSettings()
    return plan_stage(stage, num_videos=1000, processes=1, largest_micro_batch=32)


def test_advice_has_numbers_that_shrink():
    advice = memory().advice(of_32_clips())
    assert "a pass of 32 clips takes about 32.00 GiB" in advice
    assert "try train.micro_batch=16 (about 16.00 GiB) or " in advice
    assert advice.endswith(
        " or train.checkpointing=true (about 8.00 GiB) or train.precision=bf16 (about 24.00 GiB)"
    )


@pytest.mark.parametrize(
    ("batch", "views", "processes", "fewer"),
    [
        (32, 2, 1, 16),
        (12, 4, 1, 8),
        (10, 2, 1, 4),
        (6, 2, 1, 4),
        (4, 2, 1, None),
        (4, 2, 2, None),
        (12, 2, 2, 4),
    ],
)
def test_advice_between_views_names_a_possible_batch(batch, views, processes, fewer):
    stage = ViewPretrainSettings(batch_size=batch, views=ContrastSettings(number=views))
    plan = plan_stage(stage, num_videos=100, processes=processes, largest_micro_batch=1)
    named = re.search(r"pretrain\.batch_size=(\d+)", memory(compares_clips=True).advice(plan))
    assert (None if named is None else int(named[1])) == fewer
    if fewer is not None:
        smaller = replace(stage, batch_size=fewer)
        plan_stage(smaller, num_videos=100, processes=processes, largest_micro_batch=1)


@pytest.mark.parametrize(
    ("room", "named"),
    [
        (31 * GIB, ["micro_batch=31 (about 31.00 GiB)", "train.checkpointing=true (about 8.00 GiB)"]),
        (7 * GIB, ["train.micro_batch=7 (about 7.00 GiB)"]),
        (GIB // 2, ["a smaller model, or shorter or smaller clips"]),
    ],
)
def test_in_a_known_room_only_settings_that_fit_are_advised(room: int, named: list[str]):
    advice = memory().advice(of_32_clips(), room)
    assert all(text in advice for text in named)
    assert "bf16" not in advice
    sizes = [float(size) for size in re.findall(r"about ([\d.]+) GiB\)", advice)]
    assert all(size * GIB <= room for size in sizes)


def test_advice_names_no_setting_that_the_run_has():
    stage = FinetuneSettings(batch_size=8, mixup=0.8)
    plan = plan_stage(stage, num_videos=100, processes=1, largest_micro_batch=2)  # the smallest: a pair
    plain = replace(memory(checkpointing=True), bytes_per_value=2, bytes_of=lambda *_: GIB)
    advice = plain.advice(plan)
    assert advice.endswith("2.00 GiB of activations; try a smaller model, or shorter or smaller clips")
    advice = replace(plain, checkpointing=False).advice(plan)
    assert advice.endswith("of activations; try train.checkpointing=true (about 2.00 GiB)")


@pytest.mark.parametrize(
    ("free", "processes", "told"),
    [
        (40, 1, None),
        (36, 1, "40.00 GiB: a pass of 32 clips takes about 32.00 GiB"),
        (31, 1, EnvironmentProblem),
        (72, 2, "80.00 GiB in 2 processes: "),
        (63, 2, EnvironmentProblem),
    ],
)
def test_a_cpu_is_checked_with_the_weights_of_all_processes(
    monkeypatch: pytest.MonkeyPatch, free: int, processes: int, told
):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free * GIB))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=0))
    monkeypatch.setattr(machine, "OWN_GROUPS", Path("none"))  # nor the limit of a container
    if told is EnvironmentProblem:
        with pytest.raises(
            EnvironmentProblem, match=rf"^too little memory: {free}\.00 GiB of memory is free"
        ):
            memory().host_memory_warning(of_32_clips(), processes=processes)
        return
    warning = memory().host_memory_warning(of_32_clips(), processes=processes)
    assert warning is None if told is None else told in str(warning)


def test_a_pass_that_a_cpu_has_no_memory_for_is_refused(recipe: Path, tmp_path: Path):
    views = ["--set", "pretrain.objective=views", "--set", f"pretrain.batch_size={2**20}"]
    shown = called("pretrain", *views, "--recipe", recipe, "-o", tmp_path / "run", code=5).stderr
    assert re.search(r"too little memory: .* a pass of 1048576 clips takes about", shown)
    fitting = re.search(r"pretrain\.batch_size=(\d+)", shown)
    assert fitting is not None
    assert 0 < int(fitting[1]) < 2**20
    assert not (tmp_path / "run").exists()


def test_too_little_memory_in_a_loop_is_explained(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import everest.pretraining

    def too_much(model: object, clip: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(everest.pretraining, "pretraining_output", too_much)
    shown = called("pretrain", "--recipe", recipe, "-o", tmp_path / "run", code=5).stderr
    assert "out of memory: a pass of 2 clips takes" in shown
