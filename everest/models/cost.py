"""The cost of a model, computed from its stacks of blocks: multiply-accumulates and tokens.

Multiply-accumulates (MACs) follow the convention of fvcore, which the EVEREST and VideoMAE papers print as
"GFLOPs": the weights of Conv3d and Linear, the two products of attention, and LayerNorm at 5 per element; no
biases, rotations, softmax, GELU, gates, additions, loss, or selection of tokens. As in the released programs,
the tubelet embedding counts for all tokens, including those that are left out, and every block counts for all
its tokens; what this program saves beyond that is not subtracted.

n tokens, D width, F width of the MLP.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from everest.config.settings import ModelSettings
from everest.config.sizes import MLP_RATIO
from everest.config.values import MlpKind
from everest.errors import RecipeError
from everest.models.embedding import embedding_kernels
from everest.models.spec import ModelSpec

NORM_OPERATIONS = 5  # fvcore: per element of a LayerNorm


class Stack(NamedTuple):
    """Blocks in sequence, and the tokens of one clip that they compute."""

    depth: int
    tokens: int
    width: int
    heads: int
    mlp_width: int
    mlp: MlpKind = "plain"

    @property
    def mlp_channels(self) -> int:
        """The outputs of an MLP's first layer."""
        return self.mlp_width * (1 if self.mlp == "plain" else 2)


def stacks_of(spec: ModelSpec) -> list[Stack]:
    """The blocks of the encoder, then of any decoder, with the tokens of one clip and its prefix."""
    size, noise = spec.model.backbone_size, torch.zeros(1, spec.grid.num_tokens, device="meta")
    selection = spec.selection(spec.grid, importance=noise, noise=noise)
    visible, target = selection.visible.size(1), selection.target.size(1)
    tokens, mlp = visible + spec.model.num_prefix, spec.model.mlp
    encoder = Stack(size.depth, tokens, size.width, size.heads, size.mlp, mlp)
    if not spec.is_autoencoder:
        return [encoder]
    width, heads = size.decoder_width, size.decoder_heads
    return [encoder, Stack(spec.model.decoder_depth, visible + target, width, heads, MLP_RATIO * width)]


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


def embedding_macs(model: ModelSettings, tokens: int, channels: int = 3) -> Macs:
    """Every convolution of the tubelet embedding, for `tokens` tubelets of `channels` channels."""
    width, total = model.backbone_size.width, 0
    kernels = embedding_kernels(model.tubelet, model.embedding_layers)
    for kernel, positions in zip(kernels, embedded_positions(model), strict=True):
        total += positions * prod(kernel) * channels * width
        channels = width
    return Macs(embedding=tokens * total)


