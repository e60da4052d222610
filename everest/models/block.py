"""The transformer block. It saves less for the backward pass and can compute outputs of the last tokens only.

Both savings are exact: loss and gradients are equal to the plain block's.

B batch, K tokens, L last tokens, D width, P outputs, F width of the MLP.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm
from timm.models.beit import Attention
from torch import Tensor, nn

from everest.config.sizes import MLP_RATIO
from everest.config.values import Gelu
from everest.models.drop_path import DropPath
from everest.models.rotary import Rotation


def _autocast_weight(x: Tensor, weight: Tensor) -> Tensor:
    """Cast the weight to the precision of a product with `x`: autocast does not reach inside a Function."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # meta has no autocast
        return weight
    # Like autocast, keep the cast copy for the backward pass, which otherwise has to cast again.
    return weight.to(torch.get_autocast_dtype(device))


class GeluLinear(torch.autograd.Function):
    """`linear(gelu(x))` that recomputes gelu(x) in the backward pass instead of saving it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, approximate: str = "none") -> Tensor:
        ctx.weight_dtype, ctx.approximate = weight.dtype, approximate
        weight = _autocast_weight(x, weight)
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x, approximate=approximate), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # (B, K, F), (D, F)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]  # frozen weights need none
        grad = grad_outputs[0].to(x.dtype)  # (B, K, D)
        rows = grad.flatten(0, -2)  # (B * K, D)
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            grad_x = torch.ops.aten.gelu_backward(grad @ weight, x, approximate=ctx.approximate)  # (B, K, F)
        if needs_weight:
            grad_weight = (rows.T @ F.gelu(x, approximate=ctx.approximate).flatten(0, -2)).to(
                ctx.weight_dtype
            )
        if needs_bias:
            grad_bias = rows.sum(dim=0).to(ctx.weight_dtype)
        return grad_x, grad_weight, grad_bias, None


class NormLinear(torch.autograd.Function):
    """`linear(layer_norm(x))` that recomputes layer_norm(x) in the backward pass instead of saving it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float, weight: Tensor, bias: Tensor
    ) -> Tensor:
        ctx.weight_dtype, ctx.eps = weight.dtype, eps
        norm_dtype = torch.promote_types(x.dtype, scale.dtype)  # sharded weights may be bfloat16
        scale, shift = scale.to(norm_dtype), shift.to(norm_dtype)
        weight = _autocast_weight(x, weight)
        ctx.save_for_backward(x, scale, shift, weight)
        return F.linear(F.layer_norm(x, scale.shape, scale, shift, eps), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, weight = ctx.saved_tensors  # (B, K, D), (D,), (D,), (P, D)
        needs_norm, (needs_weight, needs_bias) = ctx.needs_input_grad[:3], ctx.needs_input_grad[4:]
        normed, mean, rstd = torch.native_layer_norm(x, scale.shape, scale, shift, ctx.eps)
        grad = grad_outputs[0]  # (B, K, P), under autocast of lower precision than x
        rows = grad.flatten(0, -2)  # (B * K, P)
        grad_x = grad_scale = grad_shift = grad_weight = grad_bias = None
        if needs_weight:
            grad_weight = (rows.T @ normed.to(grad.dtype).flatten(0, -2)).to(ctx.weight_dtype)
        if any(needs_norm):
            grad_normed = (grad @ weight).to(x.dtype)  # (B, K, D)
            grad_x, grad_scale, grad_shift = torch.ops.aten.native_layer_norm_backward(
                grad_normed, x, scale.shape, mean, rstd, scale, shift, list(needs_norm)
            )
        if needs_bias:
            grad_bias = rows.sum(dim=0).to(ctx.weight_dtype)
        grad_scale, grad_shift = (
            None if grad is None else grad.to(ctx.weight_dtype) for grad in (grad_scale, grad_shift)
        )
        return grad_x, grad_scale, grad_shift, None, grad_weight, grad_bias


def _norm_linear(x: Tensor, norm: LayerNorm, weight: Tensor, bias: Tensor) -> Tensor:
    return NormLinear.apply(x, norm.weight, norm.bias, norm.eps, weight, bias)


class Block(nn.Module):
    """A pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)) (Dosovitskiy et al. 2021).

    The attention weights are timm's BEiT attention, which has the biases of the released programs: a query
    bias, a value bias, and a key bias fixed at zero.

    Args:
        mlp_width: F; None: four times the width.
        rotary: keys are turned, after which a key bias has an effect: it is learned.
        gelu: of the MLP, exact or the approximation by tanh.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        drop_path: float = 0.0,
        *,
        mlp_width: int | None = None,
        rotary: bool = False,
        gelu: Gelu = "exact",
    ) -> None:
        super().__init__()
        self.approximate = "tanh" if gelu == "tanh" else "none"
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        if rotary:
            del self.attn.k_bias  # a buffer of zeros
            self.attn.register_parameter("k_bias", nn.Parameter(torch.zeros(width)))
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, mlp_width or MLP_RATIO * width)
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
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, heads, K or L, D / heads)
        x = residual + self.drop_path1(attn.proj(attended.transpose(1, 2).flatten(2)))
        fc1, fc2 = cast(nn.Linear, self.mlp.fc1), cast(nn.Linear, self.mlp.fc2)
        hidden = _norm_linear(x, self.norm2, fc1.weight, fc1.bias)  # (B, K, F)
        return x + self.drop_path2(GeluLinear.apply(hidden, fc2.weight, fc2.bias, self.approximate))


class Stack(NamedTuple):
    """Blocks in sequence, and the tokens of one clip that they compute: the input of every cost estimate."""

    depth: int
    tokens: int
    width: int
    heads: int
    mlp_width: int


def activation_bytes(
    stacks: Iterable[Stack], *, other_bytes: int, bytes_per_value: int, checkpointing: bool
) -> int:
    """Estimate the bytes that a forward pass of one clip saves for the backward pass, to about a tenth.

    A block with fused attention saves 7 values per token and channel: the inputs of both norms, which are
    float32 in any precision, q, k, v and the attention's output; one is for small tensors. Its MLP saves the
    input of GELU. The outputs of norms and GELU are recomputed. With checkpointing every block saves its
    input only, and one block at a time saves all values.

    Args:
        other_bytes: of a clip outside of the blocks.
    """
    total = other_bytes
    for depth, tokens, width, _, mlp_width in stacks:
        block = tokens * (width * (2 * 4 + 5 * bytes_per_value) + mlp_width * bytes_per_value)
        total += depth * tokens * width * 4 + block if checkpointing else depth * block
    return total
