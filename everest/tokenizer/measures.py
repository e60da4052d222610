"""Measures of a tokenizer's kept tokens, codes and pixels, which detect a collapsed tokenizer.

A tokenizer whose scorer ignores the content can rebuild clips as well as any other, so the pixel error alone
is not enough: the kept tokens must be examined as well (see docs/lvmae.md).

n clips, N ranked tokens of each, K kept ones, T frames, H W pixels, t h w the grid of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

from everest.tokenizer.fsq import FSQ
from everest.tokenizer.scorer import top_k

_TINY: Final = 1e-12  # makes a ratio of changes 1 if nothing changes at all


def psnr(rebuilt: Tensor, frames: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (n,) in dB of clips (n, 3, T, H, W) in [0, 1]."""
    error = (rebuilt.float().clamp(0, 1) - frames).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=1e-10).log10()


def change_of_tokens(frames: Tensor, grid: Sequence[int]) -> Tensor:
    """Mean absolute difference (n, t, h, w) of each token's pixels from the frame before.

    The difference of the first frame is 0.
    """
    differences = frames.diff(dim=2).abs().mean(dim=1)  # (n, T - 1, H, W)
    padded = F.pad(differences, (0, 0, 0, 0, 1, 0))
    tubelet = [length // tokens for length, tokens in zip(frames.shape[2:], grid, strict=True)]
    return F.avg_pool3d(padded.unsqueeze(1), tubelet).squeeze(1)


def highest(scores: Tensor, share: float) -> Tensor:
    """Mask (n, N) of the given share of each row with the highest scores; at least one token."""
    generator = torch.Generator(scores.device).manual_seed(0)
    ids = top_k(scores, max(1, int(share * scores.size(1))), generator)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, ids, True)


def change_ratio(kept: Tensor, change: Tensor) -> float:
    """Mean change of the tokens in the mask `kept` (n, N) over that of all tokens; at random 1."""
    return ((change[kept].mean() + _TINY) / (change.mean() + _TINY)).item()


def rank_correlation(scores_a: Tensor, scores_b: Tensor) -> float:
    """Spearman's correlation of two scores (n, N) of the tokens of a clip, averaged over clips."""
    ranks = (torch.from_numpy(rankdata(scores.numpy(), axis=1)) for scores in (scores_a, scores_b))
    first, second = (rank - rank.mean(dim=1, keepdim=True) for rank in ranks)
    norms = first.norm(dim=1) * second.norm(dim=1)
    return ((first * second).sum(dim=1) / norms.clamp(min=_TINY)).mean().item()


def mean_overlap(kept: Tensor) -> float:
    """Intersection over union of the kept tokens (n, N) bool of two clips, averaged over all pairs."""
    selected = kept.double()
    both = selected @ selected.T  # (n, n)
    counts = selected.sum(dim=1)
    overlap = both / (counts + counts[:, None] - both)
    pairs = len(kept) * (len(kept) - 1)
    return ((overlap.sum() - overlap.trace()) / max(pairs, 1)).item()


def slice_shares(kept: Tensor, slices: int) -> list[float]:
    """The share of all kept tokens (n, N) bool that is in each ranked slice."""
    counts = kept.unflatten(1, (slices, -1)).sum(dim=(0, 2))
    return (counts / counts.sum()).tolist()


def score_entropy(scores: Tensor) -> float:
    """Entropy of normalized scores (n, N), relative to equal scores, averaged over clips."""
    shares = scores / scores.sum(dim=1, keepdim=True)
    return (torch.special.entr(shares).sum(dim=1) / math.log(scores.size(1))).mean().item()


def codebook_use(codes: Tensor, quantizer: FSQ) -> dict[str, Any]:
    """Measure how the codes (K,) of kept tokens are distributed. Dropped tokens would count as a code.

    perplexity: the number of equally frequent codes with the same entropy.
    """
    counts = codes.unique(return_counts=True)[1].double()
    perplexity = torch.special.entr(counts / counts.sum()).sum().exp().item()
    return {
        "tokens": len(codes),
        "used": len(counts),
        "perplexity": perplexity,
        "perplexity_share": perplexity / min(quantizer.num_codes, len(codes)),
    }
