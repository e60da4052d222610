"""Converts image models of timm, `timm:NAME`, to encoders of single frames.

The encoder is a ViT with the parts of CLIP, SigLIP, DINOv2, DINOv3, EVA-02 and PE (docs/starting.md). A run
that starts from it inflates the embedding over time.

D width, E channels of a head, F width of the MLP, P prefix tokens, p q rows and columns of a patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Final, cast

import timm
import torch
from huggingface_hub import constants
from timm.layers.activations import GELUTanh, QuickGELU
from timm.layers.attention import Attention, AttentionRope
from timm.layers.mlp import GluMlp, Mlp, SwiGLU
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat, RotaryEmbeddingDinoV3
from timm.models import PretrainedCfg
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from everest.config.model_settings import backbone_settings
from everest.config.settings import ModelSettings
from everest.config.values import Gelu, MlpKind, Rotary
from everest.converters.foreign_checkpoint import read_foreign
from everest.errors import CheckpointError, RecipeError, did_you_mean, join_first, shorten
from everest.methods.strategies import AllTokens
from everest.models.classifier import EncoderSpec
from everest.models.positions import LOWER_ROTARY_BASE, ROTARY_BASE, SPATIAL, TEMPORAL
from everest.models.vit import Norms
from everest.system.hub import HUB_PREFIX as HUB
from everest.system.hub import HubUnreachable, fetch, read_license, split_timm
from everest.system.processes import warn_on_main_once
from everest.system.run_folder import WEIGHTS_FILE
from everest.system.weights import Weights, load_tensors, require_finite
from everest.system.weights_header import ClipSettings
from everest.video.pixels import IMAGENET_MEAN, IMAGENET_STD

ImageModel = VisionTransformer | Eva
ARCHITECTURES: Final = (VisionTransformer, VisionTransformerDistilled, Eva)
GELU_KINDS: Final[dict[type[nn.Module], Gelu]] = {nn.GELU: "exact", GELUTanh: "tanh", QuickGELU: "quick"}
# Modules of a block that have the same names in everest. Not all models have a norm in their MLP.
SAME_NAMES: Final = ("norm1", "attn.proj", "norm2", "mlp.norm", "mlp.fc2")
# Prefixes of a classifier's or of pre-training's tensors, which an encoder does not have.
HEAD_PREFIXES: Final = ("head.", "head_dist.", "mask_token")
FRAMES_OF_IMAGES: Final[ClipSettings] = {"stride": 1, "sampling": "spread"}  # over the video; our choice
# Names of LayerScale, which multiplies the outputs of a module.
SCALE_NAMES: Final = {"attn.proj": ("ls1.gamma", "gamma_1"), "mlp.fc2": ("ls2.gamma", "gamma_2")}


def open_image_weights(name: str) -> Weights:
    """Read the weights of `timm:NAME`, from the hub or its cache, as an encoder of single frames.

    The weights of `timm:NAME=FILE` are read from a file with timm's names.
    """
    model_name, file = split_timm(name)
    config = _find_config(model_name, source=name, needs_weights=file is None)
    with torch.device("meta"):
        require_supported(timm.create_model(model_name, num_classes=0), source=name)  # before a download
    licence = config.license
    if file is None:
        file = _fetch_weights(config, source=name)
        licence = read_license(file.parent) or licence
        warn_on_main_once(f"{name}: license {licence or 'not stated'}, revision {file.parent.name[:12]}")
        # timm below 1.0.31 keeps the custom_load of the model's entry, and reads the file as .npz.
        overlay = {"file": str(file), "custom_load": False}
        model = timm.create_model(model_name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0)
    else:
        model = timm.create_model(model_name, num_classes=0)
        try:
            expected = model.state_dict()
            tensors = {
                key: tensor
                for key, tensor in read_foreign(file).tensors.items()
                if key in expected or not key.startswith(HEAD_PREFIXES)
            }
            load_tensors(model, tensors, source=name)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; name the model whose weights the file has") from error
    require_finite(model.state_dict(), source=file)
    return convert_image_model(model, mean=config.mean, std=config.std, source=name, licence=licence)


def _find_config(model_name: str, *, source: str, needs_weights: bool) -> PretrainedCfg:
    """Return timm's metadata of weights; RecipeError if none exist, or none on the hub if needed."""
    if not timm.is_model(model_name):
        names = [name for name in timm.list_pretrained() if model_name and name.startswith(model_name)]
        similar = f"; it has {join_first(names)}" if names else did_you_mean(model_name, timm.list_models())
        raise RecipeError(f"{source}: timm has no such model{similar}")
    architecture, _, tag = model_name.partition(".")
    listed = timm.list_pretrained(f"{architecture}.*")
    is_listed = model_name in listed or (listed and not tag)
    config = timm.get_pretrained_cfg(model_name) if is_listed else None
    if config is None or (needs_weights and not config.hf_hub_id):
        similar = did_you_mean(model_name, listed)
        raise RecipeError(f"{source}: timm has no weights of this name on the hub{similar}")
    return config


