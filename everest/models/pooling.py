"""How the encoded tokens of a clip become the one vector that its classes are told from.

B batch, K kept tokens, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from timm.layers.norm import LayerNorm
from timm.models.cait import LayerScaleBlockClassAttn
from torch import Tensor, nn

Pooling = Literal["mean", "first", "class-attention"]


class ClassAttentionPooling(nn.Module):
    """A learned class token looks at the kept tokens once (Touvron et al. 2021, CaiT; LVMAE for ViT-L).

    It is one class-attention layer of CaiT as timm has it: norm, attention of the class token over itself and
    the tokens, norm, MLP, both with a residual to the class token. timm's AttentionPoolLatent, which the
    attentive probe uses, lacks what makes it that: the residual around its attention. LayerScale starts at 1:
    it tames stacks of many layers, and at CaiT's 1e-4 the head would see next to nothing of the clip.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        self.block = LayerScaleBlockClassAttn(
            width, heads, qkv_bias=True, norm_layer=LayerNorm, init_values=1.0
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, K, D) to (B, D)."""
        asking = self.class_token.expand(tokens.size(0), -1, -1)  # (B, 1, D)
        return self.block(tokens, asking)[:, 0]
