"""The 3-D convolutional encoder and decoder of the tokenizer, after MAGVIT (Yu et al. 2023).

The layers, their order and their sizes follow MAGVIT's public code. The patchifying stem, which makes small
tokenizers, is our choice.

B batch, C channels, T frames, H W pixels, D code dimensions, t h w the grid of tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from everest.config.sizes import TokenizerConfig

_GROUPS = 32  # of GroupNorm, if they divide the channels


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(_GROUPS, channels), channels, eps=1e-6)


def _conv(channels: int, out_channels: int) -> nn.Conv3d:
    return nn.Conv3d(channels, out_channels, kernel_size=3, padding=1)


class ResidualBlock(nn.Module):
    """Norm, SiLU and convolution, twice, and a shortcut."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _norm(channels),
            nn.SiLU(),
            _conv(channels, out_channels),
            _norm(out_channels),
            nn.SiLU(),
            _conv(out_channels, out_channels),
        )
        same = channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv3d(channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.layers(x)


def _blocks(channels: int, out_channels: int, number: int) -> list[nn.Module]:
    widths = [channels] + [out_channels] * number
    return [ResidualBlock(before, after) for before, after in itertools.pairwise(widths)]


def _run(stages: Iterable[nn.Module], x: Tensor, *, checkpointing: bool) -> Tensor:
    for stage in stages:
        x = checkpoint(stage, x, use_reentrant=False) if checkpointing and stage.training else stage(x)
    return x


class Double(nn.Module):
    """Repeats each value at 2x2 positions, and with `time` in two frames, then a convolution."""

    def __init__(self, channels: int, *, time: bool) -> None:
        super().__init__()
        self.stride = (2.0 if time else 1.0, 2.0, 2.0)
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=self.stride, mode="nearest"))


class VideoEncoder3D(nn.Module):
    """Encodes pixels (B, 3, T, H, W) in [0, 1] to one latent vector per token: (B, D, t, h, w)."""

    def __init__(self, config: TokenizerConfig, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        time, space = config.stem
        stem = (time, space, space)
        patchify = nn.Conv3d(3, widths[0], kernel_size=stem, stride=stem)
        self.stem = _conv(3, widths[0]) if config.stem == (1, 1) else patchify
        stages, width = [], widths[0]
        for out_width, halving in zip(widths, (*config.time_down, None), strict=True):
            layers = _blocks(width, out_width, config.blocks)
            layers += [] if halving is None else [nn.AvgPool3d((2 if halving else 1, 2, 2))]
            stages.append(nn.Sequential(*layers))
            width = out_width
        stages.append(nn.Sequential(*_blocks(width, width, config.blocks)))
        self.stages = nn.ModuleList(stages)
        head = nn.Conv3d(width, len(config.levels), kernel_size=1)
        self.head = nn.Sequential(_norm(width), nn.SiLU(), head)

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(_run(self.stages, self.stem(frames), checkpointing=self.checkpointing))


class VideoDecoder3D(nn.Module):
    """Decodes values of tokens (B, D, t, h, w) to pixels (B, 3, T, H, W), in [0, 1] once it is trained.

    A token that was left out is rebuilt from other tokens, mainly from the same position in the first frames,
    so the convolutions must reach that far in time.
    """

    def __init__(self, config: TokenizerConfig, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        widths = [config.channels * multiplier for multiplier in reversed(config.multipliers)]
        self.stem = _conv(len(config.levels), widths[0])
        stages = [nn.Sequential(*_blocks(widths[0], widths[0], config.decoder_blocks))]
        width = widths[0]
        for out_width, doubling in zip(widths, (*reversed(config.time_down), None), strict=True):
            layers = _blocks(width, out_width, config.decoder_blocks)
            layers += [] if doubling is None else [Double(out_width, time=doubling)]
            stages.append(nn.Sequential(*layers))
            width = out_width
        self.stages = nn.ModuleList(stages)
        time, space = config.stem
        stem = (time, space, space)
        unpatchify = nn.ConvTranspose3d(width, 3, kernel_size=stem, stride=stem)
        self.head = nn.Sequential(
            _norm(width), nn.SiLU(), _conv(width, 3) if config.stem == (1, 1) else unpatchify
        )

    def forward(self, values: Tensor) -> Tensor:
        return self.head(_run(self.stages, self.stem(values), checkpointing=self.checkpointing))
