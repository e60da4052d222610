"""Multiply-accumulates of a forward pass, counted from the module graph.

The convention is fvcore's, which the EVEREST and VideoMAE papers print as "GFLOPs": the weights of Conv3d and
Linear, the two products of attention, LayerNorm at 5 an element; no biases, softmax, GELU, additions, loss,
or choice of tokens. The tubelet embedding counts for all tokens, also those that are left out, and every
block for all its tokens, as the released programs compute them; what this program leaves out beyond that is
not taken off.

n tokens, D width, N tokens of a clip.

What a model and a clip take of memory: estimates, so that a run can be planned without starting it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.cait import ClassAttn
from torch import Tensor, nn

from everest.errors import RecipeError
from everest.models.block import Block, activation_bytes
from everest.models.classifier import VideoClassifier
from everest.models.embedding import TubeletEmbedding
from everest.models.mae import MaskedAutoencoder
from everest.models.spec import ModelSpec
from everest.models.vit import linear_layers

NORM_OPERATIONS = 5  # fvcore: of LayerNorm, an element


@dataclass(frozen=True, kw_only=True, slots=True)
class Macs:
    """Multiply-accumulates of one clip's forward pass, by kind."""

    embedding: int = 0
    linear: int = 0
    attention: int = 0
    layer_norm: int = 0

    @property
    def total(self) -> int:
        return self.embedding + self.linear + self.attention + self.layer_norm

    def __add__(self, other: Macs) -> Macs:
        return Macs(
            embedding=self.embedding + other.embedding,
            linear=self.linear + other.linear,
            attention=self.attention + other.attention,
            layer_norm=self.layer_norm + other.layer_norm,
        )


def _linear(layer: nn.Linear, tokens: int) -> Macs:
    return Macs(linear=tokens * layer.weight.numel())


def _layer_norm(norm: nn.LayerNorm, tokens: int) -> Macs:
    return Macs(layer_norm=NORM_OPERATIONS * tokens * math.prod(norm.normalized_shape))


def block_macs(block: Block, tokens: int) -> Macs:
    """All Linear layers, both norms, and the n x n products of a block: 12 n D^2 + 2 n^2 D + 10 n D."""
    inside = sum((_linear(layer, tokens) for layer in linear_layers(block)), start=Macs())
    norms = (module for module in block.modules() if isinstance(module, nn.LayerNorm))
    inside += sum((_layer_norm(norm, tokens) for norm in norms), start=Macs())
    return inside + Macs(attention=2 * tokens**2 * block.attn.proj.in_features)


def embedding_macs(embedding: TubeletEmbedding, tokens: int) -> Macs:
    """Every convolution of the embedding, for `tokens` tubelets."""
    positions, total = math.prod(embedding.tubelet), 0
    for conv in embedding.modules():
        if isinstance(conv, nn.Conv3d):
            positions //= math.prod(conv.kernel_size)
            total += positions * conv.weight.numel()
    return Macs(embedding=tokens * total)


def class_attention_macs(attn: ClassAttn, tokens: int) -> Macs:
    """Keys, values and the products for all tokens, query and projection for the class token: one of them."""
    inside = _linear(attn.k, tokens) + _linear(attn.v, tokens) + _linear(attn.q, 1) + _linear(attn.proj, 1)
    return inside + Macs(attention=2 * tokens * attn.proj.in_features)


# The rule of each kind of module; what is inside a counted module is not looked at again.
RULES: dict[type[nn.Module], Callable[[Any, int], Macs]] = {
    Block: block_macs,
    ClassAttn: class_attention_macs,
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
}


def _counted(module: nn.Module) -> Iterator[tuple[nn.Module, Callable[[Any, int], Macs]]]:
    """The topmost modules that have a rule."""
    for child in module.children():
        rule = next((rule for kind, rule in RULES.items() if isinstance(child, kind)), None)
        if rule is None:
            yield from _counted(child)
        else:
            yield child, rule


def on_meta(spec: ModelSpec) -> MaskedAutoencoder | VideoClassifier:
    """The module of a spec without weights, in evaluation mode."""
    with torch.device("meta"):
        return spec.build().eval()


def _last_rows(x: Tensor, *, last: int | None = None) -> Tensor:
    return x if last is None else x[:, -last:]