def embedded_positions(model: ModelSettings) -> list[int]:
    """The positions of one tubelet in the output of each convolution of its embedding; of the last: 1."""
    kernels = embedding_kernels(model.tubelet, model.embedding_layers)
    return [prod(model.tubelet) // covered for covered in accumulate(map(prod, kernels), mul)]


def stack_macs(stack: Stack) -> Macs:
    """Linear layers 4 n D^2 and 2 n D F, attention 2 n^2 D and two LayerNorms 10 n D, for every block.

    SwiGLU has linear layers of 3 n D F instead, and may have a norm of 5 n F.
    """
    depth, tokens, width = stack.depth, stack.tokens, stack.width
    normed = 2 * width + stack.mlp_width * (stack.mlp == "normed-swiglu")
    return Macs(
        linear=depth * tokens * width * (4 * width + stack.mlp_channels + stack.mlp_width),
        attention=depth * 2 * tokens**2 * width,
        layer_norm=depth * NORM_OPERATIONS * tokens * normed,
    )


def count_macs(spec: ModelSpec) -> Macs:
    """Count the multiply-accumulates of one clip's forward pass; of a classifier, as in training."""
    stacks = stacks_of(spec)
    offered = spec.offered_frames // spec.model.tubelet[0] * spec.grid.per_slice
    embedding = embedding_macs(spec.model, offered, spec.channels)
    before = NORM_OPERATIONS * stacks[0].tokens * stacks[0].width * spec.model.norm_before
    macs = sum((stack_macs(stack) for stack in stacks), start=embedding) + Macs(layer_norm=before)
    tokens, width = stacks[0].tokens - spec.model.num_prefix, stacks[0].width  # the outputs of the encoder
    if spec.camera:  # one more clip for each, or for each video
        whole = embedding_macs(spec.model, spec.grid.num_tokens, spec.channels) + stack_macs(stacks[0])
        share = 1 if spec.views is None else spec.views.number
        macs += Macs(**{kind: count // share for kind, count in asdict(whole).items()})
    if spec.views is not None:
        projector = spec.views.hidden * (width + spec.views.width)
        return macs + Macs(
            linear=projector, layer_norm=NORM_OPERATIONS * spec.norms.after_encoder * tokens * width
        )
    if spec.kind == "pretrain":
        decoder_tokens, decoder_width = stacks[1].tokens, stacks[1].width
        predicted = decoder_tokens - tokens
        return macs + Macs(
            linear=decoder_width * (tokens * width + predicted * spec.target_width),
            layer_norm=NORM_OPERATIONS
            * (spec.norms.after_encoder * tokens * width + predicted * decoder_width),
        )
    if spec.kind == "encoder":
        return macs + Macs(layer_norm=NORM_OPERATIONS * spec.norms.after_encoder * tokens * width)
    assert spec.num_classes is not None
    normed = tokens if spec.model.pooling == "first" else 1
    macs += Macs(linear=width * spec.num_classes, layer_norm=NORM_OPERATIONS * normed * width)
    if spec.model.pooling == "class-attention":
        attended = (
            tokens + 1
        )  # keys and values; query, projection, MLP and its norm are of the class token only
        macs += Macs(
            linear=2 * attended * width**2 + 10 * width**2,
            attention=2 * attended * width,
            layer_norm=NORM_OPERATIONS * (attended + 1) * width,
        )
    return macs


def training_macs(spec: ModelSpec, *, frozen_layers: int = 0) -> int:
    """Count the multiply-accumulates of one clip's forward pass and of its backward pass, twice as many.

    Frozen first layers have no backward pass. With checkpointing, each block that has a backward pass repeats
    its forward pass. Of a model with adapters (everest.models.lora) the count would be too high.

    Args:
        frozen_layers: of the encoder (everest.models.partial).
    """
    macs, (encoder, *decoder) = count_macs(spec), stacks_of(spec)
    frozen_blocks = max(0, frozen_layers - 1)
    frozen = stack_macs(encoder._replace(depth=frozen_blocks)).total + bool(frozen_layers) * macs.embedding
    learning = [encoder._replace(depth=encoder.depth - frozen_blocks), *decoder]
    repeated = sum(stack_macs(stack).total for stack in learning) if spec.checkpointing else 0
    return macs.total + repeated + 2 * (macs.total - frozen)


def gmacs_of_clip(spec: ModelSpec) -> float:
    """Billions of multiply-accumulates in the forward pass of one clip, which the papers call GFLOPs."""
    return count_macs(spec).total / 1e9


@torch.no_grad()
def count_frozen_macs(spec: ModelSpec) -> int | None:
    """Count the multiply-accumulates of a frozen tokenizer's convolutions, or of a teacher, for one clip.

    None if a training step runs neither. They come on top of the model's own; none of them are trained.
    """
    teacher = spec.run_teacher
    if teacher is not None:
        return spec.grid.t // teacher.grid.t * count_macs(teacher).total
    if spec.tokenizer is None or not spec.runs_tokenizer:
        return None
    with torch.device("meta"):
        tokenizer = spec.tokenizer.settings.build().eval()
        clip = torch.empty(1, spec.channels, spec.frames, *spec.size)
    with FlopCounterMode(display=False) as counter:
        tokenizer.encode(clip)
    return counter.get_total_flops() // 2


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens of a clip: all, those kept by the selection, those encoded, those predicted."""

    total: int
    kept: int
    visible: int
    target: int


def count_tokens(spec: ModelSpec) -> Tokens:
    """Count the tokens of a spec's selection; the counts are the same for every clip.

    Raises:
        RecipeError: no token is left to encode or, in pre-training, to predict.
    """
    grid = spec.grid
    noise = torch.rand(1, grid.num_tokens, generator=torch.Generator().manual_seed(0))
    selection = spec.selection(grid, importance=noise, noise=noise)
    visible, target = selection.visible.size(1), selection.target.size(1)
    scored = int(selection.scored().sum())
    if spec.views is not None:  # without a decoder, nothing is predicted
        target = scored = 0
    if visible == 0 or (spec.is_autoencoder and scored == 0):
        purpose = "encode" if visible == 0 else "predict"
        raise RecipeError(f"{spec.selection.strategy}: of {grid.num_tokens} tokens none is left to {purpose}")
    return Tokens(total=grid.num_tokens, kept=visible + scored, visible=visible, target=target)


def share_cost(spec: ModelSpec, keep: float | None) -> dict[str, Any]:
    """Return the tokens that a keep ratio leaves, and the GMACs of one view (GFLOPs in the papers; Table 10).

    Args:
        keep: None: as trained.
    Raises:
        RecipeError: the ratio leaves no token.
    """
    spec = replace(spec, selection=spec.selection.at_evaluation(keep))
    tokens = count_tokens(spec)
    share = round(tokens.visible / tokens.total, 4) if keep is None else keep
    return {"keep": share, "tokens": tokens.visible, "gmacs": round(gmacs_of_clip(spec), 4)}
