"""Image weights in files: real encoders give timm's features, and a file states what it may be."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from shared_files import shared_folder
from small_runs import called, json_of, refused, run

from everest.checkpoints.describe import settings_from
from everest.checkpoints.load import open_model
from everest.data.views import ClipFormat
from everest.errors import CheckpointError
from everest.models.classifier import VideoEncoder
from everest.suggest.suggestion import suggest_recipe

TINY = "vit_tiny_patch16_224"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("vit_small_patch14_dinov2.lvd142m", marks=pytest.mark.slow),  # 518 x 518 pixels
        "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "deit_tiny_patch16_224.fb_in1k",
    ],
)
@torch.inference_mode()
def test_real_encoders_have_the_features_of_timm_for_each_frame(name: str):
    file = shared_folder() / "weights" / f"{name}.safetensors"
    video = next((shared_folder() / "videos" / "actions").rglob("*.mp4"))
    reference: Any = timm.create_model(name, num_classes=0).eval()
    reference.load_state_dict({key: x.float() for key, x in load_file(file).items()}, strict=False)
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    size = reference.patch_embed.img_size
    model = open_model(f"timm:{name}={file}", frames=2, size=size).module
    assert isinstance(model, VideoEncoder)
    clip = ClipFormat(frames=2, stride=1, size=size, sampling="spread").read(video)  # (3, 2, H, W)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    frames = (clip.transpose(0, 1) / 255 - mean) / std  # (2, 3, H, W)
    expected = reference.forward_features(frames)[:, reference.num_prefix_tokens :]  # (2, places, D)
    ids = torch.arange(model.encoder.grid.num_tokens)[None]
    tokens = model.encode(clip[None], ids)[0].unflatten(0, (2, -1))
    assert (tokens.mean(dim=1) - expected.mean(dim=1)).abs().max() < 1e-4
    still = clip[:, :1].expand(-1, 2, -1, -1)[None]
    width = model.encoder.width
    assert (model(still)[:, :width] - expected[:1].mean(dim=1)).abs().max() < 1e-4
    some = ids[:, ids[0] % 5 != 0]  # another number in each slice
    alone = [model.encode(clip[None], some[:, some[0] // model.encoder.grid.per_slice == s]) for s in (0, 1)]
    assert (model.encode(clip[None], some) - torch.cat(alone, dim=1)).abs().max() < 1e-3  # of single tokens


def test_a_file_and_a_pickle_bring_clips_and_encoder(image_file: Path, tmp_path: Path, clip_files: Path):
    pickled = tmp_path / "weights.pth"
    torch.save({"state_dict": load_file(image_file)}, pickled)
    first, second = (settings_from(f"timm:{TINY}={file}", on_cpu=True) for file in (image_file, pickled))
    assert first.values == second.values
    assert all(torch.equal(x, second.weights.tensors[key]) for key, x in first.weights.tensors.items())
    assert {key: first.values[key] for key in ("data.frames", "data.size", "model.tubelet")} == {
        "data.frames": 8,
        "data.size": [144, 144],
        "model.tubelet": [1, 16, 16],
    }
    section = {"root": str(clip_files), "train": "train.csv", "test": "test.csv"}
    options = {"purpose": "scratch", "output": tmp_path / "r.yaml", "start": first}
    recipe = suggest_recipe(section, "cpu", **options).recipe
    saved = first.spec.model
    assert (recipe.model.backbone_size, recipe.model.attention) == (saved.backbone_size, "slice")
    assert (recipe.finetune.freeze, recipe.finetune.sampling) == ("first:10", "spread")


def test_a_file_without_its_model_is_told_to_name_it(image_file: Path):
    with pytest.raises(CheckpointError, match=f"name them timm:NAME={image_file}"):
        settings_from(str(image_file))
    assert f"name them timm:NAME={image_file}" in refused("convert --inspect", image_file, code=6)
    with pytest.raises(CheckpointError, match="do not fit the model"):
        settings_from(f"timm:vit_small_patch16_224={image_file}")


@pytest.mark.slow
def test_probe_without_a_recipe_and_weights_of_the_cache(image_file: Path, clip_files: Path, tmp_path: Path):
    cache = tmp_path / "cache" / "models--timm--vit_tiny_patch16_224.augreg_in21k"
    command = [sys.executable, "-m", "everest_cli", "probe", "--data", str(clip_files), "--probes", "knn"]
    command += [
        "--set",
        "data.size=96",
        "--set",
        "data.frames=2",
        "--set",
        "data.test=train.csv",
        "--json",
        "-q",
        "--checkpoint",
    ]
    offline = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    name = "timm:vit_tiny_patch16_224.augreg_in21k"

    def probe(checkpoint: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, checkpoint], env=offline, capture_output=True, text=True)

    missing = probe(name)
    assert missing.returncode == 6
    fix = f"copy {cache.name} to {cache.parent} (HF_HUB_CACHE), or use {name}=FILE"
    assert missing.stderr.endswith(f"{fix}\n")
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("1" * 40)
    snapshot = cache / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(image_file.read_bytes())
    cached, named = probe(name), probe(f"{name}={image_file}")
    assert cached.returncode == named.returncode == 0, cached.stderr + named.stderr
    results = [result.stdout.partition('"seconds"')[0] for result in (cached, named)]
    assert results[0] == results[1]


def test_weights_of_timm_are_converted_with_their_license(image_file: Path, tmp_path: Path):
    name, out = f"timm:{TINY}={image_file}", tmp_path / "converted.safetensors"
    facts = json_of("convert", name, "--output", out)
    assert (facts["family"], facts["kind"], facts["frames"], facts["size"]) == (
        "timm",
        "encoder",
        1,
        [224] * 2,
    )
    assert f"origin: {name} (license apache-2.0)" in run("convert --inspect", out)
    converted, direct = settings_from(str(out)), settings_from(name)
    assert converted.values == direct.values
    assert all(torch.equal(x, converted.weights.tensors[key]) for key, x in direct.weights.tensors.items())
    assert "only --output, --inspect and --json apply" in refused(
        "convert --inspect --frames 4", name, code=2
    )


def test_image_weights_without_a_recipe_see_one_center_view(image_file, clip_files, tmp_path):
    out = tmp_path / "f.safetensors"
    options = ["-c", f"timm:{TINY}={image_file}", "--features", "views", "-o", out]
    shown = called("extract", clip_files / "clip0.mp4", *options).stderr
    assert "by default one center view of 8 frames spread over the video, 144 x 144 pixels" in shown
    assert load_file(out)["features"].shape == (1, 1, 4 * 192)
