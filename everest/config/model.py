"""The settings of the transformer: the section `model` of a recipe.

As in everest.config.settings, a default that names a table of the EVEREST paper is the value for UCF101.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from everest.config import values as v
from everest.config.sizes import BACKBONES, BackboneSize, rotary_channels
from everest.config.values import settings


@settings
class ModelSettings:
    """The transformer. Widths, depth and heads that are None follow from the backbone."""

    backbone: v.Backbone = "vit-b"
    input: v.Input = "frames"  # differences is our choice for few videos
    tubelet: tuple[v.Length, v.Length, v.Length] = (2, 16, 16)  # EVEREST Table 15
    positions: v.Positions = "flat"  # as released
    class_token: bool = False  # a learned token that attends with the encoded ones, as in ST-MAE; no output
    registers: v.CountOrZero = 0  # more such tokens (Darcet et al. 2024), as in DINOv2
    # Of the encoder, as in image models: places turn queries and keys, in addition to `positions`.
    rotary: v.Rotary = "none"
    norm_before: bool = False  # a LayerNorm before the encoder's blocks, as in CLIP
    mlp: v.MlpKind = "plain"  # of the encoder's blocks
    gelu: v.Gelu = "exact"  # of the encoder's blocks, if their MLP is plain
    embedding_layers: Annotated[int, Field(ge=1, le=3)] = 1  # EVEREST Table 15
    pooling: v.Pooling = "mean"  # of the kept tokens; first: the first token (released program: --use_cls)
    decoder_depth: v.Depth = 4  # released scripts
    width: v.Length | None = None  # channels of a token in the encoder; None, here and below: the backbone's
    depth: v.Depth | None = None  # blocks of the encoder
    heads: v.Length | None = None  # of attention, in each block of the encoder
    mlp_width: v.Length | None = None  # of the encoder's blocks; if no backbone has one: four times the width
    decoder_width: v.Length | None = None  # channels of a token in the decoder
    decoder_heads: v.Length | None = None  # of attention, in each block of the decoder

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

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yields the key of each setting that does not go with another one, and the reason."""
        size = self.backbone_size
        for part, width, heads in (
            ("", size.width, size.heads),
            ("decoder_", size.decoder_width, size.decoder_heads),
        ):
            channels = width // heads
            if width % heads:
                of_part = "decoder's width" if part else "width"
                yield f"{part}heads", f"{heads} heads do not divide the {of_part} of {width}"
            # A quarter of the channels encodes time, three eighths each height and width, by sine and cosine.
            if self.positions in ("separable", "interpolated-separable") and width % 16:
                yield f"{part}width", f"{width} is no multiple of 16, which separable positions need"
            if self.positions == "rotary" and (channels % 2 or not rotary_channels(channels)):
                text = "rotary positions need an even number, 6 at least"
                yield f"{part}heads", f"{heads} heads of {channels} channels; {text}"
        if self.rotary != "none" and size.width // size.heads % 4:
            text = f"{size.heads} heads of {size.width // size.heads} channels; rotary needs a multiple of 4"
            yield "heads", text
        if self.rotary != "none" and self.positions == "rotary":
            yield "rotary", "turns by places, and so does model.positions=rotary; set one of them"
        if self.embedding_layers > 1 and any(side % 4 for side in self.tubelet[1:]):
            text = "more than one convolution needs a tubelet whose rows and columns divide by 4"
            yield "embedding_layers", text
