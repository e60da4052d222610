"""An encoder alone, the third kind of weights: every command that takes an encoder takes one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import json_of, refused, run, weights
from tiny_models import randomized, save_model, tiny

import everest
from everest.config.recipe import load_recipe
from everest.errors import CheckpointError
from everest.inference.opened_model import encode_clips
from everest.methods.grid import TokenSelection
from everest.models.classifier import VideoEncoder
from everest.models.clip_spec import ModelSpec
from everest.models.pooling import mean_and_change
from everest.models.spec import encoder_spec, read_model_spec

KEEP = everest.strategies.RedundancyRobust(keep_ratio=0.6, visible_ratio=None)


@pytest.fixture(scope="module")
def spec(recipe: Path) -> ModelSpec:
    """The encoder of the small recipe, which encodes all tokens."""
    return replace(encoder_spec(load_recipe(recipe)), selection=everest.strategies.AllTokens())


@pytest.fixture(scope="module")
def checkpoint(spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    return save_model(file, spec, randomized(spec.build(), 0.05), clip={"stride": 2, "sampling": "dense"})


def test_it_computes_what_an_autoencoder_with_its_weights_computes():
    encoder, autoencoder = tiny("encoder"), tiny("pretrain")
    encoder.encoder.load_state_dict(autoencoder.encoder.state_dict())
    clips = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        for keep in (None, 0.5):
            found, expected = encode_clips(encoder, clips, keep), encode_clips(autoencoder, clips, keep)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            assert torch.equal(encoder(clips, keep=keep), expected.pooled)


def test_its_strategy_chooses_unless_a_call_does():
    encoder, clips = tiny("encoder", selection=KEEP), torch.randn(2, 3, 8, 32, 32)
    assert encoder.encode_kept(clips)[0].shape == (2, 38)  # of 64
    assert encode_clips(encoder, clips, None).tokens.shape == (2, 38, 24)
    assert encoder.encode_kept(clips, 0.25)[0].shape == (2, 16)
    ids = torch.tensor([[1, 5], [0, 63]])
    given = TokenSelection(ids, ids[:, :0])
    with torch.no_grad():
        expected = mean_and_change(encoder.encode(clips, ids), ids, encoder.encoder.grid)
        assert torch.equal(encoder(clips, selection=given), expected)
    with pytest.raises(ValueError, match=r"keep=0\.5 has no effect on a given selection; leave one"):
        encoder(clips, selection=given, keep=0.5)


def test_weights_are_loaded_as_they_were_saved(checkpoint: Path, spec: ModelSpec):
    model = everest.load_model(checkpoint)
    assert isinstance(model, VideoEncoder)
    assert (model.clip.frames, model.clip.stride, model.clip.size) == (4, 2, (32, 32))
    saved = load_file(checkpoint)
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())
    shown = json_of("convert", checkpoint, "--inspect")
    assert (shown["kind"], shown["frames"], shown["num_classes"]) == ("encoder", 4, None)
    assert read_model_spec(spec.dump(), source=checkpoint) == spec


def test_commands_use_it(checkpoint: Path, recipe: Path, clip_files: Path, tmp_path: Path):
    out = tmp_path / "f.safetensors"
    run("extract", clip_files, "-c", checkpoint, "-o", out, "--views", "1x1", "-q")
    features = load_file(out)["features"]
    model, file = everest.load_model(checkpoint), clip_files / "clip2.mp4"
    expected = everest.extract(model, clip_files, clips=1, crops=1).features
    torch.testing.assert_close(features, expected, atol=1e-6, rtol=0)
    probed = json_of("probe", "-c", checkpoint, "-r", recipe, "--probes", "knn", "-q")
    assert probed["test"] == 4
    options = ["-c", checkpoint, "-o", tmp_path]
    (shown,) = json_of("visualize-mask", file, *options)
    assert (len(shown["kept"]), shown["embedding"]) == (32, "checkpoint")
    (shown,) = json_of("visualize-mask", file, *options, "--keep", "0.5", "--overwrite")
    assert len(shown["kept"]) == 16


@pytest.mark.parametrize("pooling", ["mean", "first", "mean-change"])
def test_a_classifier_starts_from_it(checkpoint: Path, recipe: Path, tmp_path: Path, pooling: str):
    still = ["--set=finetune.base_lr=1e-30", "--set=finetune.min_lr=0", f"--set=model.pooling={pooling}"]
    run("finetune -q", "--recipe", recipe, "--init", checkpoint, *still, "-o", tmp_path / "run")
    before, after = load_file(checkpoint), weights(tmp_path / "run")
    norms = {f"encoder.norm.{leaf}" for leaf in ("weight", "bias")}
    assert before.keys() - after.keys() == norms
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - norms)
    same = torch.equal(before["encoder.norm.weight"], after["norm.weight"])
    assert same == (pooling != "mean")  # an average has a norm of its own


def test_what_needs_classes_says_to_train_them(checkpoint: Path, recipe: Path, clip_files: Path, tmp_path):
    video = clip_files / "clip0.mp4"
    message = "an encoder checkpoint where a classifier one is needed; fine-tune it first"
    assert message in refused("predict", video, "-c", checkpoint, code=6)
    assert message in refused("eval", "-c", checkpoint, "--recipe", recipe, code=6)
    with pytest.raises(CheckpointError, match=message):
        everest.evaluate(everest.load_model(checkpoint))
    assert "an encoder alone" in refused("export", checkpoint, "--to", "hf", "-o", tmp_path / "hf", code=6)
    assert not (tmp_path / "hf").exists()
