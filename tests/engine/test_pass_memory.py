"""The memory of a run: the check on a CPU, and the error of a loop."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from small_runs import called

from everest.engine.setup import check_host_memory
from everest.errors import EnvironmentProblem
from everest.system import processes as machine

GIB = 2**30


@pytest.mark.parametrize(
    ("free", "processes", "told"),
    [
        (40, 1, None),
        (36, 1, "needs about 40.00 GiB; try a smaller train.micro_batch"),
        (31, 1, EnvironmentProblem),
        (72, 2, "needs about 80.00 GiB in 2 processes; "),
        (63, 2, EnvironmentProblem),
    ],
)
def test_a_cpu_is_checked_with_the_weights_of_all_processes(
    monkeypatch: pytest.MonkeyPatch, free: int, processes: int, told
):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free * GIB))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=0))
    monkeypatch.setattr(machine, "PROCESS_GROUPS_FILE", Path("none"))  # nor the limit of a container
    if told is EnvironmentProblem:
        with pytest.raises(
            EnvironmentProblem, match=rf"^too little memory: {free}\.00 GiB of memory is free"
        ):
            check_host_memory(40 * GIB, processes=processes)
        return
    warning = check_host_memory(40 * GIB, processes=processes)
    assert warning is None if told is None else told in str(warning)


def test_a_pass_that_a_cpu_has_no_memory_for_is_refused(recipe: Path, tmp_path: Path):
    views = ["--set", "pretrain.objective=views", "--set", f"pretrain.batch_size={2**20}"]
    shown = called("pretrain", *views, "--recipe", recipe, "-o", tmp_path / "run", code=5).stderr
    assert re.search(r"too little memory: .* needs about \d+\.\d\d GiB; try a smaller", shown)
    assert not (tmp_path / "run").exists()


def test_too_little_memory_in_a_loop_is_explained(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import everest.pretraining

    def too_much(model: object, clip: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(everest.pretraining, "pretraining_output", too_much)
    shown = called("pretrain", "--recipe", recipe, "-o", tmp_path / "run", code=5).stderr
    assert "out of memory; try a smaller train.micro_batch" in shown
