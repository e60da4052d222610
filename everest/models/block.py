"""The transformer block, which keeps less for the backward pass and computes only what is read.

Both are exact: loss and gradients are those of the plain block.

B batch, K tokens, L last tokens, D width, H heads, F width of the MLP.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm
from timm.models.beit import Attention
from torch import Tensor, nn


class GeluLinear(torch.autograd.Function):
    """`linear(gelu(x))` that computes gelu(x) again in the backward pass instead of keeping it.

    A fifth of what a block keeps, for about 3 % of its time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors  # (B, K, F), (D, F)
        # Under autocast the product was of lower precision than the weight.
        grad = grad_outputs[0].to(x.dtype)  # (B, K, D)
        of_active = grad @ weight.to(x.dtype)  # (B, K, F)
        rows = grad.flatten(0, -2)  # (B * K, D)
        of_weight = rows.T @ F.gelu(x).flatten(0, -2)
        of_x = torch.ops.aten.gelu_backward(of_active, x)
        return of_x, of_weight.to(weight.dtype), rows.sum(dim=0).to(weight.dtype)


class Block(nn.Module):
    """A pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)) (Dosovitskiy et al. 2021).

    The attention is timm's of BEiT, which has what the released programs have: query and value bias, a key
    bias fixed at zero.
    """

    def __init__(self, width: int, heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, *, last: int | None = None) -> Tensor:
        """(B, K, D) to the same, or with `last` to the outputs of the last so many tokens only, (B, L, D)."""
        if last is None:
            x = x + self.drop_path1(self.attn(self.norm1(x)))
        else:
            x = x[:, x.size(1) - last :] + self.drop_path1(self._attention_of_last(self.norm1(x), last))
        fc1, fc2 = cast(nn.Linear, self.mlp.fc1), cast(nn.Linear, self.mlp.fc2)
        hidden = fc1(self.norm2(x))  # (B, K, F)
        return x + self.drop_path2(GeluLinear.apply(hidden, fc2.weight, fc2.bias))

    def _attention_of_last(self, x: Tensor, last: int) -> Tensor:
        """The attention's outputs for the last tokens, which look at all: (B, K, D) to (B, L, D)."""
        attn, width = self.attn, x.size(-1)
        weight = attn.qkv.weight  # (3 * D, D): of queries, keys, values
        assert attn.k_bias is not None
        assert attn.v_bias is not None
        q = F.linear(x[:, x.size(1) - last :], weight[:width], attn.q_bias)  # (B, L, D)
        kv = F.linear(x, weight[width:], torch.cat([attn.k_bias, attn.v_bias]))  # (B, K, 2 * D)
        q, k, v = (part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in (q, *kv.chunk(2, -1)))
        x = F.scaled_dot_product_attention(q, k, v)  # (B, H, L, D / H)
        return attn.proj(x.transpose(1, 2).flatten(2))
