"""Image models of timm as encoders: `timm:NAME`. Their embedding is inflated when a run starts from them.

D width, p q rows and columns of a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import torch
from timm.layers.activations import GELUTanh
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.layers.patch_embed import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from everest.config.settings import ModelSettings
from everest.config.sizes import backbone_settings
from everest.errors import CheckpointError, RecipeError, did_you_mean, shown
from everest.methods.strategies import AllTokens
from everest.models.norms import Norms
from everest.models.positions import SPATIAL, TEMPORAL
from everest.models.spec import ModelSpec
from everest.system.hub import PREFIX as HUB
from everest.system.hub import fetch, warn_on_main
from everest.system.weights import Weights, require_finite
from everest.video.pixels import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

PREFIX: Final = "timm:"
WEIGHTS: Final = "model.safetensors"
# Parts of a block that have the same names here.
SAME: Final = ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def is_timm_name(name: str | Path) -> bool:
    """Whether `name` is the name of an image model of timm."""
    return str(name).startswith(PREFIX)


def open_image_weights(name: str, *, notify: Callable[[str], None] = warn_on_main) -> Weights:
    """Read the weights of `timm:NAME`, from the hub or its cache, as weights of an encoder of single frames.

    Raises:
        RecipeError: timm has no such model, or no weights for it.
        CheckpointError: the model has parts that an encoder of everest does not have.
        Unreachable: neither the hub nor the cache can provide the weights.
    """
    config = _config(name)
    require_plain(_create(name), source=name)  # before anything is downloaded
    file = fetch(f"{HUB}{config.hf_hub_id}", notify=notify) / (config.hf_hub_filename or WEIGHTS)
    if not file.is_file():
        raise CheckpointError(f"{name}: no {file.name} in hf:{config.hf_hub_id}; take another model")
    model = _create(name, file)
    require_finite(model.state_dict(), source=file)
    return image_weights(model, mean=config.mean, std=config.std, source=name)


def _config(name: str) -> PretrainedCfg:
    """timm's entry for a model with weights."""
    import timm

    model = name.removeprefix(PREFIX)
    if not timm.is_model(model):
        raise RecipeError(f"{name}: timm has no such model{did_you_mean(model, timm.list_models())}")
    architecture, _, tag = model.partition(".")
    listed = timm.list_pretrained(f"{architecture}.*")
    config = timm.get_pretrained_cfg(model) if model in listed or (listed and not tag) else None
    if config is None or not config.hf_hub_id:
        raise RecipeError(f"{name}: timm has no weights of this name on the hub{did_you_mean(model, listed)}")
    return config


def _create(name: str, file: Path | None = None) -> nn.Module:
    """Make a model: with the weights of a file, else on the meta device."""
    import timm

    name = name.removeprefix(PREFIX)
    if file is not None:
        # timm below 1.0.31 keeps custom_load of its own entry, and reads the file as .npz.
        overlay = {"file": str(file), "custom_load": False}
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0)
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0)


def require_plain(model: nn.Module, *, source: str) -> None:
    """Raise CheckpointError, which names what everest lacks, unless the model is a plain ViT."""
    parts = list(_foreign_parts(model))
    if parts:
        raise CheckpointError(f"{source}: has {', '.join(map(shown, parts))}; everest's encoder has not")


def _foreign_parts(model: nn.Module) -> Iterator[str]:
    """Yield the parts of an image model that an encoder of everest does not have."""
    if type(model) not in (VisionTransformer, VisionTransformerDistilled):
        yield f"the architecture {type(model).__name__}"
        return
    assert isinstance(model, VisionTransformer)
    if type(model.patch_embed) is not PatchEmbed or not isinstance(model.patch_embed.norm, nn.Identity):
        yield "another patch embedding than one convolution"
    if model.pos_embed is None:
        yield "no learned positions"
    if not isinstance(model.norm_pre, nn.Identity):
        yield "a norm before its blocks"
    block = model.blocks[0]
    if type(block) is not Block:
        yield f"blocks of the kind {type(block).__name__}"
        return
    yield from _foreign_parts_of_block(block)


def _foreign_parts_of_block(block: Block) -> Iterator[str]:
    if not all(isinstance(norm, nn.LayerNorm) for norm in (block.norm1, block.norm2)):
        yield f"norms of the kind {type(block.norm1).__name__}"
    attention, mlp = block.attn, block.mlp
    if type(attention) is not Attention:
        yield f"attention of the kind {type(attention).__name__}"
        return
    inner = (attention.q_norm, attention.k_norm, attention.norm)
    if not all(isinstance(norm, nn.Identity) for norm in inner):
        yield "norms inside its attention"
    if type(mlp) is not Mlp or not isinstance(mlp.norm, nn.Identity):
        yield f"an MLP of the kind {type(mlp).__name__}"
        return
    if not isinstance(mlp.act, nn.GELU | GELUTanh):
        yield f"the activation {mlp.act}"


