"""How much each token matters: a small network that scores them, and the choice of the best that learns.

B batch, T frames, H W pixels, C channels, N tokens, K kept ones, S samples, t h w the grid of tokens.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.sizes import TopKKind
from everest.methods.importance import full_precision

FLOOR: Final = 1e-6  # under a root, whose gradient is not finite at 0, where frames or all scores are equal
SAMPLES: Final = 32  # of `perturbed`


class TokenScorer(nn.Module):
    """Two strided convolutions; a token's score is how far its features moved since one slice before.

    Features see the frames of their own token only, whatever the clip's length: kernel and stride are equal
    in time, and nothing is padded there. Else the score would know where the clip begins and ends, and
    training would put all that is kept into its last slice. In space edges are repeated, for the same reason.

    Args:
        stride: frames and pixels a side of a token.
        channels: of the two convolutions. Sizes are ours; two convolutions and the distance are LVMAE §3.3.
    """

    def __init__(self, stride: tuple[int, int], channels: tuple[int, int]) -> None:
        super().__init__()
        time, space = stride
        first = next(side for side in range(1, space + 1) if space % side == 0 and side * side >= space)
        kernels, self.strides = (2 * first - 1, 5), (first, space // first)
        self.first = nn.Conv3d(3, channels[0], (time, kernels[0], kernels[0]), (time, first, first))
        second = (1, self.strides[1], self.strides[1])
        self.second = nn.Conv3d(channels[0], channels[1], (1, kernels[1], kernels[1]), second)
        self.paddings = [_padding(kernel, step) for kernel, step in zip(kernels, self.strides, strict=True)]

    def features(self, frames: Tensor) -> Tensor:
        """(B, 3, T, H, W) to (B, C, t, h, w), in float32 under autocast, too: ties change what is kept."""
        with full_precision(frames.device):
            x = self.first(F.pad(frames.float(), self.paddings[0], mode="replicate"))
            return self.second(F.pad(F.gelu(x), self.paddings[1], mode="replicate"))

    def forward(self, frames: Tensor) -> Tensor:
        """(B, t, h, w) float32 scores; the first slice, which has none before it, copies the second's."""
        with full_precision(frames.device):
            moved = self.features(frames).diff(dim=2).square().sum(dim=1)  # (B, t - 1, h, w)
            scores = (moved + FLOOR).sqrt()
            return torch.cat([scores[:, :1], scores], dim=1)


def _padding(kernel: int, stride: int) -> tuple[int, int, int, int, int, int]:
    """Of width, height and time, so that the output is the input's size over the stride."""
    before = (kernel - stride) // 2
    after = kernel - stride - before
    return before, after, before, after, 0, 0


def top_k(scores: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """The ids (B, K) of the `k` highest of (B, N) scores, highest first.

    Equal scores are the rule in still clips: they come in a random order, not in that of their places.
    """
    noise = torch.rand(scores.shape, generator=generator, device=scores.device)
    shuffled = noise.argsort(dim=1)  # (B, N)
    order = scores.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    return shuffled.gather(1, order[:, :k])


def soft_topk_mask(
    scores: Tensor, k: int, kind: TopKKind, temperature: float, generator: torch.Generator
) -> Tensor:
    """Exactly `k` ones a row, through which the scores learn which tokens were missed.

    LVMAE names no kind of differentiable top-k, so both are ours. Scores are standardised by clip first:
    their scale drifts while they are trained, and the temperature would mean something else every epoch.

    Args:
        scores: (B, N) float32.
        kind: `straight-through` has the gradient of a sigmoid around the border between kept and left;
            `perturbed` that of the mean choice under noise (Berthet et al. 2020).
        temperature: of the sigmoid; the deviation of the noise.
        generator: of the ties' order, and of that noise; on the scores' device.
    Returns:
        (B, N) float32 of 0 and 1.
    """
    ids = top_k(scores.detach(), k, generator)
    hard = torch.zeros_like(scores).scatter_(1, ids, 1.0)
    if k == scores.size(1):
        return hard
    deviation = (scores.var(dim=1, keepdim=True, unbiased=False) + FLOOR).sqrt()
    standard = (scores - scores.mean(dim=1, keepdim=True)) / deviation  # (B, N)
    if kind == "perturbed":
        soft = _perturbed(standard, k, temperature, generator)
    else:
        soft = torch.sigmoid((standard - _border(standard.detach(), k)) / temperature)
    return hard + (soft - soft.detach())  # in this order exactly 0 and 1


def _border(scores: Tensor, k: int) -> Tensor:
    """(B, 1): the middle between the k-th and the next score."""
    return scores.topk(k + 1, dim=1).values[:, -2:].mean(dim=1, keepdim=True)


def _perturbed(scores: Tensor, k: int, deviation: float, generator: torch.Generator) -> Tensor:
    """(B, N): how often a token is among the first `k` under noise; its gradient by the noise itself."""
    noise = torch.randn((SAMPLES, *scores.shape), generator=generator, device=scores.device)  # (S, B, N)
    noisy = scores.detach() + deviation * noise
    chosen = torch.zeros_like(noise).scatter_(2, noisy.topk(k, dim=2).indices, 1.0)
    slope = (noise * scores).sum(dim=2, keepdim=True) / deviation  # (S, B, 1)
    return (chosen * slope).mean(dim=0)
