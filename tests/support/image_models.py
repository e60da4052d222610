"""Small image models of timm with random weights, of each family that everest reads."""

from functools import partial
from typing import Any

import torch
from timm.layers.norm import LayerNorm
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from tiny_models import randomized
from torch import Tensor

from everest.converters.timm_images import ImageModel, convert_image_model
from everest.system.weights import Weights

COARSE_NORM = partial(LayerNorm, eps=1e-5)
DINOV3: dict[str, Any] = {
    **{"kind": Eva, "use_rot_pos_emb": True, "rope_type": "dinov3", "rope_temperature": 100.0},
    **{"use_abs_pos_emb": False, "num_reg_tokens": 4, "no_embed_class": True, "rope_rotate_half": True},
    **{"init_values": 0.3, "use_fc_norm": False, "qkv_bias": False, "norm_layer": COARSE_NORM},
    **{"dynamic_img_size": True},
}
EVA02: dict[str, Any] = {
    **{"kind": Eva, "use_rot_pos_emb": True, "ref_feat_shape": (3, 3), "swiglu_mlp": True},
    "mlp_ratio": 4 * 2 / 3,
}
PE: dict[str, Any] = {
    **{"kind": Eva, "use_rot_pos_emb": True, "ref_feat_shape": (3, 3), "rope_grid_offset": 1.0},
    **{"rope_grid_indexing": "xy", "attn_type": "rope", "use_pre_transformer_norm": True},
    **{"global_pool": "map", "norm_layer": COARSE_NORM},
}
MEAN, STD = (0.5, 0.4, 0.6), (0.5, 0.3, 0.2)


def image_model(*, kind: type[ImageModel] = VisionTransformer, **options: Any) -> ImageModel:
    """A small image model of timm on 4 x 4 patches, with all its parameters random."""
    torch.manual_seed(0)
    values = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    model = kind(**values | options).eval()
    randomized(model)
    return model


def weights_of(model: ImageModel) -> Weights:
    return convert_image_model(model, mean=MEAN, std=STD, source="timm:small")


def images(count: int = 2) -> Tensor:
    """(B, 3, 32, 32) uint8"""
    return torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(1)).byte()


def as_timm(frames: Tensor) -> Tensor:
    """Normalize (B, 3, H, W) as the model was trained."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (frames / 255 - mean) / std
