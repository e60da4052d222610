"""Image models of timm as encoders: equal to timm on single frames, and inflated to tubelets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from everest.checkpoints.init import Start
from everest.checkpoints.load import build_model
from everest.checkpoints.start import start_autoencoder, start_classifier
from everest.checkpoints.timm_images import image_weights, open_image_weights, require_plain
from everest.config.heads import Head
from everest.config.recipe import load_recipe
from everest.errors import CheckpointError, RecipeError
from everest.models.classifier import VideoClassifier
from everest.models.encoder import VideoEncoder
from everest.models.mae import MaskedAutoencoder
from everest.models.of_recipe import classifier_spec, pretrain_spec
from everest.models.spec import ModelSpec
from everest.system.run_environment import Init
from everest.system.weights import Weights

MEAN, STD = (0.5, 0.4, 0.6), (0.5, 0.3, 0.2)
VARIANTS: dict[str, dict[str, Any]] = {
    "class token": {},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "class token without a position": {"no_embed_class": True},
    "LayerScale": {"init_values": 0.3},
    "no biases of query, key and value": {"qkv_bias": False},
    "a norm after the mean": {"global_pool": "avg"},
    "an MLP of another width": {"mlp_ratio": 2.5},
    "registers (DINOv2)": {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.3},
    "registers with positions": {"reg_tokens": 4},
    "registers alone": {"reg_tokens": 4, "class_token": False, "global_pool": "avg"},
    "tanh GELU and attention pooling (SigLIP)": {
        **{"act_layer": "gelu_tanh", "class_token": False, "global_pool": "map"},
    },
    "distillation token (DeiT)": {"distilled": True},
}


def image_model(**options: Any) -> VisionTransformer:
    """A small ViT of timm, with all its parameters random."""
    torch.manual_seed(0)
    values = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    kind = VisionTransformerDistilled if options.pop("distilled", False) else VisionTransformer
    model = kind(**values | options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def weights_of(model: VisionTransformer) -> Weights:
    return image_weights(model, mean=MEAN, std=STD, source="timm:small")


def images(count: int = 2) -> Tensor:
    """(B, 3, 32, 32) uint8"""
    return torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(1)).byte()


def as_timm(frames: Tensor) -> Tensor:
    """Normalize (B, 3, H, W) as the model was trained."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (frames / 255 - mean) / std


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@torch.inference_mode()
def test_an_encoder_of_single_frames_computes_as_timm(options: dict[str, Any]):
    model, frames = image_model(**options), images()
    weights = weights_of(model)
    spec = ModelSpec.from_settings(weights.settings, source=Path("small"))
    encoder = build_model(spec, weights, source=Path("small"))
    assert isinstance(encoder, VideoEncoder)
    ids = torch.arange(16).expand(2, -1)
    tokens = encoder.encode(frames[:, :, None], ids)  # (B, N, D)
    expected = model.forward_features(as_timm(frames))[:, model.num_prefix_tokens :]
    if isinstance(model.norm, nn.Identity):
        expected = model.fc_norm(expected)
    assert (tokens - expected).abs().max() < 1e-5


