"""The sizes of the known backbones and tokenizers: tables, so that reading a recipe needs no model code."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any, Final, Literal

# The width of an MLP over that of its block: in decoders, and in encoders that set no other one.
MLP_RATIO: Final = 4
MOST_CODE_BITS: Final = 32  # a code of a tokenizer is stored in this many bits


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSize:
    """Widths, depths and attention heads of an encoder and of the decoder that pre-trains it."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_heads: int
    mlp_width: int | None = None  # of the encoder's blocks; None: four times the width

    @property
    def mlp(self) -> int:
        """The width of an encoder block's MLP."""
        return self.mlp_width or MLP_RATIO * self.width


# vit-s to vit-h are the sizes of the released VideoMAE and EVEREST programs, vit-g is VideoMAE V2's (V-JEPA 2
# has 22 heads); vit-tiny, for small machines, is our choice.
BACKBONES = {
    "vit-tiny": BackboneSize(width=192, depth=12, heads=3, decoder_width=96, decoder_heads=3),
    "vit-s": BackboneSize(width=384, depth=12, heads=6, decoder_width=192, decoder_heads=3),
    "vit-b": BackboneSize(width=768, depth=12, heads=12, decoder_width=384, decoder_heads=6),
    "vit-l": BackboneSize(width=1024, depth=24, heads=16, decoder_width=512, decoder_heads=8),
    "vit-h": BackboneSize(width=1280, depth=32, heads=16, decoder_width=640, decoder_heads=8),
    "vit-g": BackboneSize(width=1408, depth=40, heads=16, mlp_width=6144, decoder_width=512, decoder_heads=8),
}


def backbone_of(width: int) -> str:
    """The backbone of a width; vit-b for a width that none has."""
    return next((name for name, size in BACKBONES.items() if size.width == width), "vit-b")


def backbone_settings(*, width: int, mlp: int | None = None, **sizes: int) -> dict[str, Any]:
    """The settings of a backbone of `width`: its name, and each size that is not the backbone's own.

    Args:
        mlp: the width of the MLP of its blocks; None: the backbone's own.
    """
    backbone = backbone_of(width)
    default, values = BACKBONES[backbone], {"width": width, **sizes}
    own = {name: value for name, value in values.items() if value != getattr(default, name)}
    if mlp not in (None, replace(default, width=width).mlp):
        own["mlp_width"] = mlp
    return {"backbone": backbone, **own}


def rotary_channels(head_width: int) -> int:
    """The channels of a head that rotary positions turn by one coordinate: an even third, rounded down."""
    return 2 * (head_width // 3 // 2)


TopKKind = Literal["straight-through", "perturbed"]  # how the choice of the best tokens passes a gradient


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """Encoder, decoder and scorer of an LVMAE tokenizer. Space is halved between two levels."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 pydantic's name for it
    stem: tuple[int, int]  # stride of the first convolution in frames and pixels; (1, 1): no convolution
    channels: int = 64  # of the first level
    multipliers: tuple[int, ...]  # of `channels`, one per level
    time_down: tuple[bool, ...]  # whether each halving between two levels also halves time
    blocks: int = 2  # residual blocks per level of the encoder, and in its middle
    decoder_blocks: int = 2  # the same for the decoder
    levels: tuple[int, ...] = (8, 8, 8, 8, 8, 8)  # of each code dimension; the LVMAE paper has 2^18 codes
    input_scale: float = 1.0  # of height and width; a clip is scaled first
    scorer_channels: tuple[int, int] = (32, 64)  # of its two convolutions

    @property
    def stride(self) -> tuple[int, int]:
        """The size of a token in the scaled clip: frames, and pixels of a side."""
        time, space = self.stem
        return time * 2 ** sum(self.time_down), space * 2 ** (len(self.multipliers) - 1)

    @property
    def tubelet(self) -> tuple[int, int, int]:
        """The size of a token in the clip before scaling: frames, rows and columns."""
        time, space = self.stride
        side = round(space / self.input_scale)
        return time, side, side

    @property
    def num_codes(self) -> int:
        return prod(self.levels)

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of clips of `size` after scaling."""
        height, width = (round(side * self.input_scale) for side in size)
        return height, width

    def stem_grid(self, frames: int, size: tuple[int, int]) -> tuple[int, int, int]:
        """Frames, rows and columns after the first convolution, for clips of `size`."""
        time, space = self.stem
        height, width = self.scaled(size)
        return frames // time, height // space, width // space


# magvit-b: widths and depths of MAGVIT's public code, with one more level and one halving of time, so that
# its tokens match a ViT with tubelet 2x16x16; all other values are our choice.
TOKENIZERS = {
    "magvit-b": TokenizerConfig(
        stem=(1, 1), multipliers=(1, 2, 2, 4, 4), time_down=(False, False, False, True)
    ),
    "magvit-b-half": TokenizerConfig(
        stem=(1, 1), multipliers=(1, 2, 2, 4), time_down=(False, False, True), input_scale=0.5
    ),
    "lite": TokenizerConfig(stem=(1, 4), multipliers=(1, 2, 4), time_down=(False, True)),
    "tiny": TokenizerConfig(stem=(2, 4), channels=32, multipliers=(1,), time_down=(), blocks=1),
}
