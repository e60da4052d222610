"""How transformers describes a VideoMAE, and what is done to its frames."""

from __future__ import annotations

from typing import Any, Final

from everest.convert.sizes import MLP_RATIO
from everest.models.spec import ModelSpec
from everest.system.weights import Weights
from everest.video.pixels import IMAGENET_MEAN, IMAGENET_STD

BILINEAR: Final = 2  # of PIL, as transformers writes it


def model_config(weights: Weights, spec: ModelSpec) -> dict[str, Any]:
    """What config.json says."""
    size, (height, width) = spec.model.backbone_size, spec.size
    shared = {
        "model_type": "videomae",
        "dtype": "float32",
        "num_frames": spec.frames,
        "image_size": height if height == width else [height, width],
        "patch_size": spec.model.tubelet[1],
        "tubelet_size": spec.model.tubelet[0],
        "num_channels": 3,
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "intermediate_size": MLP_RATIO * size.width,
        "hidden_act": "gelu",
        "layer_norm_eps": spec.norms.eps,
        "qv_bias": True,
    }
    return {**shared, **(_classifying(weights, spec) if spec.num_classes else _predicting(spec))}


def _classifying(weights: Weights, spec: ModelSpec) -> dict[str, Any]:
    assert spec.num_classes is not None
    names = weights.classes or [f"LABEL_{number}" for number in range(spec.num_classes)]
    return {
        "architectures": ["VideoMAEForVideoClassification"],
        "use_mean_pooling": spec.model.pooling == "mean",
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def _predicting(spec: ModelSpec) -> dict[str, Any]:
    size = spec.model.backbone_size
    assert spec.target is not None
    return {
        "architectures": ["VideoMAEForPreTraining"],
        "use_mean_pooling": not spec.norms.after_encoder,  # transformers' way to have no norm there
        "decoder_num_hidden_layers": spec.model.decoder_depth,
        "decoder_hidden_size": size.decoder_width,
        "decoder_num_attention_heads": size.decoder_heads,
        "decoder_intermediate_size": MLP_RATIO * size.decoder_width,
        "norm_pix_loss": bool(spec.target.normalize),
    }


def preprocessor_config(spec: ModelSpec) -> dict[str, Any]:
    """What preprocessor_config.json says: sizes, mean and deviation of a clip's frames."""
    height, width = spec.size
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "video_processor_type": "VideoMAEVideoProcessor",
        "do_resize": True,
        "size": {"shortest_edge": max(height, width)},
        "resample": BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }
