"""data.fps in commands: stored with the weights, and the same frames everywhere."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from small_runs import RECIPE, called
from timed_videos import nearest, numbers_shown, write_numbered

import everest
from everest.system.weights_header import read_header

FPS, RATE = 15, 40  # of the recipe, and of most files
OPTIONS = ("--set", f"data.fps={FPS}", "--set", "finetune.epochs=1", "--set", "finetune.warmup_epochs=0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timed")
    for i in range(4):
        write_numbered(folder / f"clip{i}.mp4", range(RATE), Fraction(1, RATE))
    (folder / "train.csv").write_text("".join(f"clip{i}.mp4 {i % 2}\n" for i in range(4)))
    (folder / "tiny.yaml").write_text(RECIPE.replace("data: {", f'data: {{root: "{folder}", '))
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    called("finetune", "--recipe", data / "tiny.yaml", "--init", "none", "-o", folder, "-q", *OPTIONS)
    return folder


@pytest.fixture
def alone(run: Path, tmp_path: Path) -> Path:
    """The weights without the recipe of their run."""
    return shutil.copy(run / "model.safetensors", tmp_path / "alone.safetensors")


def test_the_weights_state_the_rate_only_if_it_is_set(run: Path, classifier_run: Path):
    assert read_header(run / "model.safetensors").clip == {"stride": 2, "sampling": "dense", "fps": FPS}
    plain = read_header(classifier_run / "model.safetensors").clip
    assert plain == {"stride": 2, "sampling": "dense"}


def test_weights_alone_read_the_clips_of_training(run: Path, alone: Path, data: Path):
    model = everest.load_model(alone)
    seconds = [Fraction(i, RATE) for i in range(RATE)]
    clip = everest.read_clip(data / "clip0.mp4", like=model)
    assert model.clip.fps == FPS
    timeline = [nearest(seconds, Fraction(j, FPS)) for j in range(FPS)]
    assert set(numbers_shown(clip)) <= set(timeline)
    assert torch.equal(clip, everest.read_clip(data / "clip0.mp4", like=everest.load_model(run)))


def test_predictions_with_and_without_the_recipe_are_equal(run: Path, alone: Path, data: Path):
    options = [data / "clip1.mp4", "--clips", 2, "--crops", 3, "--json", "--cpu", "--workers", 0]
    with_recipe, without = (
        json.loads(called("predict", *options, "-c", weights).stdout)
        for weights in (run / "model.safetensors", alone)
    )
    assert with_recipe == without
    other = json.loads(
        called("predict", *options, "-c", run, "--recipe", data / "tiny.yaml").stdout
    )  # that recipe counts frames of the file
    assert other != with_recipe


def test_windows_of_a_timeline_last_as_long_as_a_clip(run: Path, data: Path):
    options = ["--timeline", "--json", "--cpu", data / "clip0.mp4"]
    (row,) = json.loads(called("predict", "-c", run, *options).stdout)
    first = row["windows"][0]
    assert first["end"] - first["start"] == pytest.approx(4 * 2 / FPS, abs=1e-3)


def test_figures_name_frames_of_the_file(run: Path, data: Path, tmp_path: Path):
    seconds = [Fraction(i, RATE) for i in range(RATE)]
    timeline = [nearest(seconds, Fraction(j, FPS)) for j in range(FPS)]
    options = [data / "clip0.mp4", "-c", run, "--json"]
    (shown,) = json.loads(called("visualize-mask", *options, "-o", tmp_path).stdout)
    at = timeline.index(shown["frames"][0])
    assert shown["frames"] == timeline[at : at + 8 : 2]
    assert shown["frames_total"] == RATE
    chosen = json.loads(called("select-frames", *options, "--frames", 4, "--alpha", 1.5).stdout)
    assert set(chosen["frames"]) <= set(timeline)
    plain = json.loads(
        called("select-frames", data / "clip0.mp4", "--json", "--frames", 4, "--fps", FPS).stdout
    )
    assert plain["candidate_pairs"] == chosen["candidate_pairs"]


def test_short_videos_are_counted_at_the_rate(data: Path, tmp_path: Path):
    recipe = ["--recipe", data / "tiny.yaml", "--set", "data.fps=5"]  # videos of five frames
    shown = called(
        "pretrain",
        *recipe,
        "-o",
        tmp_path / "run",
        "--set",
        "pretrain.epochs=1",
        "--set",
        "pretrain.warmup_epochs=0",
    ).stderr
    assert (
        "4 of 4 videos (100%) are shorter than a clip of 4 frames at stride 2 (8 frames at 5 per second): "
        "frames are repeated; pretrain.stride=1 fits"
    ) in shown
    checked = called("prepare", "check", *recipe, "-o", tmp_path / "checked")
    assert "shorter than a clip of 8 frames at 5 per second" in checked.stdout
    assert "clip0.mp4: 5 frames" in checked.stdout
    enough = called("prepare", "check", *recipe[:2], "-o", tmp_path / "checked", "--set", "data.fps=8")
    assert "shorter" not in enough.stdout


def test_an_export_states_the_rate(run: Path, tmp_path: Path):
    written = json.loads(called("export", run, "--to", "torch", "-o", tmp_path / "m.pt2", "--json").stdout)
    assert written["clip"]["fps"] == FPS
    assert "the frames of a clip are 2 frames at 15 per second apart" in written["notes"]
