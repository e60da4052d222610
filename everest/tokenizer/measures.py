"""What tells a good tokenizer from one that has collapsed: figures of kept tokens, codes and pixels.

A tokenizer whose scorer has forgotten the content can rebuild clips as well as any, so the error of the
pixels alone says little: what it keeps must be looked at (see docs/lvmae.md).

n clips, N ranked tokens of each, K kept ones, T frames, H W pixels, t h w the grid of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from everest.tokenizer.fsq import FSQ
from everest.tokenizer.scorer import top_k

_TINY: Final = 1e-12  # where nothing changes at all, what is kept changes as much as the rest


def psnr(rebuilt: Tensor, frames: Tensor) -> Tensor:
    """(n,) peak signal-to-noise ratio in dB of clips (n, 3, T, H, W) in [0, 1]."""
    error = (rebuilt.float().clamp(0, 1) - frames).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=1e-10).log10()


def change_of_tokens(frames: Tensor, grid: Sequence[int]) -> Tensor:
    """(n, t, h, w): by how much the pixels of each token differ from the frame before, on the mean.

    The first frame has none before it; its difference counts as 0.
    """
    differences = frames.diff(dim=2).abs().mean(dim=1)  # (n, T - 1, H, W)
    padded = F.pad(differences, (0, 0, 0, 0, 1, 0))
    tubelet = [length // tokens for length, tokens in zip(frames.shape[2:], grid, strict=True)]
    return F.avg_pool3d(padded.unsqueeze(1), tubelet).squeeze(1)


def highest(scores: Tensor, share: float) -> Tensor:
    """(n, N) bool: the share of each row with the highest scores; one token at least."""
    generator = torch.Generator(scores.device).manual_seed(0)
    ids = top_k(scores, max(1, int(share * scores.size(1))), generator)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, ids, True)


def change_ratio(kept: Tensor, change: Tensor) -> float:
    """How much more the tokens kept (n, N) bool change than all do: 1 for a choice by chance."""
    return ((change[kept].mean() + _TINY) / (change.mean() + _TINY)).item()


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's correlation of two rankings (n, N) of a clip's tokens, the mean over clips."""
    ranks = [torch.stack([_ranks(row) for row in rows]) for rows in (one, other)]
    first, second = (rank - rank.mean(dim=1, keepdim=True) for rank in ranks)
    norms = first.norm(dim=1) * second.norm(dim=1)
    return ((first * second).sum(dim=1) / norms.clamp(min=_TINY)).mean().item()


def _ranks(values: Tensor) -> Tensor:
    """(N,) float64; equal values share the mean of their ranks."""
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[places]


def mean_overlap(kept: Tensor) -> float:
    """Intersection over union of what two clips keep, (n, N) bool, the mean over all pairs of clips."""
    chosen = kept.double()
    both = chosen @ chosen.T  # (n, n)
    counts = chosen.sum(dim=1)
    overlap = both / (counts + counts[:, None] - both)
    pairs = len(kept) * (len(kept) - 1)
    return ((overlap.sum() - overlap.trace()) / max(pairs, 1)).item()


def slice_shares(kept: Tensor, slices: int) -> list[float]:
    """Which share of all that is kept, (n, N) bool, lies in each of the ranked slices."""
    counts = kept.unflatten(1, (slices, -1)).sum(dim=(0, 2))
    return (counts / counts.sum()).tolist()


def score_entropy(scores: Tensor) -> float:
    """Entropy of the scores (n, N) as shares of their sum, over that of equal scores; the mean over clips."""
    shares = scores / scores.sum(dim=1, keepdim=True)
    return (torch.special.entr(shares).sum(dim=1) / math.log(scores.size(1))).mean().item()


def codebook_use(codes: Tensor, quantizer: FSQ) -> dict[str, Any]:
    """How the codes (K,) of kept tokens spread: zeros in place of the others would count as a code, too.

    perplexity: of the codes; as many equally frequent ones would have their entropy. least_level: the
    smallest share that a level of any dimension has.
    """
    counts = codes.unique(return_counts=True)[1].double()
    perplexity = torch.special.entr(counts / counts.sum()).sum().exp().item()
    digits = quantizer.digits(codes)  # (K, D)
    least = min(
        digits[:, dim].bincount(minlength=levels).min().item() for dim, levels in enumerate(quantizer.levels)
    )
    return {
        "tokens": len(codes),
        "used": len(counts),
        "perplexity": perplexity,
        "perplexity_share": perplexity / min(quantizer.num_codes, len(codes)),
        "least_level": least / len(codes),
    }
