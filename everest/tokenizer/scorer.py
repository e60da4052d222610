"""The scorer: a small network that scores tokens, and a differentiable selection of the highest scores.

B batch, T frames, H W pixels, C channels, N tokens, K kept ones, S samples, t h w the grid of tokens.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.tokenizer import TopKKind
from everest.system.compute import full_precision

FLOOR: Final = 1e-6  # added under a root: at 0, if frames or all scores are equal, its gradient is not finite
SAMPLES: Final = 32  # of noise, for `perturbed`


class TokenScorer(nn.Module):
    """Two strided convolutions; a token's score is the distance of its features from the slice before.

    Features depend only on the frames of their own token: in time, kernel and stride are equal and there is
    no padding. Otherwise the scores would reveal the start and end of the clip, and training would move all
    kept tokens into the last slice. For the same reason the edges are repeated in space.

    Args:
        stride: frames, and pixels per side, of a token.
        channels: of the two convolutions (LVMAE §3.3); all sizes are our choice.
    """

    def __init__(self, stride: tuple[int, int], channels: tuple[int, int]) -> None:
        super().__init__()
        time, space = stride
        # About the root of the token's side, so that both convolutions have similar strides.
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
        """Scores (B, t, h, w) in float32 of `features`; the first slice copies the scores of the second."""
        with full_precision(features.device):
            moved = features.diff(dim=2).square().sum(dim=1)  # (B, t - 1, h, w)
            scores = (moved + FLOOR).sqrt()
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


def soft_topk_mask(
    scores: Tensor, k: int, kind: TopKKind, temperature: float, generator: torch.Generator
) -> Tensor:
    """Select the `k` highest scores of each row, with a gradient to the scores.

    LVMAE does not specify its differentiable top-k, so both kinds are our choice. Scores are standardized per
    clip first: their scale drifts in training, which would change the effect of the temperature.

    Args:
        scores: (B, N) float32.
        kind: `straight-through` uses the gradient of a sigmoid around the threshold; `perturbed` the gradient
            of the mean selection under noise (Berthet et al. 2020).
        temperature: of the sigmoid; the standard deviation of the noise.
        generator: for the order of ties and for the noise; on the scores' device.
    Returns:
        (B, N) float32 mask of 0 and 1, with exactly `k` ones per row.
    """
    ids = top_k(scores.detach(), k, generator)
    hard = torch.zeros_like(scores).scatter_(1, ids, 1.0)
    if k == scores.size(1):
        return hard
    std = (scores.var(dim=1, keepdim=True, unbiased=False) + FLOOR).sqrt()
    standard = (scores - scores.mean(dim=1, keepdim=True)) / std  # (B, N)
    if kind == "perturbed":
        shape = (SAMPLES, *standard.shape)
        noise = torch.randn(shape, generator=generator, device=standard.device)  # (S, B, N)
        noisy = standard.detach() + temperature * noise
        selected = torch.zeros_like(noise).scatter_(2, noisy.topk(k, dim=2).indices, 1.0)
        slope = (noise * standard).sum(dim=2, keepdim=True) / temperature  # (S, B, 1)
        soft = (selected * slope).mean(dim=0)
    else:
        # The threshold is halfway between the k-th and the next score.
        threshold = standard.detach().topk(k + 1, dim=1).values[:, -2:].mean(dim=1, keepdim=True)  # (B, 1)
        soft = torch.sigmoid((standard - threshold) / temperature)
    return hard + (soft - soft.detach())  # this order gives exactly 0 and 1
