"""What a block computes, saving less for the backward pass, in which the rest is recomputed.

All are exact: outputs and gradients are equal to the plain formulation's.

B batch, K tokens, D width, P outputs, F width of the MLP.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LayerNorm

Activation = Literal["exact", "tanh", "quick", "swiglu"]  # the first three are of GELU
QUICK: Final = 1.702  # Hendrycks and Gimpel 2016: x * sigmoid(1.702 x) approximates GELU, as in CLIP
APPROXIMATE: Final = {"exact": "none", "tanh": "tanh"}


def norm_linear(x: Tensor, norm: LayerNorm, weight: Tensor, bias: Tensor) -> Tensor:
    """`linear(norm(x))`: (B, K, P) of tokens (B, K, D)."""
    return NormLinear.apply(x, norm.weight, norm.bias, norm.eps, weight, bias)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """GELU of (..., K, F), or SwiGLU (Shazeer 2020) of (..., K, 2 F): silu(first half) * second half."""
    if activation == "swiglu":
        gate, value = x.chunk(2, dim=-1)  # (..., K, F) each
        return F.silu(gate) * value
    if activation == "quick":
        return F.silu(QUICK * x) / QUICK
    return F.gelu(x, approximate=APPROXIMATE[activation])


def activation_gradient(grad: Tensor, x: Tensor, activation: Activation) -> Tensor:
    """The gradient of the input x of `activate`, from that of its output."""
    aten = torch.ops.aten
    if activation == "swiglu":
        gate, value = x.chunk(2, dim=-1)  # (..., K, F) each
        return torch.cat([aten.silu_backward(grad * value, gate), grad * F.silu(gate)], dim=-1)
    if activation == "quick":
        return aten.silu_backward(grad, QUICK * x)
    return aten.gelu_backward(grad, x, approximate=APPROXIMATE[activation])


def _autocast_weight(x: Tensor, weight: Tensor) -> Tensor:
    """Cast the weight to the precision of a product with `x`: autocast does not reach inside a Function."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # meta has no autocast
        return weight
    # Like autocast, keep the cast copy for the backward pass, which otherwise has to cast again.
    return weight.to(torch.get_autocast_dtype(device))


class ActivationLinear(torch.autograd.Function):
    """`linear(activate(x))`: (B, K, D) of (B, K, F), with SwiGLU of (B, K, 2 F); recomputes activate(x)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, activation: Activation = "exact"
    ) -> Tensor:
        ctx.weight_dtype, ctx.activation = weight.dtype, activation
        weight = _autocast_weight(x, weight)
        ctx.save_for_backward(x, weight)
        return F.linear(activate(x, activation), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # (B, K, F), with SwiGLU (B, K, 2 F); (D, F)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]  # frozen weights need none
        grad = grad_outputs[0].to(x.dtype)  # (B, K, D)
        rows = grad.flatten(0, -2)  # (B * K, D)
        grad_x = activation_gradient(grad @ weight, x, ctx.activation) if needs_x else None  # as x
        grad_bias = rows.sum(dim=0).to(ctx.weight_dtype) if needs_bias else None
        grad_weight = None
        if needs_weight:
            activated = activate(x, ctx.activation).flatten(0, -2)  # (B * K, F)
            grad_weight = (rows.T @ activated).to(ctx.weight_dtype)
        return grad_x, grad_weight, grad_bias, None


class NormLinear(torch.autograd.Function):
    """`linear(layer_norm(x))`: (B, K, P) of (B, K, D); recomputes layer_norm(x)."""

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
        grad_x = grad_scale = grad_shift = grad_weight = None
        grad_bias = rows.sum(dim=0).to(ctx.weight_dtype) if needs_bias else None
        if needs_weight:
            grad_weight = (rows.T @ normed.to(grad.dtype).flatten(0, -2)).to(ctx.weight_dtype)
        if any(needs_norm):
            grad_normed = (grad @ weight).to(x.dtype)  # (B, K, D)
            grad_x, grad_scale, grad_shift = torch.ops.aten.native_layer_norm_backward(
                grad_normed, x, scale.shape, mean, rstd, scale, shift, list(needs_norm)
            )
        grad_scale, grad_shift = (
            None if grad is None else grad.to(ctx.weight_dtype) for grad in (grad_scale, grad_shift)
        )
        return grad_x, grad_scale, grad_shift, None, grad_weight, grad_bias


class RecomputedSwiglu(torch.autograd.Function):
    """SwiGLU (B, K, F) of (B, K, 2 F) that saves its input only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return activate(x, "swiglu")

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return activation_gradient(grad_outputs[0], x, "swiglu")
