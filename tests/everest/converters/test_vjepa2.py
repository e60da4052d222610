"""V-JEPA 2 of transformers: its encoder computes the same here, also from a part of the tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import problem_of
from safetensors.torch import load_file, save_file
from small_runs import json_of, refused, run, small_recipe, weights
from tiny_models import randomized
from torch import Tensor

import everest
from everest.checkpoints.load import open_model
from everest.checkpoints.public_weights import read_public_weights
from everest.config.model_settings import BACKBONES
from everest.converters.convert import convert
from everest.converters.foreign_checkpoint import read_foreign
from everest.converters.recognition import Hints
from everest.inference.opened_model import encode_clips
from everest.models.classifier import VideoEncoder

# Of the first, heads have no channels that are not rotated; the second has the heads of the released models.
SIZES: dict[str, dict[str, Any]] = {
    "heads of 12": {
        **{"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2, "mlp_ratio": 3.0},
        **{"crop_size": 32, "patch_size": 8, "frames_per_clip": 4, "tubelet_size": 2},
    },
    "heads of 64": {
        **{"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 3, "mlp_ratio": 4.0},
        **{"crop_size": 80, "patch_size": 16, "frames_per_clip": 12, "tubelet_size": 2},
    },
}
PREDICTOR = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}


def foreign_model(size: str, stage: str = "Model", **changes: Any) -> Any:
    """A model of transformers whose biases and norms differ from their initial zeros and ones."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.VJEPA2Config(**{**SIZES[size], **PREDICTOR, "num_pooler_layers": 1, **changes})
    return randomized(getattr(transformers, f"VJEPA2{stage}")(config).eval(), 0.1)


def clips_for(model: Any, batch: int = 2) -> Tensor:
    config = model.config
    side, generator = config.crop_size, torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, config.frames_per_clip, side, side, generator=generator)


def of_tokens(model: Any, clips: Tensor, ids: Tensor) -> Tensor:
    """The outputs (B, K, D) of transformers' blocks from the tokens `ids` only.

    Its `context_mask` leaves tokens out after the encoder. Its blocks take the positions of their tokens,
    which its predictor uses.
    """
    encoder = model.encoder
    x = encoder.embeddings(clips.transpose(1, 2))
    x = x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.size(-1)))
    for layer in encoder.layer:
        x = layer(x, ids)[0]
    return encoder.layernorm(x)


