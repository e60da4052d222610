"""Image models of timm as encoders: equal to timm on single frames, and inflated to tubelets."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from foreign import problem_of
from hub_cache import cached
from huggingface_hub import constants
from image_models import COARSE_NORM, DINOV3, EVA02, MEAN, PE, STD, as_timm, image_model, images, weights_of
from safetensors.torch import load_file, save_file
from shared_files import shared_folder
from small_runs import called, equal, json_of, refused, run
from timm.layers.mlp import SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from torch import Tensor, nn

from everest.checkpoints.describe import read_weight_settings
from everest.checkpoints.init import InitWeights, compare_settings, load_init
from everest.checkpoints.load import build_model, open_model
from everest.config.heads import Head
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.converters.timm_images import convert_image_model, open_image_weights, require_supported
from everest.data.views import ClipFormat
from everest.errors import RecipeError
from everest.methods.grid import patchify
from everest.models.spec import classifier_spec, pretrain_spec, read_model_spec
from everest.system.run_folder import InitFile
from everest.system.weights import Weights
from everest_workflows.suggest.suggestion import suggest_recipe

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
        **{"act_layer": "gelu_tanh", "class_token": False, "global_pool": "map"}
    },
    "distillation token (DeiT)": {"kind": VisionTransformerDistilled},
    "SwiGLU (DINOv2 giant)": {"mlp_layer": SwiGLUPacked, "mlp_ratio": 5.0, "act_layer": nn.SiLU},
    "a norm before the blocks (CLIP)": {"pre_norm": True, "norm_layer": COARSE_NORM},
    "quick GELU (CLIP)": {"pre_norm": True, "norm_layer": COARSE_NORM, "act_layer": "quick_gelu"},
    "DINOv3": DINOV3,
    "DINOv3 with biases": {**DINOV3, "qkv_bias": True},
    "DINOv3 with SwiGLU": {**DINOV3, "swiglu_mlp": True, "swiglu_align_to": 8, "mlp_ratio": 2.5},
    "EVA-02 (small)": EVA02,
    "EVA-02 (large)": {**EVA02, "scale_mlp": True, "qkv_fused": False},
    "EVA without rotary positions": {"kind": Eva},
    "Perception Encoder": PE,
    "Perception Encoder (gigantic)": {**PE, "class_token": False, "rope_grid_offset": 0.0},
    "Perception Encoder, split": {**PE, "qkv_fused": False},
    "RoPE-ViT": {
        **{"kind": Eva, "use_rot_pos_emb": True, "rope_grid_indexing": "xy", "rope_temperature": 100.0},
        **{"use_abs_pos_emb": False, "attn_type": "rope", "no_embed_class": True},
    },
}


def of_timm(model: Any, frames: Tensor) -> Tensor:
    """timm's features (B, N, D) of the positions of images (B, 3, H, W) uint8."""
    features = model.forward_features(as_timm(frames))[:, model.num_prefix_tokens :]
    return model.fc_norm(features) if isinstance(model.norm, nn.Identity) else features


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@torch.inference_mode()
def test_an_encoder_of_one_tubelet_of_equal_frames_computes_as_timm(options: dict[str, Any], repeats: int):
    model, frames = image_model(**options), images()
    weights = weights_of(model)
    saved = read_model_spec(weights.settings, source=Path("small"))
    spec = replace(saved, frames=repeats, model=replace(saved.model, tubelet=(repeats, 8, 8)))
    encoder = build_model(spec, weights, source=Path("small"))
    ids = torch.arange(16).expand(2, -1)
    tokens = encoder.encode(frames[:, :, None].expand(-1, -1, repeats, -1, -1), ids)  # (B, N, D)
    assert (tokens - of_timm(model, frames)).abs().max() < 1e-5


@torch.inference_mode()
def test_larger_frames_that_are_not_square_have_the_rotary_positions_of_timm():
    model, frames = image_model(**DINOV3), torch.randint(256, (2, 3, 40, 64)).byte()
    weights = weights_of(model)
    saved = read_model_spec(weights.settings, source=Path("small"))
    encoder = build_model(replace(saved, size=(40, 64)), weights, source=Path("small"))
    tokens = encoder.encode(frames[:, :, None], torch.arange(40).expand(2, -1))  # (B, N, D)
    assert (tokens - of_timm(model, frames)).abs().max() < 1e-5


def started(weights: Weights, recipe: Recipe, stage: str = "pretrain") -> tuple[Any, list[str]]:
    """The new model of a stage that starts from the weights, and the notices."""
    saved, notices = read_model_spec(weights.settings, source=Path("small")), []
    init = InitWeights(
        init_file=InitFile(name="timm:small", file="timm:small"), origin={}, saved=saved, weights=weights
    )
    new = pretrain_spec(recipe)
    if stage == "finetune":
        new = classifier_spec(recipe, (Head(outputs=3),))
    spec = init.adapt_spec(new)
    model = spec.build()
    load_init(model, spec, init, notify=notices.append)
    return model, notices


