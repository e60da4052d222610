"""The memory of a pass: advice where it does not fit, and the check on a CPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from small_runs import called

from everest.config.stage_settings import (
    PixelPretrainSettings,
    PretrainSettings,
)
from everest.engine.plan import StagePlan, plan_stage
from everest.models.memory import PassMemory

GIB = 2**30


def bytes_of(checkpointing: bool, bytes_per_value: int) -> int:
    """Half of them float32 in any precision: 1 GiB in float32, a quarter of it with checkpointing."""
    return (4 + bytes_per_value) * 2 ** (25 if checkpointing else 27)


def memory_of(plan: StagePlan, *, checkpointing: bool = False, compares_clips: bool = False) -> PassMemory:
    return PassMemory(
        clips=plan.micro_batch,
        unit=plan.unit,
        processes=plan.processes,
        bytes_of=bytes_of,
        state_bytes=8 * GIB,
        bytes_per_value=4,
        checkpointing=checkpointing,
        compares_clips=compares_clips,
    )


def of_32_clips(stage: PretrainSettings | None = None) -> StagePlan:
    stage = stage or PixelPretrainSettings()
    return plan_stage(stage, num_videos=1000, processes=1, largest_micro_batch=32)


def test_advice_has_numbers_that_shrink():
    advice = memory_of(of_32_clips()).advice()
    assert "a pass of 32 clips takes about 32.00 GiB" in advice
    assert "try train.micro_batch=16 (about 16.00 GiB) or " in advice
    assert advice.endswith(
        " or train.checkpointing=true (about 8.00 GiB) or train.precision=bf16 (about 24.00 GiB)"
    )


@pytest.mark.parametrize(
    ("room", "named"),
    [
        (31 * GIB, ["micro_batch=31 (about 31.00 GiB)", "train.checkpointing=true (about 8.00 GiB)"]),
        (7 * GIB, ["train.micro_batch=7 (about 7.00 GiB)"]),
        (GIB // 2, ["a smaller model, or shorter or smaller clips"]),
    ],
)
def test_in_a_known_room_only_settings_that_fit_are_advised(room: int, named: list[str]):
    advice = memory_of(of_32_clips()).advice(room)
    assert all(text in advice for text in named)
    assert "bf16" not in advice
    sizes = [float(size) for size in re.findall(r"about ([\d.]+) GiB\)", advice)]
    assert all(size * GIB <= room for size in sizes)


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