@contextmanager
def _blocks_as_shapes(model: nn.Module) -> Iterator[None]:
    """Let blocks hand on their input: its shape is all that is asked for, and they are slow on meta."""
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        block.forward = _last_rows  # of the instance, in front of the method of its class
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@torch.no_grad()
def count_macs(spec: ModelSpec, model: MaskedAutoencoder | VideoClassifier) -> Macs:
    """The multiply-accumulates of one clip through `model`, the module of `spec` on the meta device."""
    found: list[Macs] = []

    def watch(module: nn.Module, rule: Callable[[Any, int], Macs]) -> torch.utils.hooks.RemovableHandle:
        return module.register_forward_hook(
            lambda module, inputs, _: found.append(rule(module, math.prod(inputs[0].shape[:-1])))
        )

    handles = [watch(module, rule) for module, rule in _counted(model)]
    frames = torch.empty(1, 3, spec.offered_frames, *spec.size, device="meta")
    # A classifier draws in training only, and is told so by its noise.
    drawn = (
        {"noise": torch.empty(1, spec.grid.num_tokens, device="meta")} if spec.kind == "classifier" else {}
    )
    try:
        with _blocks_as_shapes(model):
            model(frames, **drawn)
    finally:
        for handle in handles:
            handle.remove()
    offered = spec.offered_frames // spec.model.tubelet[0] * spec.grid.per_slice
    return sum(found, start=embedding_macs(model.encoder.patch_embed, offered))


def gmacs_of_clip(spec: ModelSpec) -> float:
    """Billions of multiply-accumulates in the forward pass of one clip, which the papers call GFLOPs."""
    return count_macs(spec, on_meta(spec)).total / 1e9


@torch.no_grad()
def count_tokenizer_macs(spec: ModelSpec) -> int | None:
    """The multiply-accumulates of the convolutions by which a frozen tokenizer codes and scores one clip.

    None for models without one, and where clips bring its codes along. They come on top of the model's own:
    nothing of them is learned.
    """
    if spec.tokenizer is None or (spec.target is not None and spec.target.cache is not None):
        return None
    with torch.device("meta"):
        tokenizer = spec.tokenizer.settings.build().eval()
    found: list[int] = []

    def count(conv: nn.Conv3d, _: object, out: Tensor) -> None:
        found.append(conv.weight.numel() * (out.numel() // out.size(1)))

    for module in tokenizer.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(count)
    tokenizer.encode(torch.empty(1, 3, spec.frames, *spec.size, device="meta"))
    return sum(found)


WEIGHT_BYTES = 4  # weights, gradients and both moments of AdamW are float32 in every precision
SOFTMAX_COPIES = 2.5  # tensors of tokens x tokens x heads that an attention which is not fused keeps


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """How many tokens of a clip there are, survive selection, are encoded, and are predicted."""

    total: int
    kept: int
    visible: int
    target: int


def count_tokens(spec: ModelSpec) -> Tokens:
    """The counts of a spec's selection, which are the same for every clip.

    Raises:
        RecipeError: nothing is left to encode, or in pre-training to predict.
    """
    grid = spec.grid
    noise = torch.rand(1, grid.num_tokens, generator=torch.Generator().manual_seed(0))
    chosen = spec.selection(grid, importance=noise, noise=noise)
    visible, target = chosen.visible.size(1), chosen.target.size(1)
    scored = int(chosen.scored().sum())
    if visible == 0 or (spec.kind == "pretrain" and scored == 0):
        what = "encode" if visible == 0 else "predict"
        raise RecipeError(f"{spec.selection.strategy}: of {grid.num_tokens} tokens none is left to {what}")
    return Tokens(total=grid.num_tokens, kept=visible + scored, visible=visible, target=target)


def model_state(parameters: int, *, training: bool) -> dict[str, int]:
    """Bytes of weights, and in training of gradients and of AdamW's two moments."""
    weights = WEIGHT_BYTES * parameters
    return {
        "weights": weights,
        "gradients": weights if training else 0,
        "moments": 2 * weights if training else 0,
    }


def inference_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """What one clip takes at most when nothing is kept for a backward pass: one block's values (estimate)."""
    tokens, size = count_tokens(spec), spec.model.backbone_size
    return activation_bytes(
        [(1, tokens.visible, size.width)],
        clip_values=3 * spec.frames * spec.size[0] * spec.size[1],
        bytes_per_value=bytes_per_value,
        checkpointing=False,
    )


def softmax_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """What an attention that is not fused keeps beside: tokens x tokens for every head and block."""
    tokens, size = count_tokens(spec), spec.model.backbone_size
    squares = size.depth * size.heads * tokens.visible**2
    if spec.kind == "pretrain":
        squares += spec.model.decoder_depth * size.decoder_heads * (tokens.visible + tokens.target) ** 2
    return int(SOFTMAX_COPIES * bytes_per_value * squares)
