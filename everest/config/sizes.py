"""The sizes of the known backbones: a plain table, so that reading a recipe needs no model code.

The sizes of the known tokenizers: a plain table, so that reading a recipe needs no model code.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSize:
    """Widths, depths and attention heads of an encoder and of the decoder that pre-trains it."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_heads: int


# vit-s to vit-h as in the released VideoMAE and EVEREST programs; vit-tiny is ours, for small machines.
BACKBONES = {
    "vit-tiny": BackboneSize(width=192, depth=12, heads=3, decoder_width=96, decoder_heads=3),
    "vit-s": BackboneSize(width=384, depth=12, heads=6, decoder_width=192, decoder_heads=3),
    "vit-b": BackboneSize(width=768, depth=12, heads=12, decoder_width=384, decoder_heads=6),
    "vit-l": BackboneSize(width=1024, depth=24, heads=16, decoder_width=512, decoder_heads=8),
    "vit-h": BackboneSize(width=1280, depth=32, heads=16, decoder_width=640, decoder_heads=8),
}

LEAST_PLACES: Final = 4  # ours: a side of what a discriminator ends with, in places
TopKKind = Literal["straight-through", "perturbed"]  # how the choice of the best tokens passes a gradient


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """Encoder, decoder and scorer of an LVMAE tokenizer. Space is halved between two levels."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 pydantic's name for it
    stem: tuple[int, int]  # frames and pixels a side that the first convolution makes one; (1, 1): none
    channels: int
    multipliers: tuple[int, ...]  # of `channels`, one a level
    time_down: tuple[bool, ...]  # which of the halvings between levels halve time, too
    blocks: int  # residual blocks a level of the encoder, and as many in its middle
    decoder_blocks: int  # the same of the decoder
    levels: tuple[int, ...] = (8, 8, 8, 8, 8, 8)  # of each code dimension; [P] stated in the text: 2^18 codes
    input_scale: float = 1.0  # of height and width, before anything looks at a clip
    scorer_channels: tuple[int, int] = (32, 64)

    @property
    def stride(self) -> tuple[int, int]:
        """Frames and pixels a side, of the scaled clip, that a token stands for."""
        time, space = self.stem
        return time * 2 ** sum(self.time_down), space * 2 ** (len(self.multipliers) - 1)

    @property
    def tubelet(self) -> tuple[int, int, int]:
        """Frames, rows and columns of the clip as it is given that a token stands for."""
        time, space = self.stride
        side = round(space / self.input_scale)
        return time, side, side

    @property
    def num_codes(self) -> int:
        return prod(self.levels)

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width that the tokenizer works in, for clips of `size`."""
        height, width = (round(side * self.input_scale) for side in size)
        return height, width

    def stem_grid(self, frames: int, size: tuple[int, int]) -> tuple[int, int, int]:
        """Frames, rows and columns after the first convolution, of clips of `size`."""
        time, space = self.stem
        height, width = self.scaled(size)
        return frames // time, height // space, width // space


def discriminator_halvings(config: TokenizerConfig, size: tuple[int, int]) -> int:
    """How often a discriminator halves clips of `size`, which the tokenizer's stem has made smaller."""
    _, *sides = config.stem_grid(1, size)
    places, halvings = min(sides), 0
    while places // 2 >= LEAST_PLACES:
        places, halvings = places // 2, halvings + 1
    return halvings


# magvit-b: widths and depths of MAGVIT's public code, with one level more and one halving of time, so that
# its tokens are those of a ViT with tubelet 2x16x16; all else is ours.
TOKENIZERS = {
    "magvit-b": TokenizerConfig(
        stem=(1, 1),
        channels=64,
        multipliers=(1, 2, 2, 4, 4),
        time_down=(False, False, False, True),
        blocks=2,
        decoder_blocks=2,
    ),
    "magvit-b-half": TokenizerConfig(
        stem=(1, 1),
        channels=64,
        multipliers=(1, 2, 2, 4),
        time_down=(False, False, True),
        blocks=2,
        decoder_blocks=2,
        input_scale=0.5,
    ),
    "lite": TokenizerConfig(
        stem=(1, 4),
        channels=64,
        multipliers=(1, 2, 4),
        time_down=(False, True),
        blocks=2,
        decoder_blocks=2,
    ),
    "tiny": TokenizerConfig(
        stem=(2, 4), channels=32, multipliers=(1,), time_down=(), blocks=1, decoder_blocks=2
    ),
}
