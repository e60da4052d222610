"""Operations that recompute norms and activations in their backward pass, to save memory.

A Linear layer stores its input for the gradient of its weight. Here the input is a norm or an activation of a
tensor that is stored anyway, so only that tensor is kept, and the input is computed from it again. That is
exact: outputs and gradients are those of the plain formulation.

B batch, K tokens, D width, P outputs of a linear layer, F width of the MLP.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LayerNorm

from everest.config.values import Gelu

Activation = Literal[Gelu, "swiglu"]
# Hendrycks and Gimpel 2016: x * sigmoid(1.702 x) approximates GELU, as in CLIP
QUICK_GELU_FACTOR: Final = 1.702
GELU_APPROXIMATIONS: Final = {"exact": "none", "tanh": "tanh"}


class Normed(NamedTuple):
    """`norm(tokens)`, which the Linear layer that reads it computes."""

    tokens: Tensor  # (B, K, D)
    norm: LayerNorm

    def linear(self, weight: Tensor, bias: Tensor) -> Tensor:
        """`linear(norm(tokens))`: (B, K, P)."""
        norm = self.norm
        return NormLinear.apply(self.tokens, norm.weight, norm.bias, norm.eps, weight, bias)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """GELU of (..., K, F), or SwiGLU (Shazeer 2020) of (..., K, 2 F): silu(first half) * second half."""
    if activation == "swiglu":
        gate, value = x.chunk(2, dim=-1)  # (..., K, F) each
        return F.silu(gate) * value
    if activation == "quick":
        return F.silu(QUICK_GELU_FACTOR * x) / QUICK_GELU_FACTOR
    return F.gelu(x, approximate=GELU_APPROXIMATIONS[activation])


def activation_gradient(grad: Tensor, x: Tensor, activation: Activation) -> Tensor:
    """The gradient of the input x of `activate`, of its shape, from that of its output (..., K, F)."""
    aten = torch.ops.aten
    if activation == "swiglu":
        gate, value = x.chunk(2, dim=-1)  # (..., K, F) each
        return torch.cat([aten.silu_backward(grad * value, gate), grad * F.silu(gate)], dim=-1)
    if activation == "quick":
        return aten.silu_backward(grad, QUICK_GELU_FACTOR * x)
    return aten.gelu_backward(grad, x, approximate=GELU_APPROXIMATIONS[activation])


def _autocast_weight(x: Tensor, weight: Tensor) -> Tensor:
    """Cast the weight to the precision of its product with `x`, as autocast does in the forward pass.

    The backward pass runs without autocast: it saves this copy, or it would have to cast the weight again.
    """
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # meta has no autocast
        return weight
    return weight.to(torch.get_autocast_dtype(device))


class ActivationLinear(torch.autograd.Function):
    """y = a(x) W^T + b, with the activation a: (B, K, D) of x (B, K, F), with SwiGLU (B, K, 2 F).

    Saves x and W only. With g the gradient of y: dx = (g W) a'(x), dW = g^T a(x), db = the sum of g.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, activation: Activation) -> Tensor:
        ctx.weight_dtype, ctx.activation = weight.dtype, activation
        weight = _autocast_weight(x, weight)
        ctx.save_for_backward(x, weight)
        return F.linear(activate(x, activation), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # (B, K, F), with SwiGLU (B, K, 2 F); (D, F)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]  # frozen weights need none
        grad = grad_outputs[0].to(x.dtype)  # (B, K, D)
        flat_grad = grad.flatten(0, -2)  # (B * K, D)
        grad_x = activation_gradient(grad @ weight, x, ctx.activation) if needs_x else None  # the shape of x
        grad_bias = flat_grad.sum(dim=0).to(ctx.weight_dtype) if needs_bias else None
        grad_weight = None
        if needs_weight:
            activated = activate(x, ctx.activation).flatten(0, -2)  # (B * K, F)
            grad_weight = (flat_grad.T @ activated).to(ctx.weight_dtype)
        return grad_x, grad_weight, grad_bias, None


class NormLinear(torch.autograd.Function):
    """y = n(x) W^T + b, with the LayerNorm n: (B, K, P) of x (B, K, D).

    Saves x and W only. With g the gradient of y: dW = g^T n(x), db = the sum of g, and torch's backward pass
    of LayerNorm maps dn = g W to the gradients of x, scale and shift.
    """

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
        flat_grad = grad.flatten(0, -2)  # (B * K, P)
        grad_x = grad_scale = grad_shift = grad_weight = None
        grad_bias = flat_grad.sum(dim=0).to(ctx.weight_dtype) if needs_bias else None
        if needs_weight:
            grad_weight = (flat_grad.T @ normed.to(grad.dtype).flatten(0, -2)).to(ctx.weight_dtype)
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
