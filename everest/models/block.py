"""The blocks of a transformer, from the stack down to the layers and their operations.

With `num_outputs`, the last block computes only the last L tokens, which attend to all K: a decoder needs no
output for visible tokens, an encoder none for its class token.

A linear layer usually stores its input for the gradient of its weight. In a block that input is a norm or an
activation of a tensor that is stored anyway, so a `RecomputedLinear` computes it again in the backward pass,
to save memory. This is exact: outputs and gradients are those of the plain formulation.

B batch, K tokens, L tokens whose outputs are computed, D width, E = D / heads, F width of the MLP, P outputs
of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
NORM_EPS: Final = 1e-6  # added to the variance by every LayerNorm, as in the official code
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

    Its parameters have the names of timm's BEiT and of the official code.

    Args:
        mlp_width: F; None: four times the width.
        rotary: whether queries and keys are rotated.
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
            rotation: rotates the queries and keys of the K tokens.
            mask: (B, 1, K, K) bool, whether a token attends to another; None: to all.
        """
        residual = x if num_outputs is None else last_tokens(x, num_outputs)  # (B, L, D)
        x = residual + self.drop_path1(self.attn(x, self.norm1, num_outputs, rotation, mask))
        return x + self.drop_path2(self.mlp(x, self.norm2))


class Attention(nn.Module):
    """Multi-head self-attention, with the biases of the official code: of queries and values.

    A bias of the keys has an effect only if they are rotated: then it is learned, else it is zero.
    """

    k_bias: Tensor  # (D,)

    def __init__(self, width: int, num_heads: int, *, rotary: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = RecomputedLinear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        if rotary:
            self.k_bias = nn.Parameter(torch.zeros(width))
        else:
            self.register_buffer("k_bias", torch.zeros(width), persistent=False)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        norm: nn.Module,
        num_outputs: int | None,
        rotation: Rotation | None,
        mask: Tensor | None,
    ) -> Tensor:
        """Attend from the last L of the normed tokens (B, K, D), or from all, to all: (B, L, D)."""
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])  # (3 * D,)
        q, k, v = self.qkv(norm(x), Origin(x, norm), bias, num_outputs).chunk(3, -1)  # (B, K, D) each
        if num_outputs is not None:
            q = last_tokens(q, num_outputs)  # (B, L, D)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        if rotation is not None:
            # Values are copied: a view would keep what queries and keys were rotated from.
            q, k, v = rotation.rotate(q), rotation.rotate(k), v.contiguous()

        attends = None if mask is None else mask[:, :, mask.size(2) - q.size(2) :]  # (B, 1, L, K)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attends)  # (B, heads, L, E)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with GELU, or with SwiGLU, which takes 2 F values and may have a norm (EVA-02)."""

    def __init__(self, width: int, hidden: int, activation: Activation | NormedSwiglu, eps: float) -> None:
        super().__init__()
        self.activation: Activation = "swiglu" if activation == "normed-swiglu" else activation
        self.fc1 = RecomputedLinear(width, 2 * hidden if self.activation == "swiglu" else hidden)
        self.norm = LayerNorm(hidden, eps=eps) if activation == "normed-swiglu" else None
        self.fc2 = RecomputedLinear(hidden, width)

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Apply the MLP to the normed tokens (B, K, D): (B, K, D)."""
        precision = x.dtype  # of the input of every norm, higher than that of products under autocast

        def activated(hidden: Tensor) -> Tensor:
            inner = activate(hidden, self.activation)
            return inner if self.norm is None else self.norm(inner.to(precision))

        hidden = self.fc1(norm(x), Origin(x, norm))  # (B, K, F), with SwiGLU (B, K, 2 F)
        return self.fc2(activated(hidden), Origin(hidden, activated))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): a branch scaled by 1 / (1 - rate), or by 0 in clips that skip it.

    The rate is a tensor, so that blocks with different rates share their compiled graphs.

    Args:
        rate: the fraction of the clips that skip the branch, below 1.
    """

    keep_prob: Tensor  # () float32: 1 - rate; not stored

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.register_buffer("keep_prob", torch.tensor(1 - rate), persistent=False)
        self.uniform: Tensor | None = None  # (B,) in [0, 1), of a micro-batch; None: sampled by torch

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
        """Give the modules the random numbers of the clips of a micro-batch."""
        for path, uniform in zip(self._paths, self._uniform, strict=True):
            path.uniform = uniform[clips]

    def clear(self) -> None:
        """End the step: the modules let torch draw their numbers again."""
        for path in self._paths:
            path.uniform = None