@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@torch.inference_mode()
def test_on_a_still_clip_the_tokens_are_those_of_the_image(stage: str, frames: int):
    model = image_model()
    sizes = ["data.size=32", "data.frames=8", f"model.tubelet=[{frames},8,8]", "model.class_token=true"]
    width = ["model.width=48", "model.depth=2", "model.heads=3", "model.positions=learned-separable"]
    new, notices = started(weights_of(model), load_recipe("demo", overrides=[*sizes, *width]), stage)
    assert ("the decoder starts fresh: encoder weights have none" in notices) == (stage == "pretrain")
    clip = images()[:, :, None].expand(-1, -1, 8, -1, -1)  # (B, 3, T, H, W)
    slices, places = 8 // frames, 16
    encoder = new.encoder
    ids = torch.arange(slices * places).expand(2, -1)
    patches = patchify(encoder.pixels.normalized(clip), encoder.patch_embed.tubelet)
    tokens = encoder.patch_embed(patches)  # (B, N, D)
    expected = model.patch_embed(as_timm(images()))  # (B, 16, D)
    assert (tokens - expected.repeat(1, slices, 1)).abs().max() < 1e-5
    assert torch.equal(encoder.position(ids[:1, :places]), model.pos_embed[:, 1:])  # of the first time index


@pytest.mark.parametrize("options", [DINOV3, EVA02, PE], ids=["DINOv3", "EVA-02", "PE"])
@torch.inference_mode()
def test_a_run_with_the_settings_that_the_error_names_starts_with_the_features_of_timm(options):
    model = image_model(**options)
    weights = weights_of(model)
    saved = read_model_spec(weights.settings, source=Path("small"))
    settings = ["data.size=32", "data.frames=2", "model.tubelet=[2,8,8]"]
    named = compare_settings(saved, pretrain_spec(load_recipe("demo", overrides=settings)))
    new, _ = started(weights, load_recipe("demo", overrides=[*settings, *named]))
    ids = torch.arange(16).expand(2, -1)
    tokens = new.encode(images()[:, :, None].expand(-1, -1, 2, -1, -1), ids)  # (B, 16, D)
    assert (tokens - of_timm(model, images())).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("eva02_base_patch16_clip_224", "norms inside its attention"),
        ("eva02_enormous_patch14_clip_224", "blocks of the kind EvaBlockPostNorm"),
        ("vit_small_patch16_rope_mixed_224", "positions of the kind RotaryEmbeddingMixed"),
        ("aimv2_large_patch14_224", "another patch embedding than one convolution"),
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
    message = problem_of(require_supported, model, source=f"timm:{name}")
    assert message.startswith(f"timm:{name}: has {part}")
    assert message.endswith(", which everest's encoder does not support")


FAMILIES = """
vit_tiny_patch16_224 vit_small_patch14_dinov2 vit_so400m_patch14_siglip_224 deit3_small_patch16_224
eva_large_patch14_196 vit_intern300m_patch14_448 flexivit_small vit_small_patch14_reg4_dinov2
vit_base_patch32_siglip_256 deit_tiny_distilled_patch16_224 vit_giant_patch14_dinov2 vit_7b_patch16_dinov3
vit_base_patch16_clip_quickgelu_224 eva02_tiny_patch14_336 eva02_large_patch14_448
vit_pe_core_base_patch16_224 vit_pe_spatial_gigantic_patch14_448 vit_so400m_patch14_siglip_384
"""  # of the last, 384 is no multiple of 14


@pytest.mark.parametrize("name", FAMILIES.split())
def test_families_that_load(name: str):
    with torch.device("meta"):
        weights = convert_image_model(timm.create_model(name, num_classes=0), mean=MEAN, std=STD, source=name)
        spec = read_model_spec(weights.settings, source=Path(name))
        shapes = {name: tensor.shape for name, tensor in spec.build().state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in weights.tensors.items()}


