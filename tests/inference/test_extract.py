import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from small_runs import called, refused

import everest
from everest.inference.row_store import open_row_store
from everest.models.pooling import mean_and_change

VIEWS = ["--views", "2x1"]


def extracted(folder: Path, *options: object) -> dict[str, torch.Tensor]:
    called("extract", *options, "--out", folder / "f.safetensors", "--overwrite", "-q")
    return load_file(folder / "f.safetensors")


@pytest.mark.parametrize("kind", ["classifier", "pretrain"])
@pytest.mark.parametrize("keep", [None, 0.5])
def test_the_levels_are_of_the_same_features(
    classifier_run, autoencoder_run, clip_files, tmp_path, kind: str, keep: float | None
):
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


def test_both_kinds_of_file_hold_the_same_and_equal_calls_write_equal_files(
    classifier_run: Path, clip_files: Path, tmp_path: Path
):
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
    with open_row_store(parts, {"weights": "others", "features": "video"}):
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
