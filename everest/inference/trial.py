"""Open weights and encode one clip, to see that they load and compute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from everest.checkpoints.describe import sample_clips
from everest.checkpoints.load import build_model, find_weights, open_encoder
from everest.foreign.timm_images import is_timm_name, open_image_weights
from everest.inference.model import encode, require_finite_outputs
from everest.models.spec import ModelSpec
from everest.system.weights import state_hash
from everest.tokenizer.network import AdaptiveTokenizer


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Weights, and what they compute of one clip of noise."""

    name: str
    kind: str
    parameters: int
    sha256: str  # of all tensors, by everest's names
    clip: tuple[int, int, int]  # frames, height, width
    tokens: int  # encoded
    width: int
    feature_norm: float  # of the pooled tokens


@torch.inference_mode()
def try_weights(name: str) -> Trial:
    """Encode all tokens of `sample_clips`, on the CPU in float32.

    Args:
        name: a checkpoint, or `timm:NAME`.
    Raises:
        CheckpointError: they cannot be read, are of a tokenizer, or compute no finite numbers.
    """
    if is_timm_name(name):
        weights, source = open_image_weights(name), Path(name)
    else:
        weights = open_encoder(source := find_weights(name))
    spec = ModelSpec.from_settings(weights.settings, source=source)
    module = build_model(spec, weights, source=source)
    assert not isinstance(module, AdaptiveTokenizer)
    features = encode(module, sample_clips(spec, 1), keep=1.0)
    require_finite_outputs(features.pooled, source=name)
    return Trial(
        name=name,
        kind=weights.kind,
        parameters=sum(tensor.numel() for tensor in weights.tensors.values()),
        sha256=state_hash(weights.tensors),
        clip=(spec.frames, *spec.size),
        tokens=features.tokens.size(1),
        width=features.tokens.size(2),
        feature_norm=float(features.pooled.norm()),
    )
