"""The layers of the tokenizer: a 3-D convolutional encoder and decoder, and the quantizer between them.

Encoder and decoder follow MAGVIT's public code (Yu et al. 2023) in layers, order and sizes. The patchifying
stem, which makes small tokenizers, is our choice. The quantizer is FSQ (Mentzer et al. 2024).

B batch, C channels, T frames, H W pixels, D code dimensions, t h w the grid of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from everest.config.tokenizer import TokenizerConfig

GROUPS: Final = 32  # of GroupNorm, if they divide the channels
# The bound is a little beyond the outermost levels, so that every level can be reached.
MARGIN: Final = 1e-3  # relative to the range of the levels
MOST_MARGIN: Final = 0.25  # in levels: from 0.5, a level outside of the range would be reached


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels, eps=1e-6)


def _conv(channels: int, out_channels: int) -> nn.Conv3d:
    return nn.Conv3d(channels, out_channels, kernel_size=3, padding=1)


class ResidualBlock(nn.Module):
    """Norm, SiLU and convolution, twice, and a shortcut."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        first = (_norm(channels), nn.SiLU(), _conv(channels, out_channels))
        second = (_norm(out_channels), nn.SiLU(), _conv(out_channels, out_channels))
        self.layers = nn.Sequential(*first, *second)
        same = channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv3d(channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.layers(x)


class Double(nn.Module):
    """Repeats each value at 2x2 positions, and with `time` in two frames, then a convolution."""

    def __init__(self, channels: int, *, time: bool) -> None:
        super().__init__()
        self.scale = (2.0 if time else 1.0, 2.0, 2.0)
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=self.scale, mode="nearest"))


def _stage(width: int, out_width: int, blocks: int) -> list[nn.Module]:
    return [ResidualBlock(*widths) for widths in pairwise([width] + [out_width] * blocks)]


class ConvStack(nn.Module):
    """A stem, stages and a head, in this order.

    Args:
        checkpointing: recompute the activations of each stage in the backward pass.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: list[list[nn.Module]],
        head: nn.Module,
        *,
        width: int,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.stem = stem
        self.stages = nn.ModuleList(nn.Sequential(*layers) for layers in stages)
        self.head = nn.Sequential(_norm(width), nn.SiLU(), head)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            recompute = self.checkpointing and self.training
            x = checkpoint(stage, x, use_reentrant=False) if recompute else stage(x)
        return self.head(x)


def make_encoder(config: TokenizerConfig, *, checkpointing: bool) -> ConvStack:
    """The encoder of pixels (B, 3, T, H, W) in [0, 1] to one latent vector per token: (B, D, t, h, w)."""
    widths = [config.channels * multiplier for multiplier in config.multipliers]
    time, space = config.stem
    patchify = nn.Conv3d(3, widths[0], kernel_size=(time, space, space), stride=(time, space, space))
    stem = _conv(3, widths[0]) if config.stem == (1, 1) else patchify
    stages = [_stage(*pair, config.blocks) for pair in pairwise([widths[0], *widths, widths[-1]])]
    for stage, halves_time in zip(stages, config.time_down, strict=False):
        stage.append(nn.AvgPool3d((2 if halves_time else 1, 2, 2)))
    head = nn.Conv3d(widths[-1], len(config.levels), kernel_size=1)
    return ConvStack(stem, stages, head, width=widths[-1], checkpointing=checkpointing)


def make_decoder(config: TokenizerConfig, *, checkpointing: bool) -> ConvStack:
    """The decoder of values of tokens (B, D, t, h, w) to pixels (B, 3, T, H, W), in [0, 1] once trained.

    A token that was left out is rebuilt from other tokens, mainly from the same position in the first frames,
    so the convolutions must reach that far in time.
    """
    widths = [config.channels * multiplier for multiplier in reversed(config.multipliers)]
    stem = _conv(len(config.levels), widths[0])
    stages = [_stage(widths[0], widths[0], config.decoder_blocks)]
    for pair, doubles_time in zip(
        pairwise([widths[0], *widths]), (*reversed(config.time_down), None), strict=True
    ):
        stages.append(_stage(*pair, config.decoder_blocks))
        if doubles_time is not None:
            stages[-1].append(Double(pair[1], time=doubles_time))
    time, space = config.stem
    stride = (time, space, space)
    unpatchify = nn.ConvTranspose3d(widths[-1], 3, kernel_size=stride, stride=stride)
    head = _conv(widths[-1], 3) if config.stem == (1, 1) else unpatchify
    return ConvStack(stem, stages, head, width=widths[-1], checkpointing=checkpointing)


class FSQ(nn.Module):
    """Rounds each of D dimensions to one of a few levels. It has no weights and needs no loss of its own.

    A code is the index of a combination of levels. A zero vector is rounded to zeros for even and odd numbers
    of levels, so zero is an ordinary code. Even numbers are not symmetric: 8 levels are -1, -0.75, ... 0.75.

    Args:
        levels: the number of levels of each dimension.
    """

    reach: Tensor  # (D,) of the tanh to either side
    offset: Tensor  # (D,)
    steps: Tensor  # (D,) levels between 0 and -1
    counts: Tensor  # (D,) int64: `levels`
    weights: Tensor  # (D,) int64: factor of a dimension's level in the code

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels must be numbers from 2, not {tuple(levels)}")
        self.levels = tuple(levels)
        self.num_codes = math.prod(levels)
        counts = torch.tensor(self.levels)
        constants = {
            "reach": torch.minimum((counts - 1) * (1 + MARGIN) / 2, (counts - 1) / 2 + MOST_MARGIN),
            "offset": (counts + 1) % 2 / 2,
            "steps": (counts // 2).float(),
            "counts": counts,
            "weights": torch.tensor([math.prod(levels[:dim]) for dim in range(len(levels))]),
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """Map vectors (..., D) to the range of the values, before rounding: float32."""
        shift = torch.atanh(self.offset / self.reach)
        return (torch.tanh(z.float() + shift) * self.reach - self.offset) / self.steps

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Round vectors (..., D); the gradient passes through the rounding unchanged.

        Returns:
            values: (..., D) float32 in [-1, 1].
            codes: (...) int64 in [0, num_codes).
        """
        bounded = self.bound(z)
        levels = (bounded.detach() * self.steps).round()  # (..., D), 0 in the middle
        values = levels / self.steps + (bounded - bounded.detach())  # this order gives exactly the levels
        codes = ((levels + self.steps).long() * self.weights).sum(dim=-1)
        return values, codes

    def digits(self, codes: Tensor) -> Tensor:
        """Convert codes (...) on any device to the level of each dimension, from 0: (..., D) int64."""
        weights, counts = self.weights.to(codes.device), self.counts.to(codes.device)
        return codes.unsqueeze(-1) // weights % counts

    def decode(self, codes: Tensor) -> Tensor:
        """Convert codes (...) int64 to their values (..., D) float32."""
        return (self.digits(codes) - self.steps) / self.steps
