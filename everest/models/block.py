"""The transformer block. It can compute the outputs of the last tokens only.

B batch, K tokens, L last tokens, D width, P branches with stochastic depth, F width of the MLP.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import LayerNorm
from torch.utils.checkpoint import checkpoint

from everest.config.model import MLP_RATIO
from everest.config.values import Gelu, MlpKind
from everest.models.positions import Rotation
from everest.models.recomputed import (
    Activation,
    ActivationLinear,
    RecomputedSwiglu,
    norm_linear,
)

EPS: Final = 1e-6  # of every LayerNorm, as in the released programs


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
        self.register_buffer("keep", torch.tensor(1 - rate), persistent=False)
        self.noise: Tensor | None = None  # (B,) in [0, 1), of a pass; None: drawn by torch

    def forward(self, x: Tensor) -> Tensor:
        """Scale the tokens (B, K, D) of each clip; in evaluation by 1."""
        if not self.training:
            return x
        noise = torch.rand(x.size(0), device=x.device) if self.noise is None else self.noise  # (B,)
        kept = (noise < self.keep).view(-1, 1, 1)
        return x * (kept / self.keep).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention, with the biases of the released programs: of queries and values.

    A bias of the keys has no effect unless they are turned: then it is learned, else it is zero.
    """

    k_bias: Tensor  # (D,)

    def __init__(self, width: int, heads: int, *, rotary: bool) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        if rotary:
            self.k_bias = nn.Parameter(torch.zeros(width))
        else:
            self.register_buffer("k_bias", torch.zeros(width), persistent=False)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, norm: LayerNorm, last: int | None, rotation: Rotation | None, mask: Tensor | None
    ) -> Tensor:
        """Attend from the last L tokens, or all, to all tokens (B, K, D), which `norm` norms: (B, L, D)."""
        weight, width = self.qkv.weight, x.size(-1)  # (3 * D, D): of queries, keys, values
        if last is None:
            bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
            parts = norm_linear(x, norm, weight, bias).chunk(3, -1)  # (B, K, D) each
        else:
            queries = norm_linear(x[:, x.size(1) - last :], norm, weight[:width], self.q_bias)  # (B, L, D)
            bias = torch.cat([self.k_bias, self.v_bias])
            parts = (queries, *norm_linear(x, norm, weight[width:], bias).chunk(2, -1))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        if rotation is not None:
            # Values are copied: a view would keep what queries and keys were turned from.
            q, k, v = rotation.turn(q), rotation.turn(k), v.contiguous()
        seen = None if mask is None else mask[:, :, mask.size(2) - q.size(2) :]  # (B, 1, L, K)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)  # (B, heads, L, D / heads)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with GELU; or SwiGLU, whose first layer has 2 F outputs, also with a norm (EVA-02).

    Args:
        gelu: exact or an approximation; of a plain MLP.
    """

    def __init__(self, width: int, hidden: int, kind: MlpKind, gelu: Gelu, eps: float) -> None:
        super().__init__()
        self.activation: Activation = gelu if kind == "plain" else "swiglu"
        self.fc1 = nn.Linear(width, hidden if kind == "plain" else 2 * hidden)
        self.norm = LayerNorm(hidden, eps=eps) if kind == "normed-swiglu" else None
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, norm: LayerNorm) -> Tensor:
        """The MLP (B, K, D) of tokens (B, K, D), which `norm` norms."""
        hidden = norm_linear(x, norm, self.fc1.weight, self.fc1.bias)  # (B, K, F), with SwiGLU (B, K, 2 F)
        if self.norm is None:
            return ActivationLinear.apply(hidden, self.fc2.weight, self.fc2.bias, self.activation)
        gated = RecomputedSwiglu.apply(hidden).to(x.dtype)  # (B, K, F), as the input of every norm
        return norm_linear(gated, self.norm, self.fc2.weight, self.fc2.bias)


class Block(nn.Module):
    """A pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)) (Dosovitskiy et al. 2021).

    Its parameters have the names of timm's BEiT and of the released programs.

    Args:
        mlp_width: F; None: four times the width.
        rotary: queries and keys are turned.
        eps: of its norms.
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
        eps: float = EPS,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, rotary=rotary)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, mlp_width or MLP_RATIO * width, mlp, gelu, eps)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self,
        x: Tensor,
        *,
        last: int | None = None,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Compute the outputs (B, K, D) of tokens (B, K, D); with `last` of the last L tokens: (B, L, D).

        Args:
            rotation: turns the queries and keys of the K tokens.
            mask: (B, 1, K, K) bool, whether a token attends to another; None: to all.
        """
        residual = x if last is None else x[:, x.size(1) - last :]
        x = residual + self.drop_path1(self.attn(x, self.norm1, last, rotation, mask))
        return x + self.drop_path2(self.mlp(x, self.norm2))


class Blocks(nn.ModuleList):
    """Blocks in sequence.

    Args:
        checkpointing: recompute each block in the backward pass.
    """

    def __init__(self, blocks: Iterable[Block], *, checkpointing: bool = False) -> None:
        super().__init__(blocks)
        self.checkpointing = checkpointing

    def forward(
        self, x: Tensor, *, last: int | None, rotation: Rotation | None, mask: Tensor | None = None
    ) -> Tensor:
        """Run the blocks on tokens (B, K, D), for the outputs of all or of the last L tokens: (B, L, D)."""
        for number, block in enumerate(self, start=1):
            block_last = last if number == len(self) else None
            if self.checkpointing and block.training:
                options = {"rotation": rotation, "mask": mask, "use_reentrant": False}
                x = checkpoint(block, x, last=block_last, **options)
            else:
                x = block(x, last=block_last, rotation=rotation, mask=mask)
        return x
