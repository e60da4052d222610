"""The settings of the transformer: the section `model` of a recipe.

As in everest.config.settings, a default that names a table of the EVEREST paper is the value for UCF101.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import ConfigDict, Field

from everest.config.sizes import BACKBONES, BackboneSize
from everest.config.values import (
    Backbone,
    Depth,
    Frames,
    Gelu,
    Input,
    MlpKind,
    Pooling,
    Positions,
    Rotary,
    Side,
    Width,
)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The transformer. Widths, depth and heads that are None follow from the backbone."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    backbone: Backbone = "vit-b"
    input: Input = "frames"  # differences is our choice for few videos
    tubelet: tuple[Frames, Side, Side] = (2, 16, 16)  # EVEREST Table 15
    positions: Positions = "flat"  # as released
    class_token: bool = False  # a learned token that attends with the encoded ones, as in ST-MAE; no output
    registers: Annotated[int, Field(ge=0, le=64)] = 0  # more such tokens (Darcet et al. 2024), as in DINOv2
    # Of the encoder, as in image models: places turn queries and keys, in addition to `positions`.
    rotary: Rotary = "none"
    norm_before: bool = False  # a LayerNorm before the encoder's blocks, as in CLIP
    mlp: MlpKind = "plain"  # of the encoder's blocks
    gelu: Gelu = "exact"  # of the encoder's blocks, if their MLP is plain
    embedding_layers: Annotated[int, Field(ge=1, le=3)] = 1  # EVEREST Table 15
    pooling: Pooling = "mean"  # of the kept tokens; first: the first token (released program: --use_cls)
    decoder_depth: Depth = 4  # released scripts
    width: Width | None = None  # channels of a token in the encoder; None, here and below: the backbone's
    depth: Depth | None = None  # blocks of the encoder
    heads: Width | None = None  # of attention, in each block of the encoder
    mlp_width: Width | None = None  # of the encoder's blocks; without a backbone's own: four times the width
    decoder_width: Width | None = None  # channels of a token in the decoder
    decoder_heads: Width | None = None  # of attention, in each block of the decoder

    @property
    def num_prefix(self) -> int:
        """The number of learned tokens in front of the encoded ones."""
        return self.class_token + self.registers

    @property
    def backbone_size(self) -> BackboneSize:
        """The backbone's sizes, with the sizes that are set here in their place."""
        names = ("width", "depth", "heads", "mlp_width", "decoder_width", "decoder_heads")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if "width" in given:  # the backbone's MLP is for its own width
            given.setdefault("mlp_width", None)
        return replace(BACKBONES[self.backbone], **given)
