"""A straightforward implementation of both stages on the weights of everest models, as a baseline.

It follows the paper and the official code: every token is embedded by the
convolution, selections are boolean masks, the softmax is explicit, every block computes all its tokens, and
the targets of all tokens are computed before the predicted ones are selected.

B batch, C channels, T frames, H W pixels, N tokens, K chosen tokens, D width.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.methods.grid import TokenGrid, patchify
from everest.methods.selection import TopK
from everest.models.block import Block
from everest.models.classifier import VideoClassifier
from everest.models.mae import Decoder, MaskedAutoencoder
from everest.models.vit import Encoder
from everest.video.pixels import IMAGENET


def plain_block(block: Block, x: Tensor) -> Tensor:
    """(B, K, D) to the same, with an explicit softmax over (B, heads, K, K)."""
    attn = block.attn
    bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    qkv = F.linear(block.norm1(x), attn.qkv.weight, bias)
    q, k, v = qkv.unflatten(2, (3, attn.num_heads, -1)).permute(
        2, 0, 3, 1, 4
    )  # each (B, heads, K, D / heads)
    weights = ((q * q.size(-1) ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
    x = x + attn.proj((weights @ v).transpose(1, 2).flatten(2))
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))


def plain_blocks(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for block in blocks:
        x = plain_block(cast(Block, block), x)
    return x


def _embedded(encoder: Encoder, frames: Tensor) -> Tensor:
    """(B, N, D): all tokens."""
    return encoder.patch_embed.proj(frames).flatten(2).transpose(1, 2)


def _importance(tokens: Tensor, num_positions: int) -> Tensor:
    """(B, N): distances of embeddings; the first time index has the values of the second."""
    distance = (tokens[:, num_positions:] - tokens[:, :-num_positions]).float().norm(dim=-1)
    return torch.cat([distance[:, :num_positions], distance], dim=1)


def _mask(ids: Tensor, num_tokens: int) -> Tensor:
    """(B, N) bool: true at `ids`."""
    return torch.zeros(ids.size(0), num_tokens, dtype=torch.bool, device=ids.device).scatter_(1, ids, True)


def _picked(x: Tensor, mask: Tensor) -> Tensor:
    """The rows of (B, N, D) where the mask is true: (B, K, D)."""
    return x[mask].view(x.size(0), -1, x.size(-1))


def _targets(frames: Tensor, tubelet: tuple[int, int, int]) -> Tensor:
    """(B, N, P): the normalized pixels of all tokens."""
    with torch.no_grad():
        pixels = IMAGENET.unnormalize(frames.float())
        patches = patchify(pixels, tubelet).movedim(2, -1).flatten(2, -2)  # (B, N, p, C)
        std = patches.var(dim=2, unbiased=True, keepdim=True).sqrt() + 1e-6
        return ((patches - patches.mean(dim=2, keepdim=True)) / std).flatten(2)


def _positions(stack: Encoder | Decoder, grid: TokenGrid) -> Tensor:
    """(N, D), of all tokens."""
    return stack.position(torch.arange(grid.num_tokens, device=next(stack.parameters()).device))


def pretraining_loss(model: MaskedAutoencoder, frames: Tensor, noise: Tensor) -> Tensor:
    """The loss of `model(frames, noise=noise)` for normalized pixel targets without frame selection."""
    encoder, decoder, grid = model.encoder, model.decoder, model.encoder.grid
    tokens = _embedded(encoder, frames)
    measures = isinstance(model.strategy, TopK)
    importance = _importance(tokens.detach(), grid.num_positions) if measures else None
    chosen = model.strategy(grid, importance=importance, noise=noise)
    visible, target = (_mask(ids, grid.num_tokens) for ids in (chosen.visible, chosen.predicted))
    seen = _picked(tokens + _positions(encoder, grid), visible)
    encoded = model.encoder_to_decoder(encoder.norm(plain_blocks(encoder.blocks, seen)))
    places = _positions(decoder, grid).expand(frames.size(0), -1, -1)
    queries = model.mask_token + _picked(places, target)
    x = plain_blocks(decoder.blocks, torch.cat([encoded + _picked(places, visible), queries], dim=1))
    prediction = decoder.head(decoder.norm(x[:, -queries.size(1) :]))
    wanted = _picked(_targets(frames, encoder.patch_embed.tubelet), target)
    return F.mse_loss(prediction.float(), wanted)


def logits(model: VideoClassifier, frames: Tensor) -> Tensor:
    """(B, classes): `model(frames)`."""
    encoder, grid = model.encoder, model.encoder.grid
    tokens = _embedded(encoder, frames)
    measures = isinstance(model.strategy, TopK)
    importance = _importance(tokens.detach(), grid.num_positions) if measures else None
    noise = torch.zeros(frames.size(0), grid.num_tokens, device=frames.device)
    kept = _mask(model.strategy(grid, importance=importance, noise=noise).visible, grid.num_tokens)
    x = plain_blocks(encoder.blocks, _picked(tokens + _positions(encoder, grid), kept))
    return model.head(model.norm(x.mean(dim=1)))
