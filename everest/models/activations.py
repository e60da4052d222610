"""The activations of an MLP, and their gradients from the input: for functions that save the input only.

K tokens, F width of the MLP.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["exact", "tanh", "quick", "swiglu"]  # the first three are of GELU
QUICK: Final = 1.702  # Hendrycks and Gimpel 2016: x * sigmoid(1.702 x) approximates GELU, as in CLIP
APPROXIMATE: Final = {"exact": "none", "tanh": "tanh"}


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
