from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from image_models import COARSE_NORM, DINOV3, EVA02, PE, as_timm, image_model, images, weights_of
from timm.layers.mlp import SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from torch import nn

from everest.checkpoints.load import build_model
from everest.models.spec import ModelSpec
from everest.models.video_model import VideoEncoder

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


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@torch.inference_mode()
def test_an_encoder_of_one_tubelet_of_equal_frames_computes_as_timm(options: dict[str, Any], repeats: int):
    model, frames = image_model(**options), images()
    weights = weights_of(model)
    saved = ModelSpec.from_settings(weights.settings, source=Path("small"))
    spec = replace(saved, frames=repeats, model=replace(saved.model, tubelet=(repeats, 8, 8)))
    encoder = build_model(spec, weights, source=Path("small"))
    assert isinstance(encoder, VideoEncoder)
    ids = torch.arange(16).expand(2, -1)
    tokens = encoder.encode(frames[:, :, None].expand(-1, -1, repeats, -1, -1), ids)  # (B, N, D)
    expected = model.forward_features(as_timm(frames))[:, model.num_prefix_tokens :]
    if isinstance(model.norm, nn.Identity):
        expected = model.fc_norm(expected)
    assert (tokens - expected).abs().max() < 1e-5


@torch.inference_mode()
def test_larger_frames_that_are_not_square_have_the_rotary_positions_of_timm():
    model, frames = image_model(**DINOV3), torch.randint(256, (2, 3, 40, 64)).byte()
    weights = weights_of(model)
    saved = ModelSpec.from_settings(weights.settings, source=Path("small"))
    encoder = build_model(replace(saved, size=(40, 64)), weights, source=Path("small"))
    assert isinstance(encoder, VideoEncoder)
    tokens = encoder.encode(frames[:, :, None], torch.arange(40).expand(2, -1))  # (B, N, D)
    expected = model.forward_features(as_timm(frames))[:, model.num_prefix_tokens :]
    assert (tokens - expected).abs().max() < 1e-5