def image_weights(
    model: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...], source: str
) -> Weights:
    """Convert an image model of timm to an encoder of single frames.

    LayerScale becomes part of the matrices before it. The normalization of the model's pixels becomes part of
    its embedding, which then expects ImageNet's. A key bias has no effect (see everest.checkpoints.families).

    Args:
        mean, std: of the pixels that the model was trained on.
    Raises:
        CheckpointError: it has parts that an encoder of everest does not have.
    """
    require_plain(model, source=source)
    assert isinstance(model, VisionTransformer)
    block, norm = model.blocks[0], model.norm if isinstance(model.norm, nn.LayerNorm) else model.fc_norm
    assert isinstance(block, Block)
    heads, mlp = cast(Attention, block.attn).num_heads, cast(nn.Linear, block.mlp.fc1).out_features
    spec = ModelSpec(
        kind="encoder",
        frames=1,
        size=model.patch_embed.img_size,
        model=ModelSettings(
            **backbone_settings(width=model.embed_dim, mlp=mlp, depth=len(model.blocks), heads=heads),
            tubelet=(1, *model.patch_embed.patch_size),
            positions="learned-separable",
            class_token=model.cls_token is not None,
            registers=model.num_prefix_tokens - (model.cls_token is not None),
            gelu="tanh" if isinstance(block.mlp.act, GELUTanh) else "exact",
        ),
        selection=AllTokens(),
        norms=Norms(after_encoder=isinstance(norm, nn.LayerNorm), eps=cast(nn.LayerNorm, block.norm1).eps),
    )
    tensors = {
        **_embedding(model, torch.tensor(mean), torch.tensor(std)),
        **_positions(model),
        **{name: tensor for i in range(len(model.blocks)) for name, tensor in _block(model, i)},
    }
    if isinstance(norm, nn.LayerNorm):
        tensors |= {"norm.weight": norm.weight, "norm.bias": norm.bias}
    return Weights(
        kind="encoder",
        settings=spec.dump(),
        classes=None,
        recipe=source,
        step=0,
        tensors={f"encoder.{name}": tensor.detach().clone() for name, tensor in tensors.items()},
        origin={"family": "timm", "file": source},
    )


def _embedding(model: VisionTransformer, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """The embedding for pixels that are normalized as ImageNet's: a tubelet of one frame."""
    weight, bias = model.patch_embed.proj.weight, model.patch_embed.proj.bias  # (D, 3, p, q), (D,)
    shift = (torch.tensor(IMAGENET_MEAN) - mean) / std  # (3,)
    scale = torch.tensor(IMAGENET_STD) / std
    moved = (weight * shift[:, None, None]).sum(dim=(1, 2, 3))
    return {
        "patch_embed.proj.weight": (weight * scale[:, None, None]).unsqueeze(2),  # (D, 3, 1, p, q)
        "patch_embed.proj.bias": moved if bias is None else bias + moved,
    }


def _positions(model: VisionTransformer) -> dict[str, Tensor]:
    """The positions of places, and the learned tokens; there is one slice, whose position is zero.

    Registers, and DeiT's distillation token, get their position added: here they have none.
    """
    positions, token = model.pos_embed, model.cls_token  # (1, [P +] h*w, D), (1, 1, D)
    assert isinstance(positions, Tensor)
    prefix = model.num_prefix_tokens  # P
    places = positions if model.no_embed_class else positions[:, prefix:]
    own = torch.zeros_like(positions[:, :prefix]) if model.no_embed_class else positions[:, :prefix]
    tensors = {SPATIAL: places, TEMPORAL: torch.zeros_like(places[:, :1])}
    if token is not None:
        tensors |= {"class_token": token, "position.class_token": own[:, :1]}
        own = own[:, 1:]
    registers = model.dist_token if isinstance(model, VisionTransformerDistilled) else model.reg_token
    if registers is not None:
        tensors["registers"] = registers + own
    return tensors


def _block(model: VisionTransformer, number: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a block."""
    block, prefix = model.blocks[number], f"blocks.{number}."
    tensors = block.state_dict()
    width = model.embed_dim
    bias = tensors.get("attn.qkv.bias", torch.zeros(3 * width))  # of query, key and value
    yield f"{prefix}attn.qkv.weight", tensors["attn.qkv.weight"]
    yield f"{prefix}attn.q_bias", bias[:width]
    yield f"{prefix}attn.v_bias", bias[2 * width :]
    scales = {"attn.proj": tensors.get("ls1.gamma"), "mlp.fc2": tensors.get("ls2.gamma")}  # (D,)
    for module in SAME:
        weight, bias, scale = tensors[f"{module}.weight"], tensors[f"{module}.bias"], scales.get(module)
        yield f"{prefix}{module}.weight", weight if scale is None else weight * scale[:, None]
        yield f"{prefix}{module}.bias", bias if scale is None else bias * scale
