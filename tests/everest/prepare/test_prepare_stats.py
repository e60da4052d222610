import shlex
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prepare_commands import stats as shown
from small_runs import json_of

from everest.config.recipe import load_recipe

stats = partial(json_of, "prepare stats -q")


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
    (tmp_path / "list.csv").write_text("path,end_frame\nclip0.mp4,31\nclip1.mp4,9\n")
    assert stats(*options)["strides"] == {"8": 1, "16": None, "32": None}
    text = shown(*options, "-q").stdout
    assert "for clips of 8 frames: 1, 16 frames: none, 32 frames: none" in text


def test_the_share_of_frames_in_which_the_camera_moves_is_reported(clip_files: Path):
    assert stats(clip_files)["camera"] == {"moving": pytest.approx(0.9, abs=0.05), "unexplained": 0}


def test_hand_computed_means_stds_and_motion_and_the_settings_of_a_recipe(images: Path):
    result = stats(images)
    still, blink = np.array([0.2, 0.4, 0.8]), np.array([0.5, 0.5, 0.5])
    mean = (still + blink) / 2
    square = (still**2 + np.array([0.5, 0.5, 0.5])) / 2
    assert result["mean"] == pytest.approx(mean.tolist(), abs=1e-5)
    assert result["std"] == pytest.approx(np.sqrt(square - mean**2).tolist(), abs=1e-5)
    motions = {row["class"]: (row["videos"], row["motion"]) for row in result["classes"]}
    assert motions == {"blink": (1, 1.0), "still": (1, 0.0)}
    assert (result["motion"], result["camera"]) == (0.5, {"moving": 0.0, "unexplained": 0.5})
    assert result["frames"] == {"min": 4, "median": 4.0, "max": 4}
    assert result["seconds"] is None
    (line,) = (line for line in shown(images, "-q").stdout.splitlines() if line.startswith("for a recipe: "))
    overrides = [part for part in shlex.split(line.removeprefix("for a recipe: ")) if part != "--set"]
    recipe = load_recipe("small", overrides=overrides)
    assert list(recipe.data.mean) == [round(value, 4) for value in result["mean"]]
    assert list(recipe.data.std) == [round(value, 4) for value in result["std"]]


def test_balance_and_lengths_of_a_list_and_what_cannot_be_read(clip_files: Path, tmp_path: Path):
    shutil.copytree(clip_files, tmp_path / "set")
    (tmp_path / "set" / "bad.mp4").write_bytes(b"")
    rows = "clip0.mp4 0\nclip1.mp4 0\nclip2.mp4 0\nclip3.mp4 1\nbad.mp4 1\n"
    (tmp_path / "set" / "train.csv").write_text(rows)
    result = stats(tmp_path / "set" / "train.csv")
    assert (result["videos"], result["measured"], result["imbalance"]) == (5, 4, 1.5)
    assert result["seconds"] == {"min": 2.0, "median": 2.0, "max": 2.0}
    assert result["skipped"] == [{"path": str(tmp_path / "set" / "bad.mp4"), "reason": "empty file"}]
    assert stats(tmp_path / "set" / "train.csv", "--videos", 1)["measured"] <= 2
    (tmp_path / "set" / "train.csv").write_text("bad.mp4 1\n")
    assert "none of 1 videos can be read" in shown(tmp_path / "set" / "train.csv", code=4).stderr
