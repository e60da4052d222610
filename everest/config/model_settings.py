"""The settings of the transformer, the section `model` of a recipe, and the sizes of the backbones.

As in everest.config.settings, a default that names a table of the EVEREST paper is the value for UCF101.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from everest.config import values as v
from everest.config.values import settings

# The width of an MLP over that of its block: in decoders, and in encoders that set no other one.
MLP_RATIO: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSize:
    """Widths, depths and attention heads of an encoder and of the decoder that pre-trains it."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_heads: int
    mlp_width: int | None = None  # channels inside the encoder's MLPs; None: four times the width

    @property
    def mlp(self) -> int:
        """The width of an encoder block's MLP."""
        return self.mlp_width or MLP_RATIO * self.width


# vit-s to vit-h are the sizes of the released VideoMAE and EVEREST programs, vit-g is VideoMAE V2's (V-JEPA 2
# has 22 heads); vit-tiny, for small machines, is our choice.
Backbone = Literal["vit-tiny", "vit-s", "vit-b", "vit-l", "vit-h", "vit-g"]
BACKBONES: Final[dict[Backbone, BackboneSize]] = {
    "vit-tiny": BackboneSize(width=192, depth=12, heads=3, decoder_width=96, decoder_heads=3),
    "vit-s": BackboneSize(width=384, depth=12, heads=6, decoder_width=192, decoder_heads=3),
    "vit-b": BackboneSize(width=768, depth=12, heads=12, decoder_width=384, decoder_heads=6),
    "vit-l": BackboneSize(width=1024, depth=24, heads=16, decoder_width=512, decoder_heads=8),
    "vit-h": BackboneSize(width=1280, depth=32, heads=16, decoder_width=640, decoder_heads=8),
    "vit-g": BackboneSize(width=1408, depth=40, heads=16, mlp_width=6144, decoder_width=512, decoder_heads=8),
}


def backbone_of(width: int) -> Backbone:
    """The backbone with this width; vit-b if no backbone has it."""
    names: list[Backbone] = [name for name, size in BACKBONES.items() if size.width == width]
    return names[0] if names else "vit-b"


def backbone_settings(*, width: int, mlp: int | None = None, **sizes: int) -> dict[str, Any]:
    """The settings of a backbone of `width`: its name, and each size that is not the backbone's own.

    Args:
        mlp: the width of the MLP of its blocks; None: the backbone's own.
    """
    backbone = backbone_of(width)
    default, values = BACKBONES[backbone], {"width": width, **sizes}
    differing = {name: value for name, value in values.items() if value != getattr(default, name)}
    if mlp not in (None, replace(default, width=width).mlp):
        differing["mlp_width"] = mlp
    return {"backbone": backbone, **differing}


def rotary_channels(head_width: int) -> int:
    """The channels of a head that rotary positions rotate by one coordinate: an even third, rounded down."""
    return 2 * (head_width // 3 // 2)


@settings
class ModelSettings:
    """The transformer. Widths, depth and heads that are None follow from the backbone."""

    backbone: Annotated[Backbone, v.WITH_HYPHENS] = "vit-b"
    input: v.ModelInput = "frames"  # differences is our choice for few videos
    tubelet: tuple[v.SmallCount, v.SmallCount, v.SmallCount] = (2, 16, 16)  # EVEREST Table 15
    positions: v.Positions = "flat"  # as released
    class_token: bool = False  # a learned token that attends with the encoded ones, as in ST-MAE; no output
    registers: v.CountOrZero = 0  # more such tokens (Darcet et al. 2024), as in DINOv2
    # Of the encoder: queries and keys are rotated by positions, as in image models, in addition to
    # `positions`.
    rotary: v.Rotary = "none"
    norm_before: bool = False  # a LayerNorm before the encoder's blocks, as in CLIP
    # slice: a token attends to its time index only, and each time index has its own learned tokens, as in
    # image models.
    attention: v.AttentionScope = "joint"  # of the encoder's blocks; as released
    mlp: v.MlpKind = "plain"  # of the encoder's blocks
    gelu: v.Gelu = "exact"  # of the encoder's blocks, if their MLP is plain
    embedding_layers: Annotated[int, Field(ge=1, le=3)] = 1  # EVEREST Table 15
    # Of the kept tokens; first: the first token (official code: --use_cls); mean-change: our choice, for
    # features of a frozen encoder (everest.models.pooling.mean_and_change).
    pooling: v.Pooling = "mean"
    decoder_depth: v.Depth = 4  # released scripts
    width: v.SmallCount | None = None  # channels of a token in the encoder; None, also below: the backbone's
    depth: v.Depth | None = None  # blocks of the encoder
    heads: v.SmallCount | None = None  # of attention, in each block of the encoder
    mlp_width: v.SmallCount | None = None  # of the encoder's blocks; without one in the backbone: 4 * width
    decoder_width: v.SmallCount | None = None  # channels of a token in the decoder
    decoder_heads: v.SmallCount | None = None  # of attention, in each block of the decoder

    @property
    def backbone_size(self) -> BackboneSize:
        """The backbone's sizes, with the sizes that are set here in their place."""
        names = ("width", "depth", "heads", "mlp_width", "decoder_width", "decoder_heads")
        overrides = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if "width" in overrides:  # the backbone's MLP is for its own width
            overrides.setdefault("mlp_width", None)
        return replace(BACKBONES[self.backbone], **overrides)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yields the key of each setting that does not go with another one, and the reason."""
        size = self.backbone_size
        for prefix, width, heads in (
            ("", size.width, size.heads),
            ("decoder_", size.decoder_width, size.decoder_heads),
        ):
            channels = width // heads
            if width % heads:
                width_name = "decoder's width" if prefix else "width"
                yield f"{prefix}heads", f"{heads} heads do not divide the {width_name} of {width}"
            # A quarter of the channels encodes time, three eighths each height and width, by sine and cosine.
            if self.positions in ("separable", "interpolated-separable") and width % 16:
                yield f"{prefix}width", f"{width} is no multiple of 16, which separable positions need"
            if self.positions == "rotary" and (channels % 2 or not rotary_channels(channels)):
                text = "rotary positions need an even number, 6 at least"
                yield f"{prefix}heads", f"{heads} heads of {channels} channels; {text}"
        if self.rotary != "none" and size.width // size.heads % 4:
            text = f"{size.heads} heads of {size.width // size.heads} channels; rotary needs a multiple of 4"
            yield "heads", text
        if self.rotary != "none" and self.positions == "rotary":
            yield "rotary", "rotates by positions, and so does model.positions=rotary; set one of them"
        if self.embedding_layers > 1 and any(side % 4 for side in self.tubelet[1:]):
            text = "more than one convolution needs a tubelet whose rows and columns divide by 4"
            yield "embedding_layers", text