@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@torch.inference_mode()
def test_on_a_still_clip_the_tokens_are_those_of_the_image(stage: str, frames: int):
    model = image_model()
    weights, notices = weights_of(model), []
    sizes = ["data.size=32", "data.frames=8", f"model.tubelet=[{frames},8,8]", "model.class_token=true"]
    width = ["model.width=48", "model.depth=2", "model.heads=3", "model.positions=learned-separable"]
    recipe = load_recipe("demo", overrides=[*sizes, *width])
    init = Init(name="timm:small", file="timm:small")
    saved = ModelSpec.from_settings(weights.settings, source=Path("small"))
    start = Start(init=init, origin={}, saved=saved, weights=weights)
    if stage == "pretrain":
        spec = start.adapted(pretrain_spec(recipe, tokenizer=None))
        started = spec.build()
        assert isinstance(started, MaskedAutoencoder)
        start_autoencoder(started, spec, start, notify=notices.append)
        assert "the decoder starts fresh: encoder weights have none" in notices
    else:
        spec = start.adapted(classifier_spec(recipe, (Head(outputs=3),)))
        started = spec.build()
        assert isinstance(started, VideoClassifier)
        start_classifier(started, spec, start, classes=None, notify=notices.append)
    clip = images()[:, :, None].expand(-1, -1, 8, -1, -1)  # (B, 3, T, H, W)
    slices, places = 8 // frames, 16
    encoder = started.encoder
    ids = torch.arange(slices * places).expand(2, -1)
    tokens = encoder.embed(clip, ids) - encoder.position(ids)
    expected = model.patch_embed(as_timm(images()))  # (B, 16, D)
    assert (tokens - expected.repeat(1, slices, 1)).abs().max() < 1e-5
    own = model.pos_embed[:, 1:] if model.pos_embed is not None else None
    assert own is not None
    assert torch.equal(encoder.position(ids[:1, :places]), own)  # the first slice of places


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("eva02_tiny_patch14_224", "the architecture Eva"),
        ("vit_base_patch16_clip_224", "a norm before its blocks"),
        ("vit_giant_patch14_dinov2", "an MLP of the kind GluMlp"),
        ("beit_base_patch16_224", "the architecture Beit"),
        ("vit_dwee_patch16_reg1_gap_256", "attention of the kind DiffAttention"),
        ("vit_relpos_base_patch16_224", "the architecture VisionTransformerRelPos"),
        ("vit_base_patch16_rpn_224", "blocks of the kind ResPostBlock"),
        ("resnet18", "the architecture ResNet"),
    ],
)
def test_what_an_encoder_lacks_is_named(name: str, part: str):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    with pytest.raises(CheckpointError, match=f"^timm:{name}: has {part}.*; everest's encoder has not"):
        require_plain(model, source=f"timm:{name}")


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch14_dinov2",
        "vit_so400m_patch14_siglip_224",
        "deit3_small_patch16_224",
        "eva_large_patch14_196",
        "vit_intern300m_patch14_448",
        "flexivit_small",
        "vit_small_patch14_reg4_dinov2",
        "vit_base_patch32_siglip_256",
        "deit_tiny_distilled_patch16_224",
    ],
)
def test_families_that_load(name: str):
    with torch.device("meta"):
        weights = image_weights(timm.create_model(name, num_classes=0), mean=MEAN, std=STD, source=name)
        spec = ModelSpec.from_settings(weights.settings, source=Path(name))
        shapes = {name: tensor.shape for name, tensor in spec.build().state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in weights.tensors.items()}


def test_names_that_do_not_exist():
    with pytest.raises(RecipeError, match="no such model; did you mean 'vit_base_patch16_224'"):
        open_image_weights("timm:vit_base_patch16_225")
    with pytest.raises(RecipeError, match="no weights of this name on the hub"):
        open_image_weights("timm:vit_base_patch16_224.nobody")


def test_weights_that_were_released_in_another_format_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """These are released as .npz, which timm below 1.0.31 also expects of a file that it is given."""
    name = "vit_tiny_patch16_224.augreg_in21k"
    with torch.device("meta"):
        shapes = {key: t.shape for key, t in timm.create_model(name, num_classes=0).state_dict().items()}
    stored = {key: torch.full(shape, 0.5) for key, shape in shapes.items()}
    save_file(stored, tmp_path / "model.safetensors")
    monkeypatch.setattr("everest.checkpoints.timm_images.fetch", lambda *arguments, **options: tmp_path)
    tensors = open_image_weights(f"timm:{name}").tensors
    assert torch.equal(tensors["encoder.norm.weight"], stored["norm.weight"])


@pytest.mark.slow
def test_weights_of_the_hub_are_read_from_its_cache(tmp_path: Path):
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    code = (
        "from everest.checkpoints.timm_images import open_image_weights as o;"
        "w = o('timm:vit_tiny_patch16_224.augreg_in21k'); print(len(w.tensors), w.settings['model'])"
    )
    place = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    options: dict[str, Any] = {"capture_output": True, "text": True, "env": {**os.environ, **place}}
    missing = subprocess.run(command, **options)
    assert "Unreachable: hf:timm/vit_tiny_patch16_224.augreg_in21k: not complete" in missing.stderr
    folder = tmp_path / "hub" / "models--timm--vit_tiny_patch16_224.augreg_in21k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    model = timm.create_model("vit_tiny_patch16_224.augreg_in21k", pretrained=False)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    (snapshot / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    found = subprocess.run(command, **options)
    assert found.returncode == 0, found.stderr
    assert "license apache-2.0" in found.stderr
    assert found.stdout.startswith("164 {'backbone': 'vit-tiny'")
