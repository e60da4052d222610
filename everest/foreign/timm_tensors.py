"""The weights of timm's image models as weights of an encoder of single frames.

D width, E channels of a head, F width of the MLP, P prefix tokens, p q rows and columns of a patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, cast

import torch
from timm.layers.mlp import Mlp
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from everest.config.settings import ModelSettings
from everest.config.sizes import backbone_settings
from everest.foreign.timm_parts import (
    GELUS,
    ImageModel,
    first_attention,
    first_block,
    mlp_kind,
    require_plain,
    rotary_of,
)
from everest.methods.strategies import AllTokens
from everest.models.positions import SPATIAL, TEMPORAL
from everest.models.spec import ModelSpec
from everest.models.vit import Norms
from everest.system.weights import Weights
from everest.video.pixels import IMAGENET_MEAN, IMAGENET_STD

# Parts of a block that have the same names here. Not all models have a norm in their MLP.
SAME: Final = ("norm1", "attn.proj", "norm2", "mlp.norm", "mlp.fc2")
SCALES: Final = {"attn.proj": ("ls1.gamma", "gamma_1"), "mlp.fc2": ("ls2.gamma", "gamma_2")}  # LayerScale


def image_weights(
    model: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...], source: str
) -> Weights:
    """Convert an image model of timm to an encoder of single frames.

    LayerScale becomes part of the matrices before it. The normalization of the model's pixels becomes part of
    its embedding, which then expects ImageNet's. A key bias has an effect only where keys are turned.

    Args:
        mean, std: of the pixels that the model was trained on.
    Raises:
        CheckpointError: it has parts that an encoder of everest does not have.
    """
    image_model = require_plain(model, source=source)
    norm = image_model.norm if isinstance(image_model.norm, nn.LayerNorm) else image_model.fc_norm
    embed = image_model.patch_embed
    rows, columns = (n * side for n, side in zip(embed.grid_size, embed.patch_size, strict=True))
    eps = cast(nn.LayerNorm, first_block(image_model).norm1).eps
    spec = ModelSpec(
        kind="encoder",
        frames=1,
        size=(rows, columns),  # timm leaves out pixels that fill no patch
        model=_settings(image_model),
        selection=AllTokens(),
        norms=Norms(after_encoder=isinstance(norm, nn.LayerNorm), eps=eps),
    )
    tensors = {
        **_embedding(image_model, torch.tensor(mean), torch.tensor(std)),
        **_positions(image_model),
        **{name: tensor for i in range(len(image_model.blocks)) for name, tensor in _block(image_model, i)},
    }
    for name, module in (("norm_before", image_model.norm_pre), ("norm", norm)):
        if isinstance(module, nn.LayerNorm):
            tensors |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return Weights(
        kind="encoder",
        settings=spec.dump(),
        classes=None,
        recipe=source,
        step=0,
        tensors={f"encoder.{name}": tensor.detach().clone() for name, tensor in tensors.items()},
        origin={"family": "timm", "file": source},
    )


def _settings(model: ImageModel) -> ModelSettings:
    mlp, heads = cast(nn.Module, first_block(model).mlp), first_attention(model).num_heads
    kind, rotary = mlp_kind(mlp), rotary_of(model)
    assert kind is not None
    assert rotary is not None
    mlp_width, depth = cast(nn.Linear, mlp.fc2).in_features, len(model.blocks)
    rows, columns = model.patch_embed.patch_size
    return ModelSettings(
        **backbone_settings(width=model.embed_dim, mlp=mlp_width, depth=depth, heads=heads),
        tubelet=(1, int(rows), int(columns)),
        positions="learned-separable",
        class_token=model.cls_token is not None,
        registers=model.num_prefix_tokens - (model.cls_token is not None),
        rotary=rotary,
        norm_before=isinstance(model.norm_pre, nn.LayerNorm),
        mlp=kind,
        gelu=GELUS[type(mlp.act)] if isinstance(mlp, Mlp) else "exact",
    )


def _embedding(model: ImageModel, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """The embedding for pixels that are normalized as ImageNet's: a tubelet of one frame."""
    weight, bias = model.patch_embed.proj.weight, model.patch_embed.proj.bias  # (D, 3, p, q), (D,)
    shift = (torch.tensor(IMAGENET_MEAN) - mean) / std  # (3,)
    scale = torch.tensor(IMAGENET_STD) / std
    moved = (weight * shift[:, None, None]).sum(dim=(1, 2, 3))
    return {
        "patch_embed.proj.weight": (weight * scale[:, None, None]).unsqueeze(2),  # (D, 3, 1, p, q)
        "patch_embed.proj.bias": moved if bias is None else bias + moved,
    }


