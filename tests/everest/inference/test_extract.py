import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from small_runs import called, refused

import everest
from everest.errors import EnvironmentProblem
from everest.inference import features
from everest.models.pooling import mean_and_change
from everest.system.parts import open_parts

VIEWS = ["--views", "2x1"]


def extracted(folder: Path, *options: object) -> dict[str, torch.Tensor]:
    called("extract", *options, "--out", folder / "f.safetensors", "--overwrite", "-q")
    return load_file(folder / "f.safetensors")


@pytest.mark.parametrize("kind", ["classifier", "pretrain"])
@pytest.mark.parametrize("keep", [None, 0.5])
def test_levels_are_of_the_same_features(classifier_run, autoencoder_run, clip_files, tmp_path, kind, keep):
    checkpoint = classifier_run if kind == "classifier" else autoencoder_run
    options = [clip_files, "-c", checkpoint, *VIEWS, *([] if keep is None else ["--keep", keep])]
    video, views, tokens = (
        extracted(tmp_path, *options, "--features", level) for level in ("video", "views", "tokens")
    )
    assert torch.equal(video["features"], views["features"].mean(dim=1))
    kept = 32 if kind == "pretrain" else 19  # of 32: all, or six in ten
    assert tokens["features"].shape == (4, 2, kept if keep is None else 16, 24)
    assert tokens["token_ids"].shape == tokens["features"].shape[:3]
    assert (tokens["token_ids"].diff(dim=-1) > 0).all()
    encoded, ids = (tokens[name].flatten(0, 1) for name in ("features", "token_ids"))
    model = everest.load_model(checkpoint)
    with torch.no_grad():
        if kind == "classifier":
            expected = model.norm(encoded.mean(dim=1))
        else:
            expected = mean_and_change(encoded, ids, model.encoder.grid)
    expected = expected.unflatten(0, (4, 2))
    torch.testing.assert_close(views["features"], expected, atol=1e-6, rtol=1e-5)


def test_both_kinds_of_file_are_equal_and_equal_calls_write_equal_files(classifier_run, clip_files, tmp_path):
    options = [clip_files, "-c", classifier_run, "--features", "tokens"]
    tensors = extracted(tmp_path, *options)
    called("extract", *options, "--out", tmp_path / "f.npz", "-q")
    for file in (tmp_path / "f.npz", tmp_path / "f.safetensors"):
        before = file.read_bytes()
        called("extract", *options, "--out", file, "-q", "--overwrite")
        assert file.read_bytes() == before
    with np.load(tmp_path / "f.npz") as file:
        arrays = dict(file)
    for name, tensor in tensors.items():
        assert np.array_equal(arrays[name], tensor.numpy())
    with safe_open(tmp_path / "f.safetensors", framework="pt") as file:
        header = file.metadata()
    videos = [str(path) for path in sorted(clip_files.glob("*.mp4"))]
    assert json.loads(header["videos"]) == arrays["videos"].tolist() == videos
    assert header["recipe"] == str(arrays["recipe"]) == "tiny"
    assert {path.name for path in tmp_path.iterdir()} == {"f.npz", "f.safetensors"}


def test_parts_of_other_work_and_damaged_ones_are_not_mixed(classifier_run, clip_files, tmp_path):
    out, parts = tmp_path / "f.npz", tmp_path / "f.npz.parts"
    command = ("extract", clip_files, "-c", classifier_run, "--out", out, "-q")
    with open_parts(parts, {"weights": "others", "features": "video"}):
        for options in ([], ["--overwrite"]):  # which removes nothing of a running command
            assert "f.npz.parts: another process writes there now" in refused(*command, *options, code=2)
    message = refused(*command, code=2)
    assert "its rows were begun with other weights, views, videos, versions of videos, precision" in message
    assert "; undo that change, or start again with --overwrite" in message
    called(*command, "--overwrite")
    with np.load(out) as file:
        assert len(file["features"]) == 4
    out.unlink()
    parts.mkdir()
    (parts / "plan.json").write_text("")
    message = refused(*command, code=2)
    assert "plan.json: damaged" in message
    assert len(message.splitlines()) == 1
    called(*command, "--overwrite")
    assert out.exists()
    assert not parts.exists()


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


def test_rows_of_a_file_that_has_changed_are_read_again(autoencoder_run, clip_files, tmp_path, monkeypatch):
    video, folder = shutil.copy(clip_files / "clip0.mp4", tmp_path), tmp_path / "frames"
    folder.mkdir()
    for number in range(16):
        Image.new("RGB", (32, 32), (number * 9, 0, 0)).save(folder / f"{number}.png")
    of_windows = ["extract", video, clip_files, *WINDOWS, "-o", tmp_path / "windows.npz"]
    of_folder = ["extract", folder, "-o", tmp_path / "folder.npz"]
    with monkeypatch.context() as patched:
        patched.setattr(features, "_write_file", full_disk)
        for command in (of_windows, of_folder):
            assert "the disk is full" in refused(*command, "-c", autoencoder_run, code=5)
    shutil.copy(clip_files / "clip1.mp4", video)
    Image.new("RGB", (32, 32), (0, 99, 0)).save(folder / "3.png")
    message = "its rows were begun with other versions of videos; undo"
    for command in (of_windows, of_folder):
        assert message in refused(*command, "-c", autoencoder_run, code=2)
    called(*of_windows, "-c", autoencoder_run, "--overwrite")


def test_options_that_do_not_go_together_are_named(autoencoder_run: Path, clip_files: Path, tmp_path: Path):
    (there := tmp_path / "there.npz").write_text("mine")
    for options, message in (
        (["--step", 1, "-o", "f.npz"], "--step: belongs to --window"),
        (["--window", "inf", "-o", "f.npz"], "--window: must be a number of seconds from 0.001 on, not inf"),
        (["--window", 1, "-o", tmp_path / "f.pt"], "give a file that ends in .safetensors or .npz"),
        (["-o", there], "there.npz: exists; choose another name"),
    ):
        assert message in refused("extract", clip_files, "-c", autoencoder_run, *options, code=2)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
