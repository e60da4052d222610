"""From the encoded tokens of a clip to one vector.

B batch, K tokens, D width, N tokens of the grid, P tokens of a time index.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from everest.methods.grid import TokenGrid
from everest.models.block import NORM_EPS
from everest.models.positions import learned_vectors

MOVED_FRACTION: Final = 0.3  # of the pairs: EVEREST's rho_pre (Table 8); 0.15 and 0.5 were about as good
NUM_STATISTICS: Final = 4  # the statistics of `mean_and_change`, each of the width of a token


def mean_and_change(tokens: Tensor, ids: Tensor, grid: TokenGrid) -> Tensor:
    """Four statistics of the tokens of a clip, which say what there is and what moves.

    Each token is compared with the token at the same position one time index later, if that is among `ids`,
    too. The statistics are the mean of all tokens; the mean absolute change over all pairs; and over the
    MOVED_FRACTION of the pairs with the largest change (L2, as EVEREST selects tokens) the mean of the later
    token and the mean absolute change. The last three are zero without a pair, as in clips of one time index.

    Args:
        tokens: (B, K, D).
        ids: (B, K) int64, their numbers in the grid.
    Returns:
        (B, 4D) in the precision of the tokens, computed in float32.
    """
    precision = tokens.dtype
    tokens = tokens.float()
    # Where each token is among `ids`, -1 if it is not there. Tokens after the last time index are never
    # there.
    index = ids.new_full((ids.size(0), grid.num_tokens + grid.num_positions), -1)  # (B, N + P)
    numbers = torch.arange(ids.size(1), device=ids.device).expand_as(ids)
    later_index = index.scatter(1, ids, numbers).gather(1, ids + grid.num_positions)  # (B, K)
    is_pair = later_index >= 0  # (B, K)
    following = tokens.gather(1, later_index.clamp(min=0).unsqueeze(-1).expand_as(tokens))  # (B, K, D)
    change = (following - tokens).abs()
    squared = change.square().sum(dim=-1).masked_fill(~is_pair, -1.0)  # (B, K)
    rank = (is_pair.sum(dim=1, keepdim=True) * MOVED_FRACTION).ceil().long().clamp(min=1) - 1  # (B, 1)
    has_moved = is_pair & (squared >= squared.sort(dim=1, descending=True).values.gather(1, rank))
    statistics = [tokens.mean(dim=1), _mean_of(change, is_pair)]
    statistics += [_mean_of(following, has_moved), _mean_of(change, has_moved)]
    return torch.cat(statistics, dim=1).to(precision)


def _mean_of(tokens: Tensor, chosen: Tensor) -> Tensor:
    """The mean (B, D) of the chosen (B, K) of some tokens (B, K, D); zero if there are none."""
    weights = chosen.unsqueeze(-1).to(tokens.dtype)  # (B, K, 1)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class ClassAttentionPooling(nn.Module):
    """A learned class token attends to the kept tokens once (Touvron et al. 2021, CaiT; LVMAE for ViT-L).

    A class-attention layer of CaiT from timm: norm, attention of the class token over itself and the tokens,
    norm, MLP, both with a residual to the class token. LayerScale starts at 1: CaiT's 1e-4 stabilizes stacks
    of many layers, but in one layer it would hide almost all of the clip from the head.
    """

    def __init__(self, width: int, num_heads: int, *, eps: float = NORM_EPS) -> None:
        from timm.models.cait import LayerScaleBlockClassAttn  # here: timm takes a second to import

        super().__init__()
        self.class_token = learned_vectors(1, width)
        norm: Any = partial(nn.LayerNorm, eps=eps)
        self.block = LayerScaleBlockClassAttn(
            width, num_heads, qkv_bias=True, norm_layer=norm, init_values=1.0
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool tokens (B, K, D) to (B, D)."""
        class_token = self.class_token.expand(tokens.size(0), -1, -1)  # (B, 1, D)
        return self.block(tokens, class_token)[:, 0]