def _fetch_weights(config: PretrainedCfg, *, source: str) -> Path:
    """Return the file of a model's weights, from the hub or its cache."""
    try:
        folder = fetch(f"{HUB}{config.hf_hub_id}", notify=lambda text: None)  # the caller states the license
    except HubUnreachable as error:
        cached = Path(constants.HF_HUB_CACHE, f"models--{config.hf_hub_id}".replace("/", "--"))
        raise HubUnreachable(
            f"{source}: not in the cache and the hub does not answer; copy {cached.name} to "
            f"{cached.parent} (HF_HUB_CACHE), or use {source}=FILE"
        ) from error
    file = folder / (config.hf_hub_filename or WEIGHTS_FILE)
    if not file.is_file():
        raise CheckpointError(f"{source}: no {file.name} in hf:{config.hf_hub_id}; take another model")
    return file


def require_supported(model: nn.Module, *, source: str) -> ImageModel:
    """Return the model if everest's encoder supports all of its parts."""
    parts = dict.fromkeys(map(shorten, find_unsupported_parts(model)))
    if parts:
        raise CheckpointError(f"{source}: has {', '.join(parts)}, which everest's encoder does not support")
    assert isinstance(model, ImageModel)
    return model


def find_unsupported_parts(model: nn.Module) -> Iterator[str]:
    """Yield the parts of an image model that everest's encoder lacks; parts of blocks may be repeated."""
    if type(model) not in ARCHITECTURES:
        yield f"the architecture {type(model).__name__}"
        return
    assert isinstance(model, ImageModel)
    if type(model.patch_embed) is not PatchEmbed or not isinstance(model.patch_embed.norm, nn.Identity):
        yield "another patch embedding than one convolution"
    if find_rotary(model) is None:
        yield f"positions of the kind {type(model.rope).__name__}"
    for block in model.blocks:
        if not isinstance(block, Block | EvaBlock) or type(block) not in (Block, EvaBlock):
            yield f"blocks of the kind {type(block).__name__}"
            continue
        if not all(isinstance(norm, nn.LayerNorm) for norm in (block.norm1, block.norm2)):
            yield f"norms of the kind {type(block.norm1).__name__}"
        attention, mlp = block.attn, block.mlp
        if type(attention) not in (Attention, AttentionRope, EvaAttention):
            yield f"attention of the kind {type(attention).__name__}"
        else:
            assert isinstance(attention, Attention | AttentionRope | EvaAttention)
            heads, inner = attention.num_heads, (attention.q_norm, attention.k_norm, attention.norm)
            if not all(isinstance(norm, nn.Identity) for norm in inner):
                yield "norms inside its attention"
            if getattr(attention, "gate", None) is not None:
                yield "gated attention"
            if getattr(attention, "num_kv_heads", heads) != heads:
                yield "keys and values that several heads share"
            if attention.proj.in_features != attention.proj.out_features:
                yield "heads that are together wider or narrower than its tokens"
        if find_mlp_kind(mlp) is None and type(mlp) is not Mlp:
            yield f"an MLP of the kind {type(mlp).__name__}"
        elif find_mlp_kind(mlp) is None:
            yield f"the activation {mlp.act}" if type(mlp.act) not in GELU_KINDS else "a norm inside its MLP"
    norms = [model.norm_pre, model.norm, *model.blocks.modules()]
    if len({norm.eps for norm in norms if isinstance(norm, nn.LayerNorm)}) > 1:
        yield "norms that differ in eps"


