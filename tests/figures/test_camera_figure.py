from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import json_of, refused

import everest
from everest.errors import RecipeError
from everest.video.writer import write_video

SIDE = 64
OPTIONS = ["--size", "64", "--frames", "8", "--stride", "1"]


def texture(seed: int) -> np.ndarray:
    """(SIDE, 3 * SIDE, 3) uint8, smooth."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 36, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((3 * SIDE, SIDE), Image.Resampling.BICUBIC))


def pan() -> torch.Tensor:
    """(8, SIDE, SIDE, 3) uint8: the camera moves by 3 pixels a frame."""
    return torch.from_numpy(np.stack([texture(0)[:, 3 * time : 3 * time + SIDE] for time in range(8)]))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("camera") / "pan.mp4"
    still = torch.from_numpy(texture(1)[:, :SIDE].copy()).expand(8, -1, -1, -1)  # another scene
    write_video(path, torch.cat([pan(), still]), 10)
    return path


def test_a_figure_ignores_the_cut_on_request(video: Path, tmp_path: Path):
    shown = ["visualize-mask", video, *OPTIONS, "--frames", "16", "--overwrite", "-o", tmp_path]
    (plain,) = json_of(*shown)
    (aligned,) = json_of(*shown, "--align", "affine", "--cuts", "detect")
    assert plain["kept_per_slice"][4] > 2 * aligned["kept_per_slice"][4]


def test_tokens_of_gray_clips_are_selected_and_other_channels_are_refused():
    clip = torch.rand(1, 1, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    assert everest.select_tokens(clip, align="shift", keep=0.5).visible.shape == (1, 8)
    with pytest.raises(ValueError, match="expected clips"):
        everest.select_tokens(clip[0], align="shift")
    with pytest.raises(RecipeError, match="align and cuts need clips of 3 channels here; these have 4"):
        everest.select_tokens(clip.expand(-1, 4, -1, -1, -1), align="shift")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pretrain.selection.align": "zoom"}, "pretrain.selection.align: "),
        ({"model.input": "differences", "finetune.selection.align": "shift"}, "model.input: must be frames"),
        ({"model.input": "differences", "pretrain.selection.cuts": "detect"}, "model.input: must be frames"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, str], message: str):
    options = [f"--set={key}={value}" for key, value in settings.items()]
    assert message in refused("pretrain", "--recipe", "small", *options, "--print-config", code=2)


def test_stats_tell_how_often_the_camera_moves(video: Path):
    camera = json_of("prepare stats", video.parent)["camera"]
    assert 0.3 < camera["moving"] < 0.7
    assert camera["unexplained"] <= 0.2
