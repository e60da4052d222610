import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from prepare_commands import stats as shown
from small_runs import json_of

from everest.config.recipe import load_recipe
from everest.prepare.contact_sheet import choose_videos, spread_over_range
from everest.prepare.stats import measure
from everest.video.reader import read_frames

stats = partial(json_of, "prepare stats -q --workers 1")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Videos as folders of images: `still` of one color, `blink` of black and white by turns."""
    for name, colors in (("still", [(51, 102, 204)] * 4), ("blink", [(0, 0, 0), (255, 255, 255)] * 2)):
        for number, color in enumerate(colors):
            (tmp_path / name / "clip").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (6, 4), color).save(tmp_path / name / "clip" / f"{number}.png")
    return tmp_path


@pytest.mark.slow
def test_the_largest_stride_that_fits_is_reported(clip_files: Path, tmp_path: Path):
    (tmp_path / "list.csv").write_text("".join(f"clip{number}.mp4 0\n" for number in range(4)))
    options = [tmp_path / "list.csv", "--data", clip_files]
    assert stats(*options)["strides"] == {"8": 4, "16": 2, "32": 1}  # of 32 frames
    slower = stats(*options, "--fps", 8)  # two seconds
    assert slower["strides"] == {"8": 2, "16": 1, "32": None}
    assert slower["frames"]["max"] == 32  # of the files
    (tmp_path / "list.csv").write_text("path,end_frame\nclip0.mp4,31\nclip1.mp4,9\n")
    assert stats(*options)["strides"] == {"8": 1, "16": None, "32": None}
    text = shown(*options, "-q").stdout
    assert "for clips of 8 frames: 1, 16 frames: none, 32 frames: none" in text


def test_hand_computed_means_stds_and_motion(images: Path):
    result = stats(images)
    still, blink = np.array([0.2, 0.4, 0.8]), np.array([0.5, 0.5, 0.5])
    mean = (still + blink) / 2
    square = (still**2 + np.array([0.5, 0.5, 0.5])) / 2
    assert result["mean"] == pytest.approx(mean.tolist(), abs=1e-5)
    assert result["std"] == pytest.approx(np.sqrt(square - mean**2).tolist(), abs=1e-5)
    assert result["classes"] == [
        {"class": "blink", "videos": 1, "motion": 1.0},
        {"class": "still", "videos": 1, "motion": 0.0},
    ]
    assert result["frames"] == {"min": 4, "median": 4.0, "max": 4}
    assert result["seconds"] is None


def test_moments_are_those_of_the_frames(clip_files: Path):
    found = measure(str(clip_files / "clip0.mp4"))
    ids = sorted({n for first in np.linspace(0, 30, 8).astype(int).tolist() for n in (first, first + 1)})
    frames = read_frames(clip_files / "clip0.mp4", ids).numpy() / 255
    assert found.mean == pytest.approx(frames.mean(axis=(0, 1, 2)), abs=1e-9)
    assert found.square == pytest.approx((frames**2).mean(axis=(0, 1, 2)), abs=1e-9)


def test_balance_and_lengths_of_a_list_and_what_cannot_be_read(clip_files: Path, tmp_path: Path):
    shutil.copytree(clip_files, tmp_path / "set")
    (tmp_path / "set" / "bad.mp4").write_bytes(b"")
    rows = "clip0.mp4 0\nclip1.mp4 0\nclip2.mp4 0\nclip3.mp4 1\nbad.mp4 1\n"
    (tmp_path / "set" / "train.csv").write_text(rows)
    result = stats(tmp_path / "set" / "train.csv")
    assert (result["videos"], result["measured"], result["imbalance"]) == (5, 4, 1.5)
    assert result["seconds"] == {"min": 2.0, "median": 2.0, "max": 2.0}
    assert result["skipped"] == [{"path": str(tmp_path / "set" / "bad.mp4"), "reason": "empty file"}]
    (tmp_path / "set" / "train.csv").write_text("bad.mp4 1\n")
    assert "none of 1 videos can be read" in shown(tmp_path / "set" / "train.csv", code=4).stderr


def test_the_image_is_a_png_of_its_own(images: Path, tmp_path_factory):
    target = tmp_path_factory.mktemp("out") / "sheet.png"
    stats(images, "--picture", target)
    with Image.open(target) as sheet:
        assert sheet.width > 1000
    again = shown(images, "--picture", target, code=2)
    assert "sheet.png: exists; choose another name, or use --overwrite" in again.stderr
    stats(images, "--picture", target, "--overwrite")
    assert "end its name in .png" in shown(images, "--picture", "a.jpg", code=2).stderr


def test_a_video_of_several_classes_is_shown_for_one_of_them():
    videos = {"a": ["1", "2", "3", "4"], "b": ["1", "2"], "c": ["2"], "d": ["2"]}
    assert choose_videos(videos, each=2) == {"a": ["3", "4"], "b": ["1"], "c": ["2"], "d": ["2"]}
    alone = {"a": [str(number) for number in range(12)], "b": ["x"]}
    assert choose_videos(alone, each=3) == {"a": ["0", "4", "8"], "b": ["x"]}


@given(st.dictionaries(st.integers().map(str), st.floats(-1e6, 1e6), min_size=1), st.integers(1, 12))
def test_thumbnails_of_numbers_reach_from_the_lowest_to_the_highest(numbers, count):
    shown = spread_over_range(numbers, count)
    assert len(shown) == len(set(shown)) == min(count, len(numbers))
    values = [numbers[name] for name in shown]
    assert values == sorted(values)
    assert values[0] == min(numbers.values())
    assert count == 1 or values[-1] == max(numbers.values())


def test_mean_and_std_become_a_recipe(images: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("recipes")
    base, output = folder / "base.yaml", folder / "made" / "stats.yaml"
    output.parent.mkdir()
    base.write_text("base: small\nsummary: a base\n")
    result = stats(images, "--output", output, "--base", base)
    recipe = load_recipe(output)
    assert list(recipe.data.mean) == [round(value, 4) for value in result["mean"]] == result["data"]["mean"]
    assert list(recipe.data.std) == [round(value, 4) for value in result["std"]]
    assert replace(recipe.data, mean=None, std=None) == load_recipe("small").data
    refused = shown(images, "--output", output, code=2).stderr
    assert "use --overwrite" in refused
    text = shown(images, "-q").stdout
    (line,) = (line for line in text.splitlines() if line.startswith("for a recipe: "))
    overrides = [part for part in shlex.split(line.removeprefix("for a recipe: ")) if part != "--set"]
    assert load_recipe("small", overrides=overrides).data.pixels == recipe.data.pixels


def test_the_mean_and_std_of_luma(images: Path, tmp_path: Path):
    result = stats(images, "--channels", 1, "--output", tmp_path / "gray.yaml")
    still = round(0.299 * 51 + 0.587 * 102 + 0.114 * 204) / 255
    assert result["mean"] == pytest.approx([(still + 0.5) / 2], abs=1e-5)
    square = (still**2 + 0.5) / 2
    assert result["std"] == pytest.approx([np.sqrt(square - result["mean"][0] ** 2)], abs=1e-4)
    recipe = load_recipe(tmp_path / "gray.yaml")
    assert recipe.data.channels == recipe.data.pixels.channels == 1


def test_a_recipe_of_a_single_color_or_of_a_tokenizer_is_refused(images: Path, tmp_path: Path):
    black = tmp_path / "black" / "clip"
    black.mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (6, 4)).save(black / f"{number}.png")
    target = tmp_path / "r.yaml"
    message = shown(tmp_path / "black", "--output", target, code=2).stderr
    assert "data.std" in message
    options = ["--output", target, "--channels", 1, "--base", "lvmae-128"]
    assert "a tokenizer, which codes colors" in shown(images, *options, code=2).stderr
    assert not target.exists()
