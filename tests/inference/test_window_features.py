import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from small_runs import called, refused

from everest.errors import EnvironmentProblem
from everest.inference import features

WINDOWS = ["--window", "0.75", "--step", "0.25"]  # six of the two seconds of a clip file


def full_disk(*_: object) -> None:
    raise EnvironmentProblem("the disk is full")


def videos_of(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()["videos"])


def test_a_row_of_a_window_is_that_of_the_segment(autoencoder_run: Path, clip_files: Path, tmp_path: Path):
    out, alone = tmp_path / "windows.safetensors", tmp_path / "segments.safetensors"
    called("extract", clip_files, "-c", autoencoder_run, *WINDOWS, "-o", out)
    found, names = load_file(out), videos_of(out)
    assert names == [str(clip_files / f"clip{number}.mp4") for number in range(4)]
    assert found["video_ids"].tolist() == [number for number in range(4) for _ in range(6)]
    assert found["starts"].tolist() == [0.25 * place for place in range(6)] * 4
    assert torch.equal(found["ends"], found["starts"] + 0.75)
    rows = zip(found["video_ids"].tolist(), found["starts"].tolist(), found["ends"].tolist(), strict=True)
    lines = [f"{names[video]},{start},{end}" for video, start, end in rows]
    (tmp_path / "list.csv").write_text("\n".join(["path,start,end", *lines]))
    one_view = ["--views", "1x1"]
    called("extract", tmp_path / "list.csv", "-c", autoencoder_run, *one_view, "-o", alone, "-q")
    assert torch.equal(found["features"], load_file(alone)["features"])


def test_rows_of_a_video_or_an_image_that_changed_during_a_break_are_not_continued(
    autoencoder_run: Path, clip_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    video, folder = shutil.copy(clip_files / "clip0.mp4", tmp_path), tmp_path / "frames"
    folder.mkdir()
    for number in range(16):
        Image.new("RGB", (32, 32), (number * 9, 0, 0)).save(folder / f"{number}.png")
    of_windows = ["extract", video, clip_files, *WINDOWS, "-o", tmp_path / "windows.npz"]
    of_folder = ["extract", folder, "-o", tmp_path / "folder.npz"]
    with monkeypatch.context() as patched:
        patched.setattr(features, "_write_features", full_disk)
        for command in (of_windows, of_folder):
            assert "the disk is full" in refused(*command, "-c", autoencoder_run, code=5)
    shutil.copy(clip_files / "clip1.mp4", video)
    Image.new("RGB", (32, 32), (0, 99, 0)).save(folder / "3.png")
    message = "its rows were begun with other versions of videos; undo"
    for command in (of_windows, of_folder):
        assert message in refused(*command, "-c", autoencoder_run, code=2)
    called(*of_windows, "-c", autoencoder_run, "--overwrite")


def test_options_that_do_not_go_together_are_named(autoencoder_run: Path, clip_files: Path, tmp_path: Path):
    for options, message in (
        (["--step", 1, "-o", "f.npz"], "--step: belongs to --window"),
        (["--window", "inf", "-o", "f.npz"], "--window: must be a number of seconds from 0.001 on, not inf"),
        (["--window", 1, "-o", tmp_path / "f.pt"], "give a file that ends in .safetensors or .npz"),
    ):
        assert message in refused("extract", clip_files, "-c", autoencoder_run, *options, code=2)
    assert list(tmp_path.iterdir()) == []
