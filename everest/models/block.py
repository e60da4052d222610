"""The transformer block. It saves less for the backward pass and can compute outputs of the last tokens only.

Both savings are exact: loss and gradients are equal to the plain block's.

B batch, K tokens, L last tokens, D width, P outputs or branches with stochastic depth, F width of the MLP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, cast

import torch
import torch.nn.functional as F
from timm.layers.mlp import GluMlp, Mlp
from timm.layers.norm import LayerNorm
from timm.models.beit import Attention
from torch import Tensor, nn

from everest.config.sizes import MLP_RATIO
from everest.config.values import Gelu, MlpKind
from everest.models.recomputed import (
    Activation,
    ActivationLinear,
    FewTokensAttention,
    NormLinear,
    RecomputedSwiglu,
)
from everest.models.rotary import Rotation
from everest.system.compute import is_eager_on_cpu

FEW_TOKENS: Final = 192  # our choice: on an AMD EPYC, fused attention is faster above it


class DropPath(nn.Module):
    """Scales a branch by 1 / keep, or by 0 in the clips that it is left out of (Huang et al. 2016).

    The rate as a number would be a constant of a compiled graph. Blocks with different rates share their
    graphs, because they read it from a tensor.

    Args:
        rate: the share of the clips that the branch is left out of, below 1.
    """

    keep: Tensor  # () float32: 1 - rate; not stored

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop_prob = rate
        self.register_buffer("keep", torch.tensor(1 - rate), persistent=False)
        self.noise: Tensor | None = None  # (B,) in [0, 1), see `drop_noise`; None: drawn by torch

    def forward(self, x: Tensor) -> Tensor:
        """Scale the tokens (B, K, D) of each clip; in evaluation by 1."""
        if not self.training:
            return x
        noise = torch.rand(x.size(0), device=x.device) if self.noise is None else self.noise  # (B,)
        kept = (noise < self.keep).view(-1, 1, 1)
        return x * (kept / self.keep).to(x.dtype)


def drop_paths(model: nn.Module) -> list[DropPath]:
    """The branches of a model with stochastic depth."""
    return [module for module in model.modules() if isinstance(module, DropPath)]


@contextmanager
def drop_noise(paths: Sequence[DropPath], noise: Tensor) -> Iterator[None]:
    """Let `noise` (P, B) decide in the passes of the context which clips a branch is left out of."""
    for path, row in zip(paths, noise, strict=True):
        path.noise = row
    try:
        yield
    finally:
        for path in paths:
            path.noise = None


def _norm_linear(x: Tensor, norm: LayerNorm, weight: Tensor, bias: Tensor) -> Tensor:
    return NormLinear.apply(x, norm.weight, norm.bias, norm.eps, weight, bias)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention (B, heads, L, D) of queries (B, heads, L, D) to keys and values (B, heads, K, D)."""
    if k.size(2) <= FEW_TOKENS and q.dtype == torch.float32 and is_eager_on_cpu(q):
        return FewTokensAttention.apply(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def _make_mlp(width: int, mlp_width: int, kind: MlpKind) -> Mlp | GluMlp:
    if kind == "plain":
        return Mlp(width, mlp_width)
    gated = partial(GluMlp, width, 2 * mlp_width, act_layer=nn.SiLU, gate_last=False)
    return gated(norm_layer=LayerNorm) if kind == "normed-swiglu" else gated()


class Block(nn.Module):
    """A pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)) (Dosovitskiy et al. 2021).

    The attention weights are timm's BEiT attention, which has the biases of the released programs: a query
    bias, a value bias, and a key bias fixed at zero.

    Args:
        mlp_width: F; None: four times the width.
        rotary: keys are turned, after which a key bias has an effect: it is learned.
        mlp: two Linear layers with GELU; or SwiGLU, whose first layer has 2 F outputs; or SwiGLU with a norm
            of its F outputs (EVA-02).
        gelu: exact or an approximation; of a plain MLP.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        drop_path: float = 0.0,
        *,
        mlp_width: int | None = None,
        rotary: bool = False,
        mlp: MlpKind = "plain",
        gelu: Gelu = "exact",
    ) -> None:
        super().__init__()
        self.activation: Activation = gelu if mlp == "plain" else "swiglu"
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        if rotary:
            del self.attn.k_bias  # a buffer of zeros
            self.attn.register_parameter("k_bias", nn.Parameter(torch.zeros(width)))
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = LayerNorm(width)
        self.mlp = _make_mlp(width, mlp_width or MLP_RATIO * width, mlp)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, *, last: int | None = None, rotation: Rotation | None = None) -> Tensor:
        """Compute the outputs (B, K, D) of tokens (B, K, D); with `last` of the last L tokens: (B, L, D).

        Args:
            rotation: turns the queries and keys of the K tokens.
        """
        attn, width = self.attn, x.size(-1)
        weight = attn.qkv.weight  # (3 * D, D): of queries, keys, values
        assert attn.q_bias is not None
        assert attn.k_bias is not None
        assert attn.v_bias is not None
        residual = x if last is None else x[:, x.size(1) - last :]
        if last is None:
            bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
            parts = _norm_linear(x, self.norm1, weight, bias).chunk(3, -1)  # (B, K, D) each
        else:  # queries of the last L tokens, keys and values of all
            q = _norm_linear(x[:, x.size(1) - last :], self.norm1, weight[:width], attn.q_bias)  # (B, L, D)
            bias = torch.cat([attn.k_bias, attn.v_bias])
            parts = (q, *_norm_linear(x, self.norm1, weight[width:], bias).chunk(2, -1))
        q, k, v = (part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in parts)
        if rotation is not None:
            # Values are copied: a view would keep what queries and keys were turned from.
            q, k, v = rotation.turn(q), rotation.turn(k), v.contiguous()
        attended = _attention(q, k, v)  # (B, heads, K or L, D / heads)
        x = residual + self.drop_path1(attn.proj(attended.transpose(1, 2).flatten(2)))
        return x + self.drop_path2(self._mlp(x))

    def _mlp(self, x: Tensor) -> Tensor:
        """The MLP of normed tokens (B, K, D): (B, K, D)."""
        fc1, norm, fc2 = cast(nn.Linear, self.mlp.fc1), self.mlp.norm, cast(nn.Linear, self.mlp.fc2)
        hidden = _norm_linear(x, self.norm2, fc1.weight, fc1.bias)  # (B, K, F), with SwiGLU (B, K, 2 F)
        if isinstance(norm, LayerNorm):
            gated = RecomputedSwiglu.apply(hidden).to(x.dtype)  # (B, K, F), as the input of every norm
            return _norm_linear(gated, norm, fc2.weight, fc2.bias)
        return ActivationLinear.apply(hidden, fc2.weight, fc2.bias, self.activation)
