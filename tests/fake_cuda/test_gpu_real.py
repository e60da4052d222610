"""`gpu_real.py` and `gpu_feed.py` in miniature, on a CPU and on the device that computes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_real_page
import numpy as np
import pytest
import torch
from device_build import Device
from device_runs import ROOT, run_command
from gpu_clips import Crops, Frames, Lists, PretrainingViews, center_views, finetuning_views
from gpu_finetune import PEAK
from gpu_pretrain import LEAST
from gpu_real import ARMS, IMAGE, MINIATURE, SCRATCH, TESTED, settings_of

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


def check_rows(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row for row in rows if "error" in row] == []
    pretrained = [(row["arm"], row["part"]) for row in rows if "part" in row]
    trained = {name: arm for name, arm in ARMS.items() if arm.trials}
    assert pretrained == [
        (name, part) for name, arm in trained.items() for part in (*["trial"] * len(arm.trials), "run")
    ]
    jobs = [(row["arm"], row["labels"], row["steps"]) for row in rows if row["item"] == "job"]
    tuned = [(arm, labels, MINIATURE.steps[labels or 0]) for arm in ARMS for labels in (2, None)]
    assert sorted(jobs, key=str) == sorted([*tuned, *((arm, None, 0) for arm in [*ARMS, IMAGE])], key=str)
    return rows


@pytest.mark.slow
def test_the_miniature_writes_its_rows_and_a_page(clips: Path, tmp_path: Path):
    script = ROOT / "benchmarks" / "gpu_real.py"
    environment = {"OUT": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    run = [sys.executable, str(script), str(clips), "--miniature", "--seed", "4"]
    subprocess.run(run, check=True, env=environment)
    rows = check_rows(tmp_path / "gpu_real.jsonl")
    for row in (row for row in rows if row.get("part") == "run"):
        trials = [each for each in rows if each.get("part") == "trial" and each["arm"] == row["arm"]]
        best = min(trials, key=lambda each: each["losses"][-1])
        assert (row["batch"], row["base_lr"]) == (best["batch"], best["base_lr"])
        assert {each["first_loss"] for each in trials if each["batch"] == row["batch"]} == {row["first_loss"]}
        assert row["seconds"] >= MINIATURE.seconds
    (shares,) = [row["shares"] for row in rows if row["item"] == "draws"]
    assert shares.keys() == {"interaction", "unlabeled"}
    assert sum(shares.values()) == pytest.approx(1)
    (tested,) = [row for row in rows if row["item"] == "tested"]
    counts = f"{len(tested['labels'])} ({len(set(tested['groups']))}; 1)"  # clips (groups; seeds)
    text = gpu_real_page.page(gpu_real_page.Calls([tmp_path / "gpu_real.jsonl"]))
    assert f"| interaction6 | {counts} |" in text
    assert "Too few for a claim" in text


@pytest.mark.slow
def test_the_miniature_ends_well_on_a_gpu(clips: Path, device: Device, tmp_path: Path):
    command = [str(ROOT / "benchmarks" / "gpu_real.py"), str(clips), "--miniature"]
    ended = run_command(device, command, timeout=1000, extra={"OUT": str(tmp_path)})
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
        PretrainingViews(recipe=recipe, sizes=frames.sizes, batch=8)(5),
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
    choose = PretrainingViews(recipe=recipe, sizes=np.array([[90, 40, 40]] * 5), batch=64)
    choice = choose(0)
    assert (choice.clips[::2] == choice.clips[1::2]).all()
    assert (choice.flips[::2] == choice.flips[1::2]).all()
    assert (choice.frames[::2] != choice.frames[1::2]).any()
    assert (choose(0).frames == choice.frames).all()
    assert (choose(1).frames != choice.frames).any()


def held(groups: list[str], seeds: list[int]) -> gpu_real_page.Held:
    return gpu_real_page.Held(np.ones(len(groups)), groups, seeds)


def test_an_interval_contains_the_spread_of_groups_and_of_seeds():
    groups, seeds = ["a", "b"] * 4, [0, 0, 0, 0, 1, 1, 1, 1]
    assert held(groups, seeds).interval(np.full(8, 0.5)) == (50, 50)
    assert held(groups, seeds).interval(np.array([1.0, 0.0] * 4)) == (0, 100)
    assert held(groups, seeds).interval(np.array([1.0] * 4 + [0.0] * 4)) == (0, 100)
    assert held(["a"] * 8, [0] * 8).interval(np.array([1.0, 0.0] * 4)) == (50, 50)


def test_each_class_has_the_same_weight_in_an_accuracy():
    weights = gpu_real_page.weights_of([0, 0, 0, 1])
    held_out = gpu_real_page.Held(weights, ["a"] * 4, [0] * 4)
    assert held_out.mean(np.array([0.0, 0.0, 0.0, 1.0])) == pytest.approx(50)


def test_a_row_of_the_page_has_the_seeds_that_all_arms_have(tmp_path: Path):
    right = {(SCRATCH, 0): [1, 1, 0, 0], (SCRATCH, 1): [0, 0, 0, 0], ("everest", 0): [1, 1, 1, 1]}
    rows: list[dict[str, Any]] = [
        {"item": "job", "arm": arm, "set": "tennis7", "seed": seed, "labels": None, "right": of_seed}
        for (arm, seed), of_seed in right.items()
    ]
    for seed in (0, 1):
        held_out = {"set": "tennis7", "labels": [0, 1, 2, 3], "groups": ["a", "a", "b", "b"]}
        rows += [{"item": "machine", "seed": seed, "settings": {}}]
        rows += [{"item": "tested", "seed": seed, **held_out}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = gpu_real_page.table(gpu_real_page.Calls([file]), "right", None, SCRATCH)
    assert "| tennis7 | 4 (2; 1) | 25.0 | 50.0 | not run | 100.0<br>+50.0 (+0.0 to +100.0) |" in text


def test_calls_of_other_settings_or_of_one_seed_are_no_page(tmp_path: Path):
    files = [tmp_path / f"{number}.jsonl" for number in range(3)]
    for file, (seed, rate) in zip(files, [(0, 1e-3), (1, 1e-3), (2, 3e-3)], strict=True):
        file.write_text(json.dumps({"item": "machine", "seed": seed, "settings": {"rate": rate}}) + "\n")
    gpu_real_page.Calls(files[:2])
    with pytest.raises(SystemExit, match="seed 2 has other settings than seed 0"):
        gpu_real_page.Calls(files)
    with pytest.raises(SystemExit, match="seed of its own"):
        gpu_real_page.Calls([files[0], files[0]])


def test_the_settings_of_a_call_contain_every_learning_rate():
    settings = settings_of(MINIATURE)
    assert settings["finetune_lr"] == PEAK
    assert settings["least_lr"] == LEAST
    assert settings["arms"]["everest"]["trials"] == ARMS["everest"].trials


def test_every_third_of_the_groups_has_clips_of_every_class():
    if not (VIDEOS / "lips").is_dir():
        pytest.skip(f"no real clips in {VIDEOS}")
    tested: dict[str, list[str]] = {name: [] for name in TESTED}
    for fold in range(3):
        lists = Lists(VIDEOS, load_recipe("custom"), fold)
        for name in TESTED:
            clips = lists.sets[name]
            for known in (True, False):
                labels = {clip.label for clip in clips if clip.is_known == known}
                assert labels == {clip.label for clip in clips}, (name, fold, known)
            tested[name] += [clip.path for clip in clips if not clip.is_known]
    assert {name: len(set(paths)) for name, paths in tested.items()} == {
        name: len(clips) for name, clips in lists.sets.items() if name in TESTED
    }


def test_the_page_is_what_the_committed_rows_give():
    assert gpu_real_page.PAGE.exists() == bool(RESULTS)
    if RESULTS:
        assert gpu_real_page.PAGE.read_text() == gpu_real_page.page(gpu_real_page.Calls(RESULTS))