def test_names_that_do_not_exist():
    with pytest.raises(RecipeError, match="no such model; did you mean 'vit_base_patch16_224'"):
        open_image_weights("timm:vit_base_patch16_225")
    with pytest.raises(RecipeError, match="no weights of this name on the hub"):
        open_image_weights("timm:vit_base_patch16_224.nobody")


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224.augreg_in21k",  # released as .npz, which timm below 1.0.31 also expects here
        "vit_small_patch16_dinov3.lvd1689m",
        "eva02_tiny_patch14_224.mim_in22k",
        "vit_pe_core_tiny_patch16_384.fb",
        "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m",
    ],
)
def test_files_of_the_hub_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in timm.create_model(name).state_dict().items()}
    stored = {key: torch.full(shape, 0.5) for key, shape in shapes.items()}
    save_file(stored, tmp_path / "model.safetensors")
    monkeypatch.setattr("everest.converters.timm_images.fetch", lambda *arguments, **options: tmp_path)
    weights = open_image_weights(f"timm:{name}")
    spec = read_model_spec(weights.settings, source=Path(name))
    build_model(spec, weights, source=Path(name))
    assert torch.equal(weights.tensors["encoder.blocks.0.norm1.weight"], stored["blocks.0.norm1.weight"])


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
    size = reference.patch_embed.img_size
    model = open_model(f"timm:{name}={file}", frames=2, size=size).module
    clip = ClipFormat(frames=2, stride=1, size=size, sampling="spread").read(video)  # (3, 2, H, W)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    frames = (clip.transpose(0, 1) / 255 - mean) / std  # (2, 3, H, W)
    expected = reference.forward_features(frames)[:, reference.num_prefix_tokens :]  # (2, positions, D)
    ids = torch.arange(model.encoder.grid.num_tokens)[None]
    tokens = model.encode(clip[None], ids)[0].unflatten(0, (2, -1))
    assert (tokens.mean(dim=1) - expected.mean(dim=1)).abs().max() < 1e-4
    still = clip[:, :1].expand(-1, 2, -1, -1)[None]
    width = model.encoder.width
    assert (model(still)[:, :width] - expected[:1].mean(dim=1)).abs().max() < 1e-4
    some = ids[:, ids[0] % 5 != 0]  # another number at each time index
    alone = [
        model.encode(clip[None], some[:, some[0] // model.encoder.grid.num_positions == s]) for s in (0, 1)
    ]
    assert (model.encode(clip[None], some) - torch.cat(alone, dim=1)).abs().max() < 1e-3  # of single tokens


def test_a_file_and_a_pickle_bring_clips_and_encoder(image_file: Path, tmp_path: Path, clip_files: Path):
    pickled = tmp_path / "weights.pth"
    torch.save({"state_dict": load_file(image_file)}, pickled)
    first, second = (
        read_weight_settings(f"timm:{TINY}={file}", on_cpu=True) for file in (image_file, pickled)
    )
    assert first.values == second.values
    assert all(torch.equal(x, second.weights.tensors[key]) for key, x in first.weights.tensors.items())
    clip = {"data.frames": 8, "data.size": [144, 144], "model.tubelet": [1, 16, 16]}
    assert {key: first.values[key] for key in clip} == clip
    section = {"root": str(clip_files), "train": "train.csv", "test": "test.csv"}
    options = {"purpose": "scratch", "output": tmp_path / "r.yaml", "start": first}
    recipe = suggest_recipe(section, "cpu", **options).recipe
    saved = first.spec.model
    assert (recipe.model.backbone_size, recipe.model.attention) == (saved.backbone_size, "slice")
    assert (recipe.finetune.freeze, recipe.finetune.sampling) == ("first:10", "spread")


def test_a_file_without_its_model_is_told_to_name_it(image_file: Path):
    assert f"name them timm:NAME={image_file}" in problem_of(read_weight_settings, str(image_file))
    assert f"name them timm:NAME={image_file}" in refused("convert --inspect", image_file, code=6)
    assert "not fit the model" in problem_of(read_weight_settings, f"timm:vit_small_patch16_224={image_file}")


def test_weights_of_the_cache_are_those_of_their_file(image_file: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository, name = f"timm/{TINY}.augreg_in21k", f"timm:{TINY}.augreg_in21k"
    folder = f"models--{repository.replace('/', '--')}"
    fix = f"copy {folder} to {tmp_path / 'hub'} (HF_HUB_CACHE), or use {name}=FILE"
    assert problem_of(open_image_weights, name).endswith(fix)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").symlink_to(image_file)
    cached(tmp_path / "hub", repository, tmp_path / "model")
    assert equal(open_image_weights(name).tensors, open_image_weights(f"{name}={image_file}").tensors)


def test_weights_of_timm_are_converted_with_their_license(image_file: Path, tmp_path: Path):
    name, out = f"timm:{TINY}={image_file}", tmp_path / "converted.safetensors"
    facts = json_of("convert", name, "--output", out)
    assert (facts["family"], facts["kind"]) == ("timm", "encoder")
    assert (facts["frames"], facts["size"]) == (1, [224] * 2)
    assert f"origin: {name} (license apache-2.0)" in run("convert --inspect", out)
    converted, direct = read_weight_settings(str(out)), read_weight_settings(name)
    assert converted.values == direct.values
    assert all(torch.equal(x, converted.weights.tensors[key]) for key, x in direct.weights.tensors.items())
    message = refused("convert --inspect --frames 4", name, code=2)
    assert "only --output, --inspect and --json apply" in message


def test_image_weights_without_a_recipe_see_one_center_view(image_file, clip_files, tmp_path):
    out = tmp_path / "f.safetensors"
    options = ["-c", f"timm:{TINY}={image_file}", "--features", "views", "-o", out]
    shown = called("extract", clip_files / "clip0.mp4", *options).stderr
    assert "by default one center view of 8 frames spread over the video, 144 x 144 pixels" in shown
    assert load_file(out)["features"].shape == (1, 1, 4 * 192)
