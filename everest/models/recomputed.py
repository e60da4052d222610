"""Linear layers that recompute their input in the backward pass instead of saving it: after GELU or a norm.

Both are exact: outputs and gradients are equal to the plain formulation's.

B batch, K tokens, D width, P outputs, F width of the MLP.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from everest.models.activations import Activation, activate, activation_gradient


def _autocast_weight(x: Tensor, weight: Tensor) -> Tensor:
    """Cast the weight to the precision of a product with `x`: autocast does not reach inside a Function."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # meta has no autocast
        return weight
    # Like autocast, keep the cast copy for the backward pass, which otherwise has to cast again.
    return weight.to(torch.get_autocast_dtype(device))


class ActivationLinear(torch.autograd.Function):
    """`linear(activate(x))` that recomputes activate(x) in the backward pass instead of saving it."""

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
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            grad_x = activation_gradient(grad @ weight, x, ctx.activation)  # as x
        if needs_weight:
            activated = activate(x, ctx.activation).flatten(0, -2)  # (B * K, F)
            grad_weight = (rows.T @ activated).to(ctx.weight_dtype)
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