def _positions(model: ImageModel) -> dict[str, Tensor]:
    """The positions of places, and the learned tokens; there is one slice, whose position is zero.

    Registers, and DeiT's distillation token, get their position added: here they have none. Of a model
    whose positions are rotary only, all positions are zero.
    """
    token, prefix = model.cls_token, model.num_prefix_tokens  # (1, 1, D), P
    weight, positions = model.patch_embed.proj.weight, model.pos_embed  # (1, [P +] h*w, D)
    own = weight.new_zeros(1, prefix, model.embed_dim)
    places = weight.new_zeros(1, model.patch_embed.num_patches, model.embed_dim)
    if isinstance(positions, Tensor) and model.no_embed_class:
        places = positions
    elif isinstance(positions, Tensor):
        own, places = positions[:, :prefix], positions[:, prefix:]
    tensors = {SPATIAL: places, TEMPORAL: torch.zeros_like(places[:, :1])}
    if token is not None:
        tensors |= {"class_token": token, "position.class_token": own[:, :1]}
        own = own[:, 1:]
    registers = model.dist_token if isinstance(model, VisionTransformerDistilled) else model.reg_token
    if registers is not None:
        tensors["registers"] = registers + own
    return tensors


def _block(model: ImageModel, number: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a block."""
    prefix, tensors = f"blocks.{number}.", model.blocks[number].state_dict()
    yield from ((f"{prefix}{name}", tensor) for name, tensor in _attention(model, tensors))
    first = ("mlp.fc1",) if "mlp.fc1.weight" in tensors else ("mlp.fc1_g", "mlp.fc1_x")  # of gate and value
    yield f"{prefix}mlp.fc1.weight", torch.cat([tensors[f"{name}.weight"] for name in first])
    yield f"{prefix}mlp.fc1.bias", torch.cat([_bias(tensors, name) for name in first])
    for module in SAME:
        if f"{module}.weight" not in tensors:
            continue
        weight, bias = tensors[f"{module}.weight"], _bias(tensors, module)
        scale = next((tensors[name] for name in SCALES.get(module, ()) if name in tensors), None)  # (D,)
        yield f"{prefix}{module}.weight", weight if scale is None else weight * scale[:, None]
        yield f"{prefix}{module}.bias", bias if scale is None else bias * scale


def _bias(tensors: Mapping[str, Tensor], module: str) -> Tensor:
    """The bias of a layer; zeros if it has none."""
    weight = tensors[f"{module}.weight"]
    return tensors.get(f"{module}.bias", weight.new_zeros(weight.size(0)))


def _attention(model: ImageModel, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the matrix of queries, keys and values, and their biases."""
    weights, biases = {}, {}  # (D, D), (D,) of each
    for number, letter in enumerate("qkv"):
        if "attn.qkv.weight" in tensors:
            weights[letter] = tensors["attn.qkv.weight"].chunk(3)[number]
            shared = _bias(tensors, "attn.qkv").chunk(3)[number]
            biases[letter] = tensors.get(f"attn.{letter}_bias", shared)
        else:
            weights[letter] = tensors[f"attn.{letter}_proj.weight"]
            biases[letter] = _bias(tensors, f"attn.{letter}_proj")
    if rotary_of(model) != "none":
        for parts in (weights, biases):
            parts |= {letter: _turned_order(model, parts[letter]) for letter in "qk"}
        yield "attn.k_bias", biases["k"]
    yield "attn.qkv.weight", torch.cat([*weights.values()])
    yield "attn.q_bias", biases["q"]
    yield "attn.v_bias", biases["v"]


def _turned_order(model: ImageModel, rows: Tensor) -> Tensor:
    """Rows (D, ...) of queries or keys, with the channels of each head as `RotaryPositions` turns them.

    DINOv3 turns channel i and i + E / 2 as a point, here 2i and 2i + 1. PE has the columns before the rows.
    The scores of queries and keys do not change.
    """
    attention, rope = first_attention(model), cast(RotaryEmbeddingCat, getattr(model, "rope", None))
    of_heads = rows.unflatten(0, (attention.num_heads, -1))  # (heads, E, ...)
    if getattr(attention, "rotate_half", False):
        of_heads = of_heads.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    if rope.grid_indexing == "xy":
        of_heads = of_heads.roll(of_heads.size(1) // 2, dims=1)
    return of_heads.flatten(0, 1)
