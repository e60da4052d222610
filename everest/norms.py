"""Where an imported model norms otherwise than the released programs do."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict
from torch import nn

from everest.models.classifier import VideoClassifier
from everest.models.mae import MaskedAutoencoder


@dataclass(frozen=True, kw_only=True)
class Norms:
    """The LayerNorms of a model; the defaults are those of the released programs, and ours."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    after_encoder: bool = True  # pretrain; transformers may have none
    eps: float = 1e-6  # added to the variance
    last_eps: float = 1e-6  # the same of the decoder's norm, and of the one after averaging


def set_norms(model: MaskedAutoencoder | VideoClassifier, norms: Norms) -> None:
    """Make a fresh model norm as `norms` say."""
    if isinstance(model, MaskedAutoencoder) and not norms.after_encoder:
        model.encoder.norm = nn.Identity()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = norms.eps
    if isinstance(model, MaskedAutoencoder):
        model.decoder.norm.eps = norms.last_eps
    elif model.pooling == "mean":
        model.norm.eps = norms.last_eps
