from __future__ import annotations

import json
import math
import multiprocessing
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from processes import wait_for_rows
from small_runs import called, run, same_run, sets, weights
from task_runs import task_recipe
from torch import Tensor

from everest.config.heads import Head
from everest.config.stage_settings import FinetuneSettings
from everest.data.clip_dataset import ClipDataset
from everest.data.loader import read_batches
from everest.data.views import SampleViews
from everest.engine.health import chance_warning
from everest.engine.schedule import plan_stage
from everest.engine.setup import check_host_memory
from everest.engine.step import SCALER_LIMIT, UpdateGuard
from everest.engine.step_log import WaitWatch
from everest.errors import DataError, EnvironmentProblem
from everest.lists.sample import Sample
from everest.system import processes as machine
from everest.system.run_folder import RunFolder

SOUND = {"loss": 1.0, "grad_norm": 1.0}


def test_overflow_of_a_scaled_gradient_is_part_of_fp16_but_not_for_ever():
    scaled, overflow = UpdateGuard(scaled=True), {**SOUND, "grad_norm": math.inf}
    assert all(scaled.goes_on(overflow) for _ in range(SCALER_LIMIT))
    assert not scaled.goes_on(overflow)
    assert not UpdateGuard(scaled=True).goes_on({**overflow, "loss": math.nan})


@pytest.mark.parametrize("weighted", [False, True])
def test_a_mixing_run_that_learns_nothing_warns_unless_classes_are_weighted(recipe, tmp_path, weighted):
    still = ["finetune.base_lr=1e-12", "finetune.min_lr=0", "finetune.mixup=0.8"]
    still += ["finetune.class_weights={0: 1.0, 1: 2.0}"] if weighted else []
    command = ["finetune", "--init", "none", "--recipe", recipe, "-o", tmp_path / "run"]
    shown = called(*command, *sets(*still)).stderr
    assert ("still near that of guessing, ln(2) = 0.69" in shown) == (not weighted)
    assert ("try lower finetune.mixup" in shown) == (not weighted)


@pytest.mark.parametrize("labels", ["classes", "weighted", "tags", "scores", "heads"])
def test_a_run_whose_loss_rises_above_guessing_is_told_to_make_smaller_updates(
    recipe, clip_files, tmp_path, labels
):
    if labels in ("tags", "scores", "heads"):
        recipe = task_recipe(tmp_path, clip_files, labels)
    wild = ["base_lr=50", "epochs=20", "mixup=0", "cutmix=0", "drop_path=0"]
    wild += ["class_weights=balanced"] if labels == "weighted" else []
    settings = sets(*(f"finetune.{setting}" for setting in wild))
    shown = called("finetune", "--init", "none", "--recipe", recipe, "-o", tmp_path / "run", *settings).stderr
    (warning,) = re.findall(r"the loss, \S+, rose above that of guessing, .*", shown)
    assert warning.endswith("the run diverged; lower base_lr or set train.clip_grad")
    assert ("= 0.69:" in warning) == (labels == "classes")
    assert "the mean of ln(2) and ln(3) = 0.90:" in warning or labels != "heads"
    assert "still near" not in shown
    assert "overfitting:" not in shown
    assert "more steps" not in shown


@pytest.mark.parametrize(("highest", "rate"), [(1.2, "higher"), (9.0, "lower")])
def test_a_loss_that_came_back_to_guessing_is_not_told_to_make_larger_updates(highest, rate):
    settings, heads = FinetuneSettings(mixup=0, cutmix=0, base_lr=1e-3), (Head(outputs=3),)
    plan = plan_stage(settings, num_videos=1000, processes=1, largest_micro_batch=8)
    text = chance_warning(plan, 1.09, settings, heads, guessing_loss=math.log(3), highest=highest, ends=True)
    assert text is not None
    assert text.endswith(f"try more steps or a {rate} base_lr")


def test_a_pre_training_whose_loss_rises_above_one_color_is_told_to_make_smaller_updates(recipe, tmp_path):
    wild = sets("pretrain.base_lr=50", "pretrain.epochs=20")
    shown = called("pretrain", "--recipe", recipe, "-o", tmp_path / "run", *wild).stderr
    assert "gives about 1: the loss rose above it, so the run diverged; lower base_lr or set" in shown
    assert "little is learned;" not in shown


def test_a_diverged_run_ends_with_code_3_its_videos_and_its_weights(recipe, tmp_path):
    folder = tmp_path / "run"
    wild = ("pretrain.base_lr=1e30", "pretrain.epochs=30", "pretrain.betas=[0.0, 0.0]")
    result = called("pretrain", "--recipe", recipe, "-o", folder, *sets(*wild), code=3)
    assert "lower base_lr" in result.stderr
    document = json.loads((folder / "nonfinite.json").read_text())
    assert {Path(video).name for video in document["videos"]} == {f"clip{i}.mp4" for i in range(4)}
    rows = RunFolder(folder).rows()
    assert len(rows) == document["step"] - 1
    assert all(math.isfinite(value) for tensor in weights(folder).values() for value in tensor.sum()[None])


