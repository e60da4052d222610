"""The parts of the tokenizer: a 3-D convolutional encoder and decoder, the quantizer, the scorer.

Encoder and decoder follow MAGVIT's public code (Yu et al. 2023) in layers, order and sizes. The patchifying
stem, which makes small tokenizers, is our choice. The quantizer is FSQ (Mentzer et al. 2024). The scorer is a
small network that scores tokens, with a differentiable selection of the highest scores.

B batch, C channels, T frames, H W pixels, D code dimensions, t h w the grid of tokens, N tokens, K kept
tokens.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from everest.config.tokenizer_settings import TokenizerConfig
from everest.system.compute import full_precision

NORM_GROUPS: Final = 32  # groups of GroupNorm, if their number divides the channels
# The bound is a little beyond the outermost levels, so that every level can be reached.
RANGE_MARGIN: Final = 1e-3  # relative to the range of the levels
MAX_MARGIN: Final = 0.25  # in levels; at 0.5, a level outside the range would be reached
ROOT_FLOOR: Final = 1e-6  # added under a root, whose gradient at 0 (equal frames or scores) is not finite
TEMPERATURE: Final = 0.5  # our choice: width of the sigmoid through which the scorer gets its gradient


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(NORM_GROUPS, channels), channels, eps=1e-6)


def _conv(channels: int, out_channels: int) -> nn.Conv3d:
    return nn.Conv3d(channels, out_channels, kernel_size=3, padding=1)


class ResidualBlock(nn.Module):
    """A residual block: norm, SiLU and convolution, twice, with a shortcut."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        first = (_norm(channels), nn.SiLU(), _conv(channels, out_channels))
        second = (_norm(out_channels), nn.SiLU(), _conv(out_channels, out_channels))
        self.layers = nn.Sequential(*first, *second)
        same = channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv3d(channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.layers(x)


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
    """Make the encoder, from pixels (B, 3, T, H, W) in [0, 1] to a vector per token (B, D, t, h, w)."""
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
    """Make the decoder, from token values (B, D, t, h, w) to pixels (B, 3, T, H, W), in [0, 1] once trained.

    A token that was left out is reconstructed from other tokens, mainly from the same position in the first
    frames, so the convolutions must reach that far in time.
    """
    widths = [config.channels * multiplier for multiplier in reversed(config.multipliers)]
    stem = _conv(len(config.levels), widths[0])
    stages = [_stage(widths[0], widths[0], config.decoder_blocks)]
    for pair, doubles_time in zip(
        pairwise([widths[0], *widths]), (*reversed(config.time_down), None), strict=True
    ):
        stages.append(_stage(*pair, config.decoder_blocks))
        if doubles_time is not None:  # repeats a value at 2 x 2 positions (in 2 frames, if time doubles)
            repeat = nn.Upsample(scale_factor=(2.0 if doubles_time else 1.0, 2.0, 2.0), mode="nearest")
            stages[-1].append(nn.Sequential(OrderedDict(repeat=repeat, conv=_conv(pair[1], pair[1]))))
    time, space = config.stem
    stride = (time, space, space)
    unpatchify = nn.ConvTranspose3d(widths[-1], 3, kernel_size=stride, stride=stride)
    head = _conv(widths[-1], 3) if config.stem == (1, 1) else unpatchify
    return ConvStack(stem, stages, head, width=widths[-1], checkpointing=checkpointing)


class FSQ(nn.Module):
    """Rounds each of D dimensions to one of a few levels. It has no weights and needs no extra loss.

    A code is the index of a combination of levels. A zero vector is rounded to zeros for even and odd numbers
    of levels, so zero is an ordinary code. Even numbers are not symmetric: 8 levels are -1, -0.75, ... 0.75.

    Args:
        levels: the number of levels of each dimension.
    """

    reach: Tensor  # (D,) amplitude of the tanh
    offset: Tensor  # (D,) offset of the levels: 1/2 for even numbers of levels, else 0
    steps: Tensor  # (D,) number of levels between 0 and -1
    counts: Tensor  # (D,) int64: `levels`
    weights: Tensor  # (D,) int64: factor by which a dimension's level enters the code

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels must be numbers from 2, not {tuple(levels)}")
        self.levels = tuple(levels)
        self.num_codes = math.prod(levels)
        counts = torch.tensor(self.levels)
        constants = {
            "reach": torch.minimum((counts - 1) * (1 + RANGE_MARGIN) / 2, (counts - 1) / 2 + MAX_MARGIN),
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


class TokenScorer(nn.Module):
    """Two strided convolutions; a token's score is the distance of its features from the time index before.

    Features depend only on the frames of their own token: in time, kernel and stride are equal and there is
    no padding. Otherwise the scores would reveal the start and end of the clip, and training would move all
    kept tokens into the last time index. For the same reason the edges are repeated in space.

    Args:
        stride: frames, and pixels per side, of a token.
        channels: output channels of the two convolutions (LVMAE §3.3); all sizes are our choice.
    """

    def __init__(self, stride: tuple[int, int], channels: tuple[int, int]) -> None:
        super().__init__()
        time, space = stride
        # About the square root of the token's side, so that both convolutions have similar strides.
        first = next(side for side in range(1, space + 1) if space % side == 0 and side * side >= space)
        second = space // first
        self.first = nn.Conv3d(3, channels[0], (time, 2 * first - 1, 2 * first - 1), (time, first, first))
        self.second = nn.Conv3d(channels[0], channels[1], (1, 5, 5), (1, second, second))

    def features(self, frames: Tensor) -> Tensor:
        """Compute features (B, C, t, h, w) of clips (B, 3, T, H, W), always in float32 to avoid ties."""
        with full_precision(frames.device):
            inner = F.gelu(self.first(_pad_edges(frames.float(), self.first)))
            return self.second(_pad_edges(inner, self.second))

    def forward(self, frames: Tensor) -> Tensor:
        """Compute scores (B, t, h, w) of clips (B, 3, T, H, W)."""
        return self.distances(self.features(frames))

    def distances(self, features: Tensor) -> Tensor:
        """Compute scores (B, t, h, w) float32 of `features`; the first of the clip copies the next."""
        with full_precision(features.device):
            moved = features.diff(dim=2).square().sum(dim=1)  # (B, t - 1, h, w)
            scores = (moved + ROOT_FLOOR).sqrt()
            return torch.cat([scores[:, :1], scores], dim=1)


def _pad_edges(x: Tensor, conv: nn.Conv3d) -> Tensor:
    """Repeat the edges in space, so that the output size of `conv` is the input size over its stride."""
    padding = conv.kernel_size[1] - conv.stride[1]
    sides = (padding // 2, padding - padding // 2)
    return F.pad(x, (*sides, *sides, 0, 0), mode="replicate")


def top_k(scores: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return the ids (B, K) of the `k` highest of scores (B, N), highest first.

    Equal scores, which are common in still clips, are in random order, not in the order of their positions.
    """
    noise = torch.rand(scores.shape, generator=generator, device=scores.device)
    shuffled = noise.argsort(dim=1)  # (B, N)
    order = scores.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    return shuffled.gather(1, order[:, :k])


def soft_topk_mask(scores: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Select the `k` highest scores of each row, with the gradient of a sigmoid around the threshold.

    LVMAE does not specify its differentiable top-k, so this is our choice. Scores are standardized per clip
    first, because their scale drifts in training and would change the effect of the temperature.

    Args:
        scores: (B, N) float32.
        generator: draws the order of ties; on the scores' device.
    Returns:
        (B, N) float32 mask of 0 and 1, with exactly `k` ones per row.
    """
    ids = top_k(scores.detach(), k, generator)
    hard = torch.zeros_like(scores).scatter_(1, ids, 1.0)
    if k == scores.size(1):
        return hard
    std = (scores.var(dim=1, keepdim=True, unbiased=False) + ROOT_FLOOR).sqrt()
    standard = (scores - scores.mean(dim=1, keepdim=True)) / std  # (B, N)
    # The threshold is halfway between the k-th and the next score.
    threshold = standard.detach().topk(k + 1, dim=1).values[:, -2:].mean(dim=1, keepdim=True)  # (B, 1)
    soft = torch.sigmoid((standard - threshold) / TEMPERATURE)
    return hard + (soft - soft.detach())  # this order gives exactly 0 and 1