def last_tokens(x: Tensor, count: int) -> Tensor:
    """The last `count` of the tokens (B, K, D): (B, count, D); there may be none."""
    return x[:, x.size(1) - count :]


def activate(x: Tensor, activation: Activation) -> Tensor:
    """GELU of (..., K, F), or SwiGLU (Shazeer 2020) of (..., K, 2 F): silu(first half) * second half."""
    if activation in GELU_APPROXIMATIONS:
        return F.gelu(x, approximate=GELU_APPROXIMATIONS[activation])
    function = _swiglu if activation == "swiglu" else _quick_gelu
    if torch.compiler.is_compiling():
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)  # stores x only


def _swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)  # (..., K, F) each
    return F.silu(gate) * value


def _quick_gelu(x: Tensor) -> Tensor:
    return F.silu(QUICK_GELU_FACTOR * x) / QUICK_GELU_FACTOR


class Origin(NamedTuple):
    """What the input of a linear layer is computed from: it is `function` of `tensor`."""

    tensor: Tensor
    function: Callable[[Tensor], Tensor]


class RecomputedLinear(nn.Linear):
    """A Linear that computes its input again in the backward pass, if the input's `origin` is given.

    Forward hooks and adapters get the input itself, as of any Linear.
    """

    def forward(
        self,
        input: Tensor,
        origin: Origin | None = None,
        bias: Tensor | None = None,
        num_queries: int | None = None,
    ) -> Tensor:
        """Map the input (..., C) to (..., P).

        Args:
            bias: (P,), in place of the layer's own.
            num_queries: of a layer from (B, K, D) to queries, keys and values (B, K, 3 D): the number L of
                last tokens that have queries. Other queries are zero, at no cost. None: all tokens have them.
        """
        weight, bias = self.weight, self.bias if bias is None else bias
        if num_queries is None:
            return recomputed_linear(input, weight, bias, origin)
        widths = [input.size(-1), 2 * input.size(-1)]  # D, 2 D
        (q_weight, kv_weight), (q_bias, kv_bias) = weight.split(widths), bias.split(widths)
        last = origin and Origin(last_tokens(origin.tensor, num_queries), origin.function)
        queries = recomputed_linear(last_tokens(input, num_queries), q_weight, q_bias, last)  # (B, L, D)
        queries = F.pad(queries, (0, 0, input.size(1) - num_queries, 0))  # (B, K, D)
        return torch.cat([queries, recomputed_linear(input, kv_weight, kv_bias, origin)], dim=-1)


def recomputed_linear(x: Tensor, weight: Tensor, bias: Tensor, origin: Origin | None) -> Tensor:
    """`F.linear`, which stores the tensor of the origin, if it is given, instead of x."""
    return F.linear(x, weight, bias) if origin is None else _LinearOfOrigin.apply(x, weight, bias, *origin)


class _LinearOfOrigin(torch.autograd.Function):
    """y = x W^T + b. With g the gradient of y: dx = g W, dW = g^T x, db = the sum of g."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        tensor: Tensor,
        function: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.weight_dtype, ctx.function = weight.dtype, function
        device = x.device.type
        if device != "meta" and torch.is_autocast_enabled(device):  # meta has no autocast
            # The backward pass runs without autocast, and would have to cast the weight again.
            weight = weight.to(torch.get_autocast_dtype(device))
        ctx.save_for_backward(tensor, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        tensor, weight = ctx.saved_tensors  # (P, C)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]  # frozen weights need none
        grad = grad_outputs[0]  # (B, K, P), under autocast of lower precision than x
        flat_grad = grad.flatten(0, -2)  # (B * K, P)
        grad_x = grad @ weight if needs_x else None  # (B, K, C)
        grad_bias = flat_grad.sum(dim=0).to(ctx.weight_dtype) if needs_bias else None
        grad_weight = None
        if needs_weight:
            x = ctx.function(tensor).to(grad.dtype).flatten(0, -2)  # (B * K, C)
            grad_weight = (flat_grad.T @ x).to(ctx.weight_dtype)
        return grad_x, grad_weight, grad_bias, None, None