def find_mlp_kind(mlp: nn.Module) -> MlpKind | None:
    """Return the kind of an MLP of timm; None if everest has no such MLP."""
    if type(mlp) is Mlp:
        return "plain" if type(mlp.act) in GELU_KINDS and isinstance(mlp.norm, nn.Identity) else None
    gated = type(mlp) is SwiGLU or (isinstance(mlp, GluMlp) and type(mlp) is GluMlp and not mlp.gate_last)
    if not gated or not isinstance(mlp.act, nn.SiLU):
        return None
    if isinstance(mlp.norm, nn.Identity):
        return "swiglu"
    return "normed-swiglu" if isinstance(mlp.norm, nn.LayerNorm) else None


def find_rotary(model: ImageModel) -> Rotary | None:
    """Return the setting `model.rotary` of an image model; None if everest has no such positions."""
    rope = getattr(model, "rope", None)
    if rope is None:
        return "none"
    if isinstance(rope, RotaryEmbeddingDinoV3):
        periods = (rope.temperature, rope.min_period, rope.max_period)
        is_default = periods == (LOWER_ROTARY_BASE, None, None) and rope.normalize_coords == "separate"
        return "dinov3" if is_default and not rope.grid_offset else None
    if not isinstance(rope, RotaryEmbeddingCat) or rope.in_pixels:
        return None
    extent, first = set(rope.ref_feat_shape or ()), rope.grid_offset  # for a square
    if rope.temperature == LOWER_ROTARY_BASE and not extent and not first:
        return "rope-vit"
    if rope.temperature != ROTARY_BASE or len(extent) != 1 or first not in (0, 1):
        return None
    return f"{'pe' if first else 'eva02'}:{extent.pop()}"


def convert_image_model(
    model: nn.Module,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    source: str,
    licence: str | None = None,
) -> Weights:
    """Convert an image model of timm to an encoder of single frames.

    LayerScale is merged into the matrices before it. The normalization of the model's pixels is merged into
    the embedding, which then expects ImageNet's normalization. A key bias matters only if keys are rotated.

    Args:
        mean, std: statistics of the pixels that the model was trained on.
    """
    plain = require_supported(model, source=source)
    norm = plain.norm if isinstance(plain.norm, nn.LayerNorm) else plain.fc_norm
    embed, block = plain.patch_embed, cast(Block, plain.blocks[0])
    rows, columns = (n * side for n, side in zip(embed.grid_size, embed.patch_size, strict=True))
    spec = EncoderSpec(
        frames=1,
        size=(rows, columns),  # timm drops pixels that do not fill a patch
        model=_derive_settings(plain, block),
        selection=AllTokens(),
        norms=Norms(after_encoder=isinstance(norm, nn.LayerNorm), eps=cast(nn.LayerNorm, block.norm1).eps),
    )
    weight, bias = embed.proj.weight, embed.proj.bias  # (D, 3, p, q), (D,)
    scale = torch.tensor(IMAGENET_STD) / torch.tensor(std)  # (3,)
    moved = (torch.tensor(IMAGENET_MEAN) - torch.tensor(mean)) / torch.tensor(std)  # (3,)
    shift = (weight * moved[:, None, None]).sum(dim=(1, 2, 3))  # (D,)
    tensors = {
        "patch_embed.proj.weight": (weight * scale[:, None, None]).unsqueeze(2),  # (D, 3, 1, p, q)
        "patch_embed.proj.bias": shift if bias is None else bias + shift,
        **_convert_positions(plain),
    }
    for number, block in enumerate(plain.blocks):
        tensors |= {f"blocks.{number}.{name}": x for name, x in _convert_block(plain, block.state_dict())}
    for name, module in (("norm_before", plain.norm_pre), ("norm", norm)):
        if isinstance(module, nn.LayerNorm):
            tensors |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return Weights(
        kind="encoder",
        settings=spec.dump(),
        classes=None,
        recipe=source,
        step=0,
        tensors={f"encoder.{name}": tensor.detach().clone() for name, tensor in tensors.items()},
        clip=FRAMES_OF_IMAGES,
        origin={"family": "timm", "file": source, "licence": licence},
    )


def _derive_settings(model: ImageModel, block: Block) -> ModelSettings:
    mlp = cast(Mlp, block.mlp)
    kind, rotary = find_mlp_kind(mlp), find_rotary(model)
    assert kind is not None
    assert rotary is not None
    rows, columns = model.patch_embed.patch_size
    return ModelSettings(
        **backbone_settings(
            width=model.embed_dim,
            mlp=cast(nn.Linear, mlp.fc2).in_features,
            depth=len(model.blocks),
            heads=cast(Attention, block.attn).num_heads,
        ),
        tubelet=(1, int(rows), int(columns)),
        positions="learned-separable",
        class_token=model.cls_token is not None,
        registers=model.num_prefix_tokens - (model.cls_token is not None),
        rotary=rotary,
        norm_before=isinstance(model.norm_pre, nn.LayerNorm),
        attention="slice",
        mlp=kind,
        gelu=GELU_KINDS[type(mlp.act)] if kind == "plain" else "exact",
    )


