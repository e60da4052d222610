"""`gpu_real.py` and `gpu_feed.py` in miniature, on a CPU and on the device that computes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gpu_real_page
import numpy as np
import pytest
import torch
from device_build import Device
from device_runs import ROOT, run_command
from gpu_clips import Crops, Frames, PretrainingViews, center_views, finetuning_views
from gpu_real import ARMS, IMAGE, MINIATURE, SCRATCH

from everest.config.recipe import load_recipe
from everest.data.crops import Box, crop, resize

VIDEOS = ROOT.parent / "shared" / "videos"
RESULTS = sorted((ROOT / "benchmarks" / "results" / "gpu_real").glob("*.jsonl"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (VIDEOS / "lips").is_dir():
        pytest.skip(f"no real clips in {VIDEOS}")
    folder = tmp_path_factory.mktemp("clips")
    run = [sys.executable, ROOT / "benchmarks" / "gpu_clips.py", VIDEOS, folder]
    subprocess.run(run, check=True)
    return folder


def check_rows(path: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row for row in rows if "error" in row] == []
    jobs = [(row["arm"], row["labels"], row["decay"]) for row in rows if row["item"] == "job"]
    arms = [*ARMS, SCRATCH]
    tuned = [(arm, labels, decay) for arm in arms for labels in (2, None) for decay in MINIATURE.decays]
    assert sorted(jobs, key=str) == sorted([*tuned, *((arm, None, None) for arm in [*arms, IMAGE])], key=str)
    return rows


@pytest.mark.slow
def test_the_miniature_writes_its_rows_and_a_page(clips: Path, tmp_path: Path):
    script = ROOT / "benchmarks" / "gpu_real.py"
    environment = {"OUT": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    run = [sys.executable, str(script), str(clips), "--miniature", "--seed", "3"]
    subprocess.run(run, check=True, env=environment)
    rows = check_rows(tmp_path / "gpu_real.jsonl")
    trained = [row for row in rows if "warm_up_seconds" in row]
    assert [row["arm"] for row in trained] == list(ARMS)
    assert all(float(str(row["seconds"])) >= 2 for row in trained)
    text = gpu_real_page.page(gpu_real_page.Calls.read([tmp_path / "gpu_real.jsonl"]))
    assert "| interaction6 | 12 (" in text
    assert "Too few for a claim" in text


@pytest.mark.slow
def test_the_miniature_ends_well_on_a_gpu(clips: Path, device: Device, tmp_path: Path):
    command = [str(ROOT / "benchmarks" / "gpu_real.py"), str(clips), "--miniature", "--seconds", "0.5"]
    ended = run_command(device, command, timeout=500, extra={"OUT": str(tmp_path)})
    assert ended.code == 0, ended.stderr
    check_rows(tmp_path / "gpu_real.jsonl")


@pytest.mark.slow
def test_the_feed_of_a_gpu_is_measured_in_miniature(tmp_path: Path):
    video = VIDEOS / "odd" / "mae_demo_853x480.avi"
    if not video.is_file():
        pytest.skip(f"no {video}")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_feed.py"), str(video), "--seconds", "0.2"]
    environment = {"OUT": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    subprocess.run([*command, "--processes", "2"], check=True, env=environment)
    rows = [json.loads(line) for line in (tmp_path / "gpu_feed.jsonl").read_text().splitlines()]
    rates = {row["item"]: row["clips_per_second"] for row in rows if "processes" in row}
    assert rates.keys() == {"jpeg 2", "h264 2"}
    assert min(rates.values()) > 0


def test_views_of_bytes_in_one_tensor_are_the_crops_of_the_library():
    rng = np.random.default_rng(0)
    shapes = [(40, 60, 80), (50, 128, 228), (20, 160, 128)]  # frames, height, width
    clips = [torch.from_numpy(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]
    first = np.cumsum([0, *(clip.numel() for clip in clips)])[:-1]
    index = {str(number): number for number in range(3)}
    frames = Frames(torch.cat([clip.flatten() for clip in clips]), first, np.array(shapes), index)
    settings = ["data.size=48", "pretrain.stride=2", "finetune.stride=2"]
    recipe = load_recipe("custom", overrides=settings)
    numbers = np.arange(3)
    choices = [
        PretrainingViews(recipe=recipe, numbers=numbers, sizes=frames.sizes, batch=8)(5),
        finetuning_views(recipe, frames.sizes, numbers, rng),
        center_views(recipe, frames.sizes, numbers),
    ]
    for choice in choices:
        views = Crops(frames, (48, 48))(choice)
        for number, view in enumerate(views):
            clip = clips[choice.clips[number]][choice.frames[number]]
            same = resize(crop(clip, Box(*choice.boxes[number].tolist())), (48, 48), antialias=False)
            same = same.flip(-1) if choice.flips[number] else same
            assert (view.int() - same.int()).abs().max() <= 1  # bytes are rounded by other arithmetic


def test_a_selection_of_clips_has_the_same_bytes():
    frames = Frames(
        torch.arange(60, dtype=torch.uint8),
        np.array([0, 12]),
        np.array([[1, 2, 2], [2, 2, 4]]),
        {"a": 0, "b": 1},
    )
    chosen = frames.on(torch.device("cpu"), ["b"])
    assert chosen.pixels.tolist() == list(range(12, 60))
    assert chosen.index == {"b": 0}


def test_views_of_one_video_share_their_mirror_and_no_window():
    settings = [
        "pretrain.objective=views",
        "pretrain.selection={strategy: drawn, keep_ratio: 0.25, visible_ratio: null}",
    ]
    recipe = load_recipe("custom", overrides=["data.size=32", "pretrain.stride=1", *settings])
    choose = PretrainingViews(
        recipe=recipe, numbers=np.array([4]), sizes=np.array([[90, 40, 40]] * 5), batch=64
    )
    choice = choose(0)
    assert (choice.clips == 4).all()
    assert (choice.flips[::2] == choice.flips[1::2]).all()
    assert (choice.frames[::2] != choice.frames[1::2]).any()
    assert (choose(0).frames == choice.frames).all()
    assert (choose(1).frames != choice.frames).any()


def test_an_interval_of_groups_contains_the_mean_and_knows_their_spread():
    groups = ["a"] * 4 + ["b"] * 4
    rng = np.random.default_rng(0)
    equal = np.tile([0.5], (3, 8))
    assert gpu_real_page.interval(equal, groups, rng) == (50, 50)
    of_groups = np.tile([1.0] * 4 + [0.0] * 4, (3, 1))  # all of the difference is between the groups
    assert gpu_real_page.interval(of_groups, groups, rng) == (0, 100)


def test_two_calls_need_two_seeds(tmp_path: Path):
    call = tmp_path / "call.jsonl"
    call.write_text('{"item": "machine", "seed": 0}\n')
    with pytest.raises(SystemExit, match="seed of its own"):
        gpu_real_page.Calls.read([call, call])


def test_the_page_is_what_the_committed_rows_give():
    assert gpu_real_page.PAGE.read_text() == gpu_real_page.page(gpu_real_page.Calls.read(RESULTS))
