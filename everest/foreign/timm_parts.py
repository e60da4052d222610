"""The parts of timm's image models: which of them an encoder of everest has.

It is a ViT with the parts of CLIP, SigLIP, DINOv2, DINOv3, EVA-02 and PE; docs/starting.md has a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from timm.layers.activations import GELUTanh, QuickGELU
from timm.layers.attention import Attention, AttentionRope
from timm.layers.mlp import GluMlp, Mlp, SwiGLU
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat, RotaryEmbeddingDinoV3
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from everest.config.values import Gelu, MlpKind, Rotary
from everest.errors import CheckpointError, shown
from everest.models.positions import BASE, LOWER_BASE

ImageModel = VisionTransformer | Eva
AnyAttention = Attention | AttentionRope | EvaAttention
ARCHITECTURES: Final = (VisionTransformer, VisionTransformerDistilled, Eva)
GELUS: Final[dict[type[nn.Module], Gelu]] = {nn.GELU: "exact", GELUTanh: "tanh", QuickGELU: "quick"}


def require_plain(model: nn.Module, *, source: str) -> ImageModel:
    """The model as one that an encoder of everest can be.

    Raises:
        CheckpointError: it has other parts; they are named.
    """
    parts = list(foreign_parts(model))
    if parts:
        raise CheckpointError(f"{source}: has {', '.join(map(shown, parts))}; everest's encoder has not")
    assert isinstance(model, ImageModel)
    return model


def foreign_parts(model: nn.Module) -> Iterator[str]:
    """Yield the parts of an image model that an encoder of everest does not have."""
    if type(model) not in ARCHITECTURES:
        yield f"the architecture {type(model).__name__}"
        return
    assert isinstance(model, ImageModel)
    if type(model.patch_embed) is not PatchEmbed or not isinstance(model.patch_embed.norm, nn.Identity):
        yield "another patch embedding than one convolution"
    rope = getattr(model, "rope", None)
    if rope is not None and rotary_of(model) is None:
        yield f"positions of the kind {type(rope).__name__}"
    parts = (part for block in model.blocks for part in _foreign_parts_of_block(block))
    yield from dict.fromkeys(parts)
    norms = [model.norm_pre, model.norm, *model.blocks.modules()]
    if len({norm.eps for norm in norms if isinstance(norm, nn.LayerNorm)}) > 1:
        yield "norms that differ in eps"


def first_block(model: ImageModel) -> Block | EvaBlock:
    """The first block: all are of one kind."""
    block = model.blocks[0]
    assert isinstance(block, Block | EvaBlock)
    return block


def first_attention(model: ImageModel) -> AnyAttention:
    """The attention of the first block."""
    attention = first_block(model).attn
    assert isinstance(attention, AnyAttention)
    return attention


def _foreign_parts_of_block(block: nn.Module) -> Iterator[str]:
    if not isinstance(block, Block | EvaBlock) or type(block) not in (Block, EvaBlock):
        yield f"blocks of the kind {type(block).__name__}"
        return
    if not all(isinstance(norm, nn.LayerNorm) for norm in (block.norm1, block.norm2)):
        yield f"norms of the kind {type(block.norm1).__name__}"
    yield from _foreign_parts_of_attention(block.attn)
    mlp = block.mlp
    if mlp_kind(mlp) is None and type(mlp) is not Mlp:
        yield f"an MLP of the kind {type(mlp).__name__}"
    elif mlp_kind(mlp) is None:
        yield f"the activation {mlp.act}" if type(mlp.act) not in GELUS else "a norm inside its MLP"


def _foreign_parts_of_attention(attention: nn.Module) -> Iterator[str]:
    if type(attention) not in (Attention, AttentionRope, EvaAttention):
        yield f"attention of the kind {type(attention).__name__}"
        return
    assert isinstance(attention, AnyAttention)
    inner = (attention.q_norm, attention.k_norm, attention.norm)
    if not all(isinstance(norm, nn.Identity) for norm in inner):
        yield "norms inside its attention"
    if getattr(attention, "gate", None) is not None:
        yield "gated attention"
    if getattr(attention, "num_kv_heads", attention.num_heads) != attention.num_heads:
        yield "keys and values that several heads share"
    if attention.proj.in_features != attention.proj.out_features:
        yield "heads that are together wider or narrower than its tokens"


def mlp_kind(mlp: nn.Module) -> MlpKind | None:
    """The kind of an MLP of timm; None if everest has it not."""
    if type(mlp) is Mlp:
        return "plain" if type(mlp.act) in GELUS and isinstance(mlp.norm, nn.Identity) else None
    gated = type(mlp) is SwiGLU or (isinstance(mlp, GluMlp) and type(mlp) is GluMlp and not mlp.gate_last)
    if not gated or not isinstance(mlp.act, nn.SiLU):
        return None
    if isinstance(mlp.norm, nn.Identity):
        return "swiglu"
    return "normed-swiglu" if isinstance(mlp.norm, nn.LayerNorm) else None


def rotary_of(model: ImageModel) -> Rotary | None:
    """The setting `model.rotary` of an image model; None if everest has not its rotary positions."""
    rope = getattr(model, "rope", None)
    if rope is None:
        return "none"
    if isinstance(rope, RotaryEmbeddingDinoV3):
        periods = (rope.temperature, rope.min_period, rope.max_period)
        usual = periods == (LOWER_BASE, None, None) and rope.normalize_coords == "separate"
        return "dinov3" if usual and not rope.grid_offset else None
    if not isinstance(rope, RotaryEmbeddingCat) or rope.in_pixels:
        return None
    extent, first = set(rope.ref_feat_shape or ()), rope.grid_offset  # of a square
    if rope.temperature == LOWER_BASE and not extent and not first:
        return "rope-vit"
    if rope.temperature != BASE or len(extent) != 1 or first not in (0, 1):
        return None
    return f"{'pe' if first else 'eva02'}:{extent.pop()}"
