"""The LayerNorms of a model, which differ between the programs that weights come from."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict
from torch import nn

from everest.config.values import Share
from everest.models.classifier import VideoClassifier
from everest.models.encoder import VideoEncoder
from everest.models.mae import MaskedAutoencoder


@dataclass(frozen=True, kw_only=True)
class Norms:
    """The LayerNorms of a model. The defaults are the values of everest and of the released programs."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    after_encoder: bool = True  # pretrain, encoder; models of transformers may have none
    eps: Share = 1e-6  # added to the variance
    last_eps: Share = 1e-6  # the same for the decoder's norm and for the norm after averaging


def set_norms(model: MaskedAutoencoder | VideoClassifier | VideoEncoder, norms: Norms) -> None:
    """Change the LayerNorms of a new model to `norms`."""
    if not isinstance(model, VideoClassifier) and not norms.after_encoder:
        model.encoder.norm = nn.Identity()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = norms.eps
    if isinstance(model, MaskedAutoencoder):
        model.decoder.norm.eps = norms.last_eps
    elif isinstance(model, VideoClassifier) and model.pooling == "mean":
        model.norm.eps = norms.last_eps