@pytest.mark.slow
def test_a_killed_worker_is_reported_and_the_run_can_be_resumed(recipe: Path, tmp_path: Path):
    error = kill_a_worker(recipe, tmp_path / "run")
    assert error.returncode == 5, error.stderr
    assert "lower train.workers" in error.stderr
    for name in ("run", "whole"):
        run("pretrain", "--recipe", recipe, "-o", tmp_path / name, *LONG)
    assert same_run(tmp_path / "run", tmp_path / "whole")


class Blank:
    """Views of a video that is there at once."""

    num_views, channels, frames, size = 1, 3, 4, (32, 32)
    shape, region_size = (1, 3, 4, 32, 32), None

    def __call__(self, sample: Sample, rng: object, decoder: str, out: Tensor) -> SampleViews:
        return SampleViews(frames=out.zero_(), erase_boxes=torch.zeros(1, 4, dtype=torch.int64))


class Asleep(Blank):
    """Views of a video that never comes."""

    def __call__(self, sample: Sample, rng: object, decoder: str, out: Tensor) -> SampleViews:
        time.sleep(3600)
        raise AssertionError


def loader_of(views: Blank, order: list[list[tuple[int, int]]], **options: int) -> Iterator[Any]:
    """The batches of 40 videos in an order of epochs and numbers."""
    samples = [Sample(path=f"/videos/{i}.mp4") for i in range(40)]
    dataset = ClipDataset(samples, views=views, seed=0, num_noise=1, decoder="auto", replace_bad=True)
    return read_batches(dataset, order, **options)


def test_a_worker_that_hangs_is_reported_with_its_videos_and_does_not_outlive_the_run():
    others = set(multiprocessing.active_children())
    with pytest.raises(DataError, match=r"no clip within 1 s .* from one of: /videos/2.mp4, /videos/3.mp4"):
        next(loader_of(Asleep(), [[(0, 2), (0, 3)], [(0, 0), (0, 1)]], workers=1, timeout=1))
    assert set(multiprocessing.active_children()) <= others
    with pytest.raises(DataError) as caught:  # of the group that does not come
        next(loader_of(Asleep(), [[(0, i) for i in range(40)]], workers=2, timeout=1))
    assert "/videos/13.mp4" in str(caught.value)
    assert "/videos/14.mp4" not in str(caught.value)


def test_waiting_for_videos_is_reported_once_after_a_minute():
    for waited, reported in ((0.5, ["75% of their time"]), (1.5, [])):
        watch = WaitWatch(workers=2)
        warnings = [watch.add(2 - waited, 2.0) for _ in range(100)]
        assert [re.findall(r"\d+% of their time", text)[0] for text in filter(None, warnings)] == reported
        assert warnings[:30] == [None] * 30


LONG = sets("pretrain.epochs=60", "train.workers=1", "train.data_timeout=30")


def kill_a_worker(recipe: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Kill the process that reads videos for a run, and wait for the run to end."""
    command = [sys.executable, "-m", "everest_cli", "pretrain", "--recipe", recipe, "-o", folder, *LONG]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    wait_for_rows(folder, 5, process)
    psutil.Process(process.pid).children()[-1].kill()
    _, stderr = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, stderr=stderr)


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
def test_a_cpu_is_checked_with_the_weights_of_all_processes(monkeypatch, free, processes, told):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free * GIB))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=0))
    monkeypatch.setattr(machine, "PROCESS_GROUPS_FILE", Path("none"))  # nor the limit of a container
    if told is EnvironmentProblem:
        with pytest.raises(EnvironmentProblem, match=rf"^too little memory: {free}\.00 GiB of memory is"):
            check_host_memory(40 * GIB, processes=processes)
        return
    warning = check_host_memory(40 * GIB, processes=processes)
    assert warning is None if told is None else told in str(warning)


def test_a_micro_batch_that_a_cpu_has_no_memory_for_is_refused(recipe: Path, tmp_path: Path):
    views = ["--set", "pretrain.objective=views", "--set", f"pretrain.batch_size={2**20}"]
    shown = called("pretrain", *views, "--recipe", recipe, "-o", tmp_path / "run", code=5).stderr
    assert re.search(r"too little memory: .* needs about \d+\.\d\d GiB; try a smaller", shown)
    assert not (tmp_path / "run").exists()


def test_too_little_memory_in_a_loop_is_explained(recipe, tmp_path, monkeypatch):
    import everest.pretraining

    def too_much(stage: object, batch: object, step: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(everest.pretraining.Pretraining, "losses", too_much)
    shown = called("pretrain", "--recipe", recipe, "-o", tmp_path / "run", code=5).stderr
    assert "out of memory; try a smaller train.micro_batch" in shown
