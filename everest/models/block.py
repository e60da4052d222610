"""The blocks of a transformer, from the stack down to the layers and their operations.

With `num_outputs`, the last block computes only the last L tokens, which attend to all K: a decoder needs no
output for visible tokens, an encoder none for its class token.

A linear layer usually stores its input for the gradient of its weight. Here that input is a norm or an
activation of a tensor that is stored anyway, so the backward pass computes it again, to save memory. This is
exact: outputs and gradients are those of the plain formulation.

B batch, K tokens, L tokens whose outputs are computed, D width, E = D / heads, F width of the MLP, P outputs
of a linear layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import LayerNorm
from torch.utils.checkpoint import checkpoint

from everest.config.model_settings import MLP_RATIO
from everest.config.values import Gelu
from everest.models.positions import Rotation

Activation = Literal[Gelu, "swiglu"]
NormedSwiglu = Literal["normed-swiglu"]  # SwiGLU with a norm between its Linear layers
NORM_EPS: Final = 1e-6  # added to the variance by every LayerNorm, as in the released programs
# Hendrycks and Gimpel 2016: x * sigmoid(1.702 x) approximates GELU, as in CLIP
QUICK_GELU_FACTOR: Final = 1.702
GELU_APPROXIMATIONS: Final = {"exact": "none", "tanh": "tanh"}


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
            num_outputs: None: outputs of all K tokens.
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
        rotary: whether queries and keys are turned.
        mlp: the activation of the MLP.
        eps: added to the variance by the norms.
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
            num_outputs: None: outputs of all K tokens.
            rotation: turns the queries and keys of the K tokens.
            mask: (B, 1, K, K) bool, whether a token attends to another; None: to all.
        """
        residual = x if num_outputs is None else last_tokens(x, num_outputs)  # (B, L, D)
        x = residual + self.drop_path1(self.attn(Normed(x, self.norm1), num_outputs, rotation, mask))
        return x + self.drop_path2(self.mlp(Normed(x, self.norm2)))


class Attention(nn.Module):
    """Multi-head self-attention, with the biases of the released programs: of queries and values.

    A bias of the keys has an effect only if they are turned: then it is learned, else it is zero.
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
    """Two linear layers with GELU, or with SwiGLU, which takes 2 F values and may have a norm (EVA-02)."""

    def __init__(self, width: int, hidden: int, activation: Activation | NormedSwiglu, eps: float) -> None:
        super().__init__()
        self.activation: Activation = "swiglu" if activation == "normed-swiglu" else activation
        self.fc1 = nn.Linear(width, 2 * hidden if self.activation == "swiglu" else hidden)
        self.norm = LayerNorm(hidden, eps=eps) if activation == "normed-swiglu" else None
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Normed) -> Tensor:
        """Apply the MLP to tokens (B, K, D): (B, K, D)."""
        hidden = x.linear(self.fc1.weight, self.fc1.bias)  # (B, K, F), with SwiGLU (B, K, 2 F)
        if self.norm is None:
            return ActivationLinear.apply(hidden, self.fc2.weight, self.fc2.bias, self.activation)
        gated = RecomputedSwiglu.apply(hidden).to(x.tokens.dtype)  # (B, K, F), as the input of every norm
        return Normed(gated, self.norm).linear(self.fc2.weight, self.fc2.bias)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): a branch scaled by 1 / (1 - rate), or by 0 in clips that skip it.

    The rate is a tensor, so that blocks with different rates share their compiled graphs.

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
    """Chooses which of the `clips` of a step skip which branches, equally on any number of processes."""

    def __init__(self, model: nn.Module, seed: int, *, clips: int, device: torch.device) -> None:
        self._paths = [module for module in model.modules() if isinstance(module, DropPath)]
        generator = torch.Generator(device).manual_seed(seed)
        self._uniform = torch.rand(len(self._paths), clips, device=device, generator=generator)  # (paths, B)

    def use(self, clips: slice) -> None:
        """Give the modules the random numbers of the clips of a pass."""
        for path, uniform in zip(self._paths, self._uniform, strict=True):
            path.uniform = uniform[clips]

    def clear(self) -> None:
        """End the step: the modules let torch draw their numbers again."""
        for path in self._paths:
            path.uniform = None


def last_tokens(x: Tensor, count: int) -> Tensor:
    """The last `count` of the tokens (B, K, D): (B, count, D); there may be none."""
    return x[:, x.size(1) - count :]


class Normed(NamedTuple):
    """Tokens, and the norm that the next linear layer applies to them."""

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

    The copy is saved: the backward pass runs without autocast, and would have to cast the weight again.
    """
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # meta has no autocast
        return weight
    return weight.to(torch.get_autocast_dtype(device))


class ActivationLinear(torch.autograd.Function):
    """y = a(x) W^T + b, with the activation a: (B, K, D) of x (B, K, F), with SwiGLU (B, K, 2 F).

    Saves x and W. With g the gradient of y: dx = (g W) a'(x), dW = g^T a(x), db = the sum of g.
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

    Saves x, W, and the scale and shift of n. With g the gradient of y: dW = g^T n(x), db = the sum of g, and
    torch's backward pass of LayerNorm maps dn = g W to the gradients of x, scale and shift.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float, weight: Tensor, bias: Tensor
    ) -> Tensor:
        ctx.weight_dtype, ctx.eps = weight.dtype, eps
        norm_dtype = torch.promote_types(x.dtype, scale.dtype)  # weights may be bfloat16
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
            grad_x, *grads = torch.ops.aten.native_layer_norm_backward(
                grad_normed, x, scale.shape, mean, rstd, scale, shift, list(needs_norm)
            )
            grad_scale, grad_shift = (g if g is None else g.to(ctx.weight_dtype) for g in grads)
        return grad_x, grad_scale, grad_shift, None, grad_weight, grad_bias


class RecomputedSwiglu(torch.autograd.Function):
    """SwiGLU (B, K, F) of (B, K, 2 F); saves its input only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return activate(x, "swiglu")

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return activation_gradient(grad_outputs[0], x, "swiglu")
