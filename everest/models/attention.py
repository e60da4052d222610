"""Attention, computed in the way that is fastest on a device. All ways give the same.

B batch, H heads, Q queries, K keys, D width of a head, G heads of all clips together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from everest.system.cpu import has_onednn_matmul

MOST_SCORES: Final = 2**19  # at once, 2 MB: ours, the best of 2**18 to 2**21 on an EPYC with 32 MB of cache


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, for every head (Vaswani et al. 2017, equation 1).

    torch's fused attention, but for an AMD processor whose products are oneDNN's (`system.cpu`): there
    its blocks are too small, and products of whole matrices are up to 2.6 times faster; in float32 as long as
    the scores of a head stay in the cache. Neither keeps scores for the backward pass.

    Args:
        q: (B, H, Q, D).
        k, v: (B, H, K, D), of the same type as q.
    Returns:
        (B, H, Q, D).
    """
    if torch.compiler.is_compiling() or q.device.type != "cpu" or not has_onednn_matmul():
        return F.scaled_dot_product_attention(q, k, v)
    if q.dtype == torch.float32 and q.size(-2) * k.size(-2) > MOST_SCORES:
        return F.scaled_dot_product_attention(q, k, v)
    return ProductAttention.apply(q, k, v)


class ProductAttention(torch.autograd.Function):
    """Attention by matrix products, some scores at a time, which the backward pass computes again.

    Scores and softmax are float32, under autocast too; the other products are as precise as what is given.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        with torch.autocast("cpu", enabled=False):
            return _forward(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)).view_as(q)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "attention by products has no second derivatives: compute them in a process that has not "
                "called everest.system.cpu.use_onednn_matmul"
            )
        saved = ctx.saved_tensors  # asked for once: under checkpointing there is no second time
        q, k, v = (x.flatten(0, 1) for x in saved)  # (G, Q or K, D)
        with torch.autocast("cpu", enabled=False):
            grads = _backward(q, k, v, grad_outputs[0].flatten(0, 1))
        return tuple(grad.to(x.dtype).view(x.shape) for grad, x in zip(grads, saved, strict=True))


def _forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(G, Q, D) from (G, Q, D) and twice (G, K, D)."""
    out = torch.empty_like(q)
    for heads, queries in _parts(q, k):
        weights = _weights(q[heads, queries], k[heads])
        torch.bmm(weights.to(v.dtype), v[heads], out=out[heads, queries])
    return out


def _backward(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v by that of the output (G, Q, D); the latter two at least float32."""
    grad_q = torch.empty_like(q)
    grad_k, grad_v = (torch.zeros_like(x, dtype=_precise(x)) for x in (k, v))  # sums over parts
    for heads, queries in _parts(q, k):
        part_q, part_grad = q[heads, queries], grad[heads, queries]
        weights = _weights(part_q, k[heads])  # (part of G, part of Q, K)
        grad_v[heads] += weights.to(v.dtype).mT @ part_grad
        grad_weights = (part_grad @ v[heads].mT).to(weights.dtype)
        # By the scaled scores; the scale follows for all parts at once.
        grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_scores = grad_scores.to(q.dtype)
        torch.bmm(grad_scores, k[heads], out=grad_q[heads, queries])
        grad_k[heads] += grad_scores.mT @ part_q
    return grad_q.mul_(_scale(q)), grad_k.mul_(_scale(q)), grad_v


def _weights(q: Tensor, k: Tensor) -> Tensor:
    """(G, Q, D) and (G, K, D) to (G, Q, K), at least float32, that sum to one."""
    return ((q.to(_precise(q)) * _scale(q)) @ k.to(_precise(k)).mT).softmax(dim=-1)


def _precise(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _scale(q: Tensor) -> float:
    return q.size(-1) ** -0.5


def _parts(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
    """Heads and queries (G, Q) whose scores are computed at once."""
    heads, queries, keys = q.size(0), max(1, q.size(1)), max(1, k.size(1))
    many = max(1, MOST_SCORES // (queries * keys))
    rows = queries if many > 1 else max(1, MOST_SCORES // keys)
    for head in range(0, heads, many):
        for row in range(0, queries, rows):
            yield slice(head, head + many), slice(row, row + rows)
