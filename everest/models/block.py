"""The blocks of a transformer, from the whole stack down to its layers.

With `num_outputs`, the last block computes only the last L tokens, which attend to all K: a decoder needs no
output for visible tokens, an encoder none for its class token.

Norms and activations are not stored for the backward pass, see everest.models.recompute.

B batch, K tokens, L tokens whose outputs are computed, D width, E = D / heads, F width of the MLP.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import LayerNorm
from torch.utils.checkpoint import checkpoint

from everest.config.model import MLP_RATIO
from everest.models.positions import Rotation
from everest.models.recompute import Activation, ActivationLinear, Normed, RecomputedSwiglu

NormedSwiglu = Literal["normed-swiglu"]  # SwiGLU with a norm between its Linear layers
NORM_EPS: Final = 1e-6  # added to the variance by every LayerNorm, as in the released programs


class Blocks(nn.ModuleList):
    """Blocks in sequence.

    Args:
        checkpointing: recompute each block in the backward pass.
    """

    def __init__(self, blocks: Iterable[Block], *, checkpointing: bool = False) -> None:
        super().__init__(blocks)
        self.checkpointing = checkpointing

    def forward(
        self, x: Tensor, *, num_outputs: int | None, rotation: Rotation | None, mask: Tensor | None = None
    ) -> Tensor:
        """Run the blocks on tokens (B, K, D): outputs (B, L, D) of the last L = `num_outputs` tokens.

        Args:
            num_outputs: None: of all K tokens.
            rotation, mask: see `Block`.
        """
        for index, block in enumerate(self):
            needed = num_outputs if index == len(self) - 1 else None  # later blocks read all tokens
            if self.checkpointing and block.training:
                options = {"rotation": rotation, "mask": mask, "use_reentrant": False}
                x = checkpoint(block, x, num_outputs=needed, **options)
            else:
                x = block(x, num_outputs=needed, rotation=rotation, mask=mask)
        return x


class Block(nn.Module):
    """A pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)) (Dosovitskiy et al. 2021).

    Its parameters have the names of timm's BEiT and of the released programs.

    Args:
        mlp_width: F; None: four times the width.
        rotary: queries and keys are turned.
        mlp: its activation, also SwiGLU with a norm.
        eps: added to the variance by its norms.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        drop_path: float = 0.0,
        *,
        mlp_width: int | None = None,
        rotary: bool = False,
        mlp: Activation | NormedSwiglu = "exact",
        eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, eps=eps)
        self.attn = Attention(width, num_heads, rotary=rotary)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, mlp_width or MLP_RATIO * width, mlp, eps)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self,
        x: Tensor,
        *,
        num_outputs: int | None = None,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Compute the outputs (B, L, D) of the last L = `num_outputs` of the tokens (B, K, D).

        Args:
            num_outputs: None: of all K tokens.
            rotation: turns the queries and keys of the K tokens.
            mask: (B, 1, K, K) bool, whether a token attends to another; None: to all.
        """
        residual = x if num_outputs is None else last_tokens(x, num_outputs)  # (B, L, D)
        x = residual + self.drop_path1(self.attn(Normed(x, self.norm1), num_outputs, rotation, mask))
        return x + self.drop_path2(self.mlp(Normed(x, self.norm2)))


class Attention(nn.Module):
    """Multi-head self-attention, with the biases of the released programs: of queries and values.

    A bias of the keys has no effect unless they are turned: then it is learned, else it is zero.
    """

    k_bias: Tensor  # (D,)

    def __init__(self, width: int, num_heads: int, *, rotary: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        if rotary:
            self.k_bias = nn.Parameter(torch.zeros(width))
        else:
            self.register_buffer("k_bias", torch.zeros(width), persistent=False)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Normed, num_outputs: int | None, rotation: Rotation | None, mask: Tensor | None
    ) -> Tensor:
        """Attend from the last L tokens, or all, to all tokens (B, K, D): (B, L, D)."""
        weight, width = self.qkv.weight, x.tokens.size(-1)  # (3 * D, D): of queries, keys, values
        if num_outputs is None:  # one product
            bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
            q, k, v = x.linear(weight, bias).chunk(3, -1)  # (B, K, D) each
        else:  # queries of the last tokens only
            last = Normed(last_tokens(x.tokens, num_outputs), x.norm)
            q = last.linear(weight[:width], self.q_bias)  # (B, L, D)
            bias = torch.cat([self.k_bias, self.v_bias])
            k, v = x.linear(weight[width:], bias).chunk(2, -1)  # (B, K, D) each
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        if rotation is not None:
            # Values are copied: a view would keep what queries and keys were turned from.
            q, k, v = rotation.turn(q), rotation.turn(k), v.contiguous()

        attends = None if mask is None else mask[:, :, mask.size(2) - q.size(2) :]  # (B, 1, L, K)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attends)  # (B, heads, L, E)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with GELU, or with SwiGLU, whose first layer has 2 F outputs (EVA-02: and a norm)."""

    def __init__(self, width: int, hidden: int, activation: Activation | NormedSwiglu, eps: float) -> None:
        super().__init__()
        self.activation: Activation = "swiglu" if activation == "normed-swiglu" else activation
        self.fc1 = nn.Linear(width, 2 * hidden if self.activation == "swiglu" else hidden)
        self.norm = LayerNorm(hidden, eps=eps) if activation == "normed-swiglu" else None
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Normed) -> Tensor:
        """The MLP (B, K, D) of tokens (B, K, D)."""
        hidden = x.linear(self.fc1.weight, self.fc1.bias)  # (B, K, F), with SwiGLU (B, K, 2 F)
        if self.norm is None:
            return ActivationLinear.apply(hidden, self.fc2.weight, self.fc2.bias, self.activation)
        gated = RecomputedSwiglu.apply(hidden).to(x.tokens.dtype)  # (B, K, F), as the input of every norm
        return Normed(gated, self.norm).linear(self.fc2.weight, self.fc2.bias)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): a branch scaled by 1 / (1 - rate), or by 0 in clips that skip it.

    The rate as a number would be a constant of a compiled graph. Blocks with different rates share their
    graphs, because they read it from a tensor.

    Args:
        rate: the share of the clips that skip the branch, below 1.
    """

    keep_prob: Tensor  # () float32: 1 - rate; not stored

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.register_buffer("keep_prob", torch.tensor(1 - rate), persistent=False)
        self.uniform: Tensor | None = None  # (B,) in [0, 1), of a pass; None: drawn by torch

    def forward(self, x: Tensor) -> Tensor:
        """Scale the tokens (B, K, D) of each clip; in evaluation by 1."""
        if not self.training:
            return x
        uniform = torch.rand(x.size(0), device=x.device) if self.uniform is None else self.uniform  # (B,)
        is_computed = (uniform < self.keep_prob).view(-1, 1, 1)
        return x * (is_computed / self.keep_prob).to(x.dtype)


class DroppedPaths:
    """Which of the `clips` of a step skip which branches: the same on any number of processes."""

    def __init__(self, model: nn.Module, seed: int, *, clips: int, device: torch.device) -> None:
        self._paths = [module for module in model.modules() if isinstance(module, DropPath)]
        generator = torch.Generator(device).manual_seed(seed)
        self._uniform = torch.rand(len(self._paths), clips, device=device, generator=generator)  # (paths, B)

    def use(self, clips: slice) -> None:
        """Give the modules the numbers of the clips of a pass."""
        for path, uniform in zip(self._paths, self._uniform, strict=True):
            path.uniform = uniform[clips]

    def clear(self) -> None:
        """End the step: the modules draw numbers of their own again."""
        for path in self._paths:
            path.uniform = None


def last_tokens(x: Tensor, count: int) -> Tensor:
    """The last `count` of the tokens (B, K, D): (B, count, D); there may be none."""
    return x[:, x.size(1) - count :]
