"""The `tokenizer` section of a recipe: the network that gives LVMAE its importance and its targets.

Sources: [P] the LVMAE paper (arXiv 2411.13683), [M] MAGVIT's public code, whose recipe the paper follows. The
tables with the paper's own values were not available; every value without a mark is our choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, replace
from math import log2, prod
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from everest.config import values as v
from everest.config.stage_settings import ScheduleSettings
from everest.config.values import settings
from everest.errors import shorten

MAX_CODE_BITS: Final = 32  # a code of a tokenizer is stored in this many bits
Levels = Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1, max_length=MAX_CODE_BITS)]


@settings
class TokenizerConfig:
    """Encoder, decoder and scorer of an LVMAE tokenizer. Space is halved between two levels."""

    stem: tuple[v.SmallCount, v.SmallCount]  # stride of the first convolution: frames, pixels; (1, 1): none
    channels: v.SmallCount = 64  # channels of the first level
    multipliers: Annotated[tuple[v.SmallCount, ...], Field(min_length=1)]  # of `channels`, one per level
    time_down: tuple[bool, ...]  # whether each halving between two levels also halves time
    blocks: v.Depth = 2  # residual blocks per level of the encoder, and in its middle
    decoder_blocks: v.Depth = 2  # the same for the decoder
    levels: Levels = (8, 8, 8, 8, 8, 8)  # per dimension of a code; the LVMAE paper has 2^18 codes
    input_scale: Annotated[float, Field(ge=1 / 64, le=1)] = 1.0  # factor of height and width, applied first
    scorer_channels: tuple[v.SmallCount, v.SmallCount] = (32, 64)  # channels of the scorer's two convolutions

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

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of clips of `size` after scaling."""
        height, width = (round(side * self.input_scale) for side in size)
        return height, width

    def stem_grid(self, frames: int, size: tuple[int, int]) -> tuple[int, int, int]:
        """Frames, rows and columns after the first convolution, for clips of `size`."""
        time, space = self.stem
        height, width = self.scaled(size)
        return frames // time, height // space, width // space

    def problems(self, frames: int) -> Iterator[tuple[str, str]]:
        """Yields the key of each value that does not go with another one, or with chunks of `frames`."""
        halvings, (time, pixels) = len(self.multipliers) - 1, self.stride
        if len(self.time_down) != halvings:
            text = f"{len(self.time_down)} values for {halvings} halvings, one between any two multipliers"
            yield "time_down", text
        if (pixels / self.input_scale) % 1:
            text = f"makes the {pixels} pixels of a token no integer number of pixels of the clip"
            yield "input_scale", f"{self.input_scale} {text}"
        if log2(num_codes := prod(self.levels)) > MAX_CODE_BITS:
            yield "levels", f"{shorten(num_codes)} codes; at most 2^{MAX_CODE_BITS}"
        # The first time index of a chunk is always kept; the tokenizer selects from the later time indices.
        if frames % time or frames < 2 * time:
            text = f"must be a multiple of {time} frames, the length of a token, and at least twice that"
            yield "frames", text


# magvit-b: widths and depths of MAGVIT's public code, with one more level and one halving of time, so that
# its tokens match a ViT with tubelet 2x16x16; all other values are our choice.
TokenizerSize = Literal["magvit-b", "magvit-b-half", "lite", "tiny", "tiny-8"]
TOKENIZERS: Final[dict[TokenizerSize, TokenizerConfig]] = {
    "magvit-b": TokenizerConfig(
        stem=(1, 1), multipliers=(1, 2, 2, 4, 4), time_down=(False, False, False, True)
    ),
    "magvit-b-half": TokenizerConfig(
        stem=(1, 1), multipliers=(1, 2, 2, 4), time_down=(False, False, True), input_scale=0.5
    ),
    "lite": TokenizerConfig(stem=(1, 4), multipliers=(1, 2, 4), time_down=(False, True)),
    "tiny": TokenizerConfig(stem=(2, 4), channels=32, multipliers=(1,), time_down=(), blocks=1),
    "tiny-8": TokenizerConfig(stem=(2, 4), channels=32, multipliers=(1, 2), time_down=(False,), blocks=1),
}


@settings
class TokenizerArchitecture:
    """The settings that a tokenizer is built from (everest.tokenizer.spec)."""

    kind: Literal["tokenizer"] = "tokenizer"
    config: TokenizerConfig
    chunk: v.SmallCount  # frames that are encoded together
    size: tuple[v.SmallCount, v.SmallCount]  # height, width of the training clips; other sizes work as well
    keep: v.RatioAboveZero  # fraction of a chunk's ranked tokens from which training reconstructs a clip
    checkpointing: bool = False  # recompute activations in the backward pass


@settings
class TokenizerLossSettings:
    """Weights of the terms beside the squared error of the pixels, whose weight is 1 [M]."""

    perceptual: v.NotNegative = 0.0  # [M]: 0.1
    gan: v.NotNegative = 0.0  # [M]: 0.1
    perceptual_weights: str | None = None  # a file, or hf:OWNER/NAME; None: timm's


@settings
class TokenizerSettings(ScheduleSettings):
    """A tokenizer and its training."""

    epochs: v.Count | None = 30
    warmup_epochs: v.CountOrZero = 1  # epochs of a rising learning rate [M]
    batch_size: v.Count = 128  # of all processes, accumulation included [M]
    betas: tuple[v.RatioBelowOne, v.RatioBelowOne] = (0.0, 0.99)  # decay rates of Adam's two moments [M]
    lr: v.Positive = 1e-4  # the highest learning rate, not scaled by the batch size [M]
    weight_decay: ClassVar[float] = 0.0  # the optimizer is Adam [M]
    base_lr: ClassVar[None] = None
    layer_decay: ClassVar[float] = 1.0
    encoder_lr_scale: ClassVar[float] = 1.0
    views_per_decode: ClassVar[int] = 1
    checkpoint: str | None = None  # a trained tokenizer
    size: Annotated[TokenizerSize, v.WITH_HYPHENS] = "lite"  # of the network
    channels: v.SmallCount | None = None  # channels of the first level; None: by `size`
    levels: Levels = (8, 8, 8, 8, 8, 8)  # of each dimension of a code: 2^18 codes [P]
    frames: v.SmallCount = 16  # frames of a chunk, which is encoded at once [P]
    keep: v.RatioAboveZero = 0.375  # 768 tokens [P] of 2048, if frames were 256 pixels
    warmup: v.RatioBelowOne = 0.0  # fraction of the steps that keep all tokens, at the start
    full_batches: v.Ratio = 0.25  # fraction of the other steps that keep all tokens
    ema: v.Decay | None = 0.999  # the averaged weights are the result [M]
    loss: TokenizerLossSettings = field(default_factory=TokenizerLossSettings)  # weights of its terms

    @property
    def lr_range(self) -> tuple[float, float]:
        """The highest learning rate, and that of the last step."""
        return self.lr, 0.0

    @property
    def config(self) -> TokenizerConfig:
        """The network."""
        config = replace(TOKENIZERS[self.size], levels=self.levels)
        return config if self.channels is None else replace(config, channels=self.channels)