def opened(folder: Path) -> VideoEncoder:
    return open_model(folder).module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that transformers wrote, with heads of 12 channels."""
    path = tmp_path_factory.mktemp("vjepa2")
    foreign_model("heads of 12").save_pretrained(path)
    return path


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_the_encoder_computes_what_transformers_computes(size: str, tmp_path: Path):
    reference = foreign_model(size)
    reference.save_pretrained(tmp_path)
    model, clips = opened(tmp_path), clips_for(reference)
    expected = reference(clips.transpose(1, 2), skip_predictor=True).last_hidden_state
    found = encode_clips(model, clips, None)
    torch.testing.assert_close(found.tokens, expected, atol=1e-5, rtol=0)
    mean = found.pooled[:, : expected.size(2)]  # the first of the four statistics
    torch.testing.assert_close(mean, expected.mean(dim=1), atol=1e-5, rtol=0)
    kept = encode_clips(model, clips, 0.6)
    assert kept.ids.size(1) == int(0.6 * expected.size(1))
    assert not torch.equal(kept.ids[0], kept.ids[1])
    of_kept = of_tokens(reference, clips, kept.ids)
    torch.testing.assert_close(kept.tokens, of_kept, atol=1e-5, rtol=0)
    # The tokens are others than those of the whole clip, and than those at other positions.
    assert (of_kept - expected.gather(1, kept.ids.unsqueeze(-1).expand_as(of_kept))).abs().max() > 1e-3
    beside = encode_clips(model, clips.roll(model.encoder.patch_embed.tubelet[2], dims=-1), None).tokens
    assert (beside - expected).abs().max() > 1e-3


@torch.no_grad()
def test_weights_of_bfloat16_are_read(tmp_path: Path):
    reference = foreign_model("heads of 12").to(torch.bfloat16)
    reference.save_pretrained(tmp_path)
    reference, clips = reference.float(), clips_for(reference)
    expected = reference(clips.transpose(1, 2), skip_predictor=True).last_hidden_state
    found = encode_clips(opened(tmp_path), clips, None).tokens
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_values_that_a_configuration_leaves_out_are_those_of_transformers(folder: Path):
    given = read_foreign(folder)
    left = {"model_type": "vjepa2", "num_attention_heads": 4}
    spec = convert(replace(given, config=left), Hints()).identity.spec
    assert (spec.frames, spec.size, spec.norms.eps) == (64, (256, 256), 1e-6)


RELEASED = {  # width, heads, blocks and width of the MLP (Assran et al. 2025, Table 1)
    "vit-l": (1024, 16, 24, 4096),
    "vit-h": (1280, 16, 32, 5120),
    "vit-g": (1408, 22, 40, 6144),
}


@pytest.mark.parametrize("backbone", RELEASED)
def test_the_released_sizes_are_those_of_the_backbones(backbone: str):
    size, (width, heads, depth, mlp) = BACKBONES[backbone], RELEASED[backbone]
    assert (size.width, size.depth, size.mlp) == (width, depth, mlp)
    rows = [row for row in read_public_weights() if (row.layout, row.backbone) == ("VJEPA2Model", backbone)]
    assert rows
    assert all((size.heads == heads) != (f"model.heads={heads}" in row.settings) for row in rows)


def test_a_classifier_is_an_encoder_with_partial(tmp_path: Path):
    reference = foreign_model("heads of 12", "ForVideoClassification", num_labels=3)
    reference.save_pretrained(tmp_path / "hf")
    message = refused("convert", tmp_path / "hf", "-o", tmp_path / "e.safetensors", code=6)
    assert "everest has no attentive pooler of several blocks" in message
    assert "--partial` takes the encoder, which is all that finetune needs" in message
    assert "no attentive pooler" in refused("extract", tmp_path, "-c", tmp_path / "hf", "-o", "f.npz", code=6)
    run("convert", tmp_path / "hf", "-o", tmp_path / "e.safetensors", "--partial")
    model, clips = opened(tmp_path / "e.safetensors"), clips_for(reference)
    with torch.no_grad():
        expected = reference.vjepa2(clips.transpose(1, 2), skip_predictor=True).last_hidden_state
        torch.testing.assert_close(encode_clips(model, clips, None).tokens, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": 500.0}, "rope_theta is 500.0 in its config.json; only 10000.0 is possible"),
        ({"rope_scaling": {"factor": 2}}, "rope_scaling is {'factor': 2} in its config.json; none is"),
        ({"model_type": "vjepa3"}, "model_type is vjepa3 in its config.json; only vjepa2 is possible"),
        ({"num_attention_heads": 16}, "16 heads of 3 channels; rotary positions need an even number"),
        ({"crop_size": 36}, "set --frames and --size of its training"),
        ({"frames_per_clip": "4"}, "frames_per_clip: Input should be a valid integer"),
    ],
)
def test_configurations_of_other_models_are_refused(folder: Path, changes: dict[str, Any], message: str):
    given = read_foreign(folder)
    given = replace(given, config={**given.config, **changes})
    assert message in problem_of(convert, given, Hints())


def test_without_a_configuration_the_clip_and_the_heads_have_to_be_given(folder: Path, tmp_path: Path):
    alone = tmp_path / "alone.safetensors"
    save_file(load_file(folder / "model.safetensors"), alone)
    out = tmp_path / "e.safetensors"
    message = refused("convert", alone, "-o", out, code=6)
    assert "set --heads and --frames and --size" in message
    assert not out.exists()
    run("convert", alone, "-o", out, "--heads", 4, "--frames", 4, "--size", 32)
    run("convert", folder, "-o", tmp_path / "same.safetensors")
    found, same = opened(out), opened(tmp_path / "same.safetensors")
    clips = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(found(clips), same(clips))


@pytest.fixture
def recipe(tmp_path: Path, clip_files: Path) -> Path:
    """Clips of 4 x 32 x 32 for the backbone of `folder`."""
    backbone = "width: 48, depth: 2, heads: 4, mlp_width: 144"
    return small_recipe(tmp_path, clip_files, {"width: 24, depth: 2, heads: 2": backbone})


def test_a_classifier_starts_from_the_folder_and_keeps_its_places(folder, recipe, tmp_path, clip_files):
    still = ["--set", "finetune.base_lr=1e-30", "--set", "finetune.min_lr=0", "-o", tmp_path / "run", "-q"]
    options = ["finetune", "--recipe", recipe, "--init", folder, *still]
    message = refused(*options, code=6)
    assert "use --set model.positions=rotary" in message
    wrong = refused(*options, "--set", "model.positions=rotary", "--set", "model.mlp_width=null", code=6)
    assert "its encoder differs from the recipe" in wrong
    run(*options, "--set", "model.positions=rotary")
    tuned, model = weights(tmp_path / "run"), opened(folder)
    for name, tensor in model.encoder.state_dict().items():
        if not name.startswith("norm."):
            assert torch.equal(tuned[f"encoder.{name}"], tensor), name
    classifier = everest.load_model(tmp_path / "run")
    clips = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        ids = classifier.encode_kept(clips)[0]
        assert ids.size(1) == 19  # 60 % of 32
        normed = model.encoder.norm(classifier.encode(clips, ids))
        torch.testing.assert_close(normed, model.encode(clips, ids))
    predicted = json_of("predict", clip_files / "clip0.mp4", "-c", tmp_path / "run")
    assert len(predicted) == 1
    run("eval", "-c", tmp_path / "run", "--json", "-q")


@pytest.mark.slow
def test_exports_select_inside(folder: Path, tmp_path: Path):
    document = json_of("export", folder, "--to", "onnx", "-o", tmp_path / "m.onnx", "--keep", "0.5")
    assert document["difference"] < 1e-4
    assert "features, kept" in document["notes"][0]