def _convert_positions(model: ImageModel) -> dict[str, Tensor]:
    """Return the positions of positions, and the learned tokens; the position of the only time index is zero.

    The positions of registers and of DeiT's distillation token are added to these tokens, as everest has no
    such positions. If a model has only rotary positions, all learned positions are zero.
    """
    token, prefix, positions = model.cls_token, model.num_prefix_tokens, model.pos_embed  # (1, [P +] h*w, D)
    weight = model.patch_embed.proj.weight
    added = weight.new_zeros(1, prefix, model.embed_dim)  # added to the tokens before the positions
    spatial = weight.new_zeros(1, model.patch_embed.num_patches, model.embed_dim)
    if isinstance(positions, Tensor) and model.no_embed_class:
        spatial = positions
    elif isinstance(positions, Tensor):
        added, spatial = positions[:, :prefix], positions[:, prefix:]
    tensors = {SPATIAL: spatial, TEMPORAL: torch.zeros_like(spatial[:, :1])}
    if token is not None:
        tensors |= {"class_token": token, "position.class_token": added[:, :1]}
        added = added[:, 1:]
    registers = model.dist_token if isinstance(model, VisionTransformerDistilled) else model.reg_token
    return tensors if registers is None else tensors | {"registers": registers + added}


def _convert_block(model: ImageModel, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a block under our names."""
    if "attn.qkv.weight" in tensors:
        weights = list(tensors["attn.qkv.weight"].chunk(3))  # (D, D) each
        biases = list(_get_bias(tensors, "attn.qkv").chunk(3))  # (D,) each
    else:
        weights = [tensors[f"attn.{letter}_proj.weight"] for letter in "qkv"]
        biases = [_get_bias(tensors, f"attn.{letter}_proj") for letter in "qkv"]
    biases = [tensors.get(f"attn.{letter}_bias", bias) for letter, bias in zip("qkv", biases, strict=True)]
    if find_rotary(model) != "none":
        # `RotaryPositions` rotates channels 2i and 2i + 1 of a head as a point, DINOv3 i and i + E / 2; PE
        # has columns before rows. Reordering does not change the scores of queries and keys.
        attention = cast(Attention, cast(Block, model.blocks[0]).attn)
        by_columns = cast(RotaryEmbeddingCat, getattr(model, "rope", None)).grid_indexing == "xy"
        for parts, number in product((weights, biases), (0, 1)):  # queries and keys
            by_head = parts[number].unflatten(0, (attention.num_heads, -1))  # (heads, E, ...)
            if getattr(attention, "rotate_half", False):
                by_head = by_head.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
            if by_columns:
                by_head = by_head.roll(by_head.size(1) // 2, dims=1)
            parts[number] = by_head.flatten(0, 1)
        yield "attn.k_bias", biases[1]
    yield "attn.qkv.weight", torch.cat(weights)
    yield "attn.q_bias", biases[0]
    yield "attn.v_bias", biases[2]
    first = ("mlp.fc1",) if "mlp.fc1.weight" in tensors else ("mlp.fc1_g", "mlp.fc1_x")  # gate and value
    yield "mlp.fc1.weight", torch.cat([tensors[f"{name}.weight"] for name in first])
    yield "mlp.fc1.bias", torch.cat([_get_bias(tensors, name) for name in first])
    for module in SAME_NAMES:
        if f"{module}.weight" not in tensors:
            continue
        weight, bias = tensors[f"{module}.weight"], _get_bias(tensors, module)
        scale = next((tensors[name] for name in SCALE_NAMES.get(module, ()) if name in tensors), None)  # (D,)
        yield f"{module}.weight", weight if scale is None else weight * scale[:, None]
        yield f"{module}.bias", bias if scale is None else bias * scale


def _get_bias(tensors: Mapping[str, Tensor], module: str) -> Tensor:
    """Return the bias of a layer; zeros if it has none."""
    weight = tensors[f"{module}.weight"]
    return tensors.get(f"{module}.bias", weight.new_zeros(weight.size(0)))
