"""Recognizes the program of a checkpoint by its parameter names, and translates these to our names.

The facts about names are from the released state dicts. To add a family, write a function that translates
and add its entry to `FAMILIES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from everest.config.values import Positions
from everest.foreign import vjepa2
from everest.foreign.translation import Translation
from everest.models.positions import SPATIAL, TEMPORAL

KEY_BIAS = "a key bias adds the same to every score of a query, which the softmax takes out again"


@dataclass(frozen=True, kw_only=True)
class Family:
    """Checkpoints with the same parameter names."""

    title: str
    recognize: Callable[[Collection[str]], bool]
    translate: Callable[[Collection[str]], Translation]
    positions: Positions = "flat"
    kind: Literal["pretrain", "encoder"] = "pretrain"  # of our weights, if the checkpoint has no classifier
    has_config: bool = False  # whether files of transformers next to the weights describe them
    left_out: str | None = None  # why tensors have no place in our model
    # Why checkpoints with such names cannot be used, or None.
    refusal: Callable[[Collection[str]], str | None] = lambda names: None


def _starts(names: Iterable[str], *prefixes: str) -> bool:
    return any(name.startswith(prefixes) for name in names)


# --- EVEREST, VideoMAE, VideoMAE V2, MME's classifiers

_PRETRAINING = ("encoder.", "decoder.", "encoder_to_decoder.", "mask_token")
_ENCODER = ("patch_embed.", "blocks.", "norm.")
_KEY_BIASES = (".k_bias", ".key.bias", ".attn.k.bias")


def our_name(official: str, kind: Literal["pretrain", "classifier"]) -> str:
    """Return our name of a parameter in the released programs of EVEREST and VideoMAE.

    Names in pre-training are the same. Their classifier has the encoder at the top level. It calls the norm
    after mean pooling `fc_norm`; with the first token as feature the norm in the same place is `norm`.
    """
    if kind == "pretrain":
        return official
    if official.startswith(("patch_embed.", "blocks.")):
        return f"encoder.{official}"
    return official.replace("fc_norm.", "norm.", 1)


def _released(names: Collection[str]) -> Translation:
    """Translate the released programs; the encoder is under `encoder.` or, in classifiers, at the top."""
    tables = [name for name in names if name in ("pos_embed", "encoder.pos_embed")]
    translation = Translation(table=tables[-1] if tables else None)
    pretraining, classifier = _starts(names, "encoder."), _starts(names, "head.", "fc.")
    if pretraining:
        known = _PRETRAINING
    elif not classifier:
        known = _ENCODER
    else:
        norms = ("fc_norm.",) if "fc_norm.weight" in names else ("norm.", "fc_norm.")
        known = ("patch_embed.", "blocks.", *norms, "head.", "fc.")
    for name in names:
        if name in tables:
            continue
        if name.endswith(_KEY_BIASES):
            translation.idle[name] = KEY_BIAS
        elif not name.startswith(known):
            translation.unexpected.append(name)
        elif pretraining:
            translation.take[our_name(name, "pretrain")] = (name,)
        elif classifier:  # MME's loader calls its head fc
            translation.take[re.sub(r"^fc\.", "head.", our_name(name, "classifier"))] = (name,)
        else:  # an encoder alone, whose norm is the one after its blocks
            translation.take[f"encoder.{name}"] = (name,)
    return translation


# --- MME: several decoders with several heads (histograms of gradients, trajectories)
# --- MVD: the encoder at the top, two decoders of features, stored position tables


def _encoder_only(names: Collection[str], of_encoder: Callable[[str], bool]) -> Translation:
    translation = _released([name for name in names if of_encoder(name)])
    translation.unexpected.extend(name for name in names if not of_encoder(name))
    return translation


# --- transformers' VideoMAE

_LAYER = re.compile(r"(?:videomae\.)?(encoder\.layer|decoder\.decoder_layers)\.(\d+)\.(.+)\.(\w+)")
_STACKS = {"encoder.layer": "encoder", "decoder.decoder_layers": "decoder"}
_PARTS = {
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
# Older versions keep the biases outside of the matrices' modules, as q_bias and v_bias.
_BIASES = {
    "attention.attention.query.bias": "attn.q_bias",
    "attention.attention.value.bias": "attn.v_bias",
    "attention.attention.q_bias": "attn.q_bias",
    "attention.attention.v_bias": "attn.v_bias",
}
_MATRICES = [f"attention.attention.{matrix}.weight" for matrix in ("query", "key", "value")]
_KEY = ("attention.attention.key.bias", "attention.attention.k_bias")
_TOP = {
    "embeddings.patch_embeddings.projection": "encoder.patch_embed.proj",
    "fc_norm": "norm",
    "classifier": "head",
    "decoder.norm": "decoder.norm",
    "decoder.head": "decoder.head",
    "encoder_to_decoder": "encoder_to_decoder",
}


def _transformers(names: Collection[str]) -> Translation:
    translation = Translation()
    take = translation.take
    norm = "norm" if _starts(names, "classifier.") else "encoder.norm"
    for name in names:
        layer = _LAYER.fullmatch(name)
        if layer:
            stack, number, module, leaf = layer.groups()
            block, rest = f"{_STACKS[stack]}.blocks.{number}", f"{module}.{leaf}"
            matrices = tuple(name.removesuffix(rest) + matrix for matrix in _MATRICES)
            if rest in _KEY:
                translation.idle[name] = KEY_BIAS
            elif rest in _BIASES:
                take[f"{block}.{_BIASES[rest]}"] = (name,)
            elif name in matrices and all(matrix in names for matrix in matrices):
                take[f"{block}.attn.qkv.weight"] = matrices
            elif module in _PARTS:
                take[f"{block}.{_PARTS[module]}.{leaf}"] = (name,)
            else:
                translation.unexpected.append(name)
            continue
        module, _, leaf = name.removeprefix("videomae.").rpartition(".")
        if name == "mask_token":
            take[name] = (name,)
        elif module == "layernorm" and "fc_norm.weight" not in names:
            take[f"{norm}.{leaf}"] = (name,)
        elif module in _TOP:
            take[f"{_TOP[module]}.{leaf}"] = (name,)
        else:
            translation.unexpected.append(name)
    return translation


# --- ST-MAE: separate queries, keys and values, a class token, learned positions of space and time

_ST_MAE_ENCODER = {
    "cls_token": "encoder.class_token",
    "pos_embed_class": "encoder.position.class_token",
    "pos_embed_spatial": f"encoder.{SPATIAL}",
    "pos_embed_temporal": f"encoder.{TEMPORAL}",
}
_ATTENTION = re.compile(r"(blocks\.\d+\.attn\.)([qkv])\.(weight|bias)")


def _st_mae(names: Collection[str]) -> Translation:
    """Translate ST-MAE's encoder or classifier; its decoder has parts that our decoder lacks."""
    attention = {name: match for name in names if (match := _ATTENTION.fullmatch(name))}
    translation = _released([name for name in names if name not in {*_ST_MAE_ENCODER, *attention}])
    take = translation.take
    take |= {our_name: (name,) for name, our_name in _ST_MAE_ENCODER.items() if name in names}
    for name, match in attention.items():
        module, matrix, leaf = match.groups()
        matrices = tuple(f"{module}{letter}.weight" for letter in "qkv")
        if leaf == "bias" and matrix == "k":
            translation.idle[name] = KEY_BIAS
        elif leaf == "bias":
            take[f"encoder.{module}{matrix}_bias"] = (name,)
        elif all(matrix in names for matrix in matrices):
            take[f"encoder.{module}qkv.weight"] = matrices
        else:
            translation.unexpected.append(name)
    for leaf in ("weight", "bias"):  # PySlowFast, which trained the released models
        if f"head.projection.{leaf}" in take:
            take[f"head.{leaf}"] = take.pop(f"head.projection.{leaf}")
    return translation


def _st_mae_refusal(names: Collection[str]) -> str | None:
    if not {"pos_embed_spatial", "pos_embed_temporal"} & set(names):
        return (
            "it has a class token, but not ST-MAE's learned positions of space and time "
            "(pos_embed_spatial, pos_embed_temporal), without which everest reads no such model"
        )
    if "cls_token" not in names and _starts(names, "head."):
        return (
            "it classifies without a class token, for which ST-MAE leaves the first token of a clip out of "
            "the mean; everest has no such mean"
        )
    return None


FAMILIES = {  # the first one that recognizes a checkpoint is used
    "transformers": Family(
        title="VideoMAE of the transformers library",
        recognize=lambda names: any(n.endswith("patch_embeddings.projection.weight") for n in names),
        translate=_transformers,
        has_config=True,
    ),
    "vjepa2": Family(
        title="V-JEPA 2 of the transformers library (Assran et al. 2025)",
        recognize=lambda names: any(
            n.endswith("encoder.embeddings.patch_embeddings.proj.weight") for n in names
        ),
        translate=vjepa2.translate,
        positions="rotary",
        kind="encoder",
        has_config=True,
        left_out="everest has no attentive pooler of several blocks, and so not the head behind it",
    ),
    "st-mae": Family(
        title="ST-MAE (Feichtenhofer et al. 2022)",
        recognize=lambda names: (
            "patch_embed.proj.weight" in names
            and ("blocks.0.attn.q.weight" in names or "pos_embed_spatial" in names or "cls_token" in names)
        ),
        translate=_st_mae,
        positions="learned-separable",
        refusal=_st_mae_refusal,
    ),
    "mvd": Family(
        title="MVD (Wang et al. 2023), pre-training",
        recognize=lambda names: (
            "patch_embed.proj.weight" in names
            and _starts(names, "decoder_img.", "decoder_vid.", "pos_embed_img", "pos_embed_vid")
        ),
        translate=lambda names: _encoder_only(
            names,
            lambda name: (
                name.startswith(("patch_embed.", "blocks.", "norm.", "pos_embed"))
                and not name.startswith("pos_embed_")  # of the decoders
            ),
        ),
        positions="separable",
    ),
    "mme": Family(
        title="MME (Sun et al. 2023), pre-training",
        recognize=lambda names: "encoder.patch_embed.proj.weight" in names and _starts(names, "decoder.0."),
        translate=lambda names: _encoder_only(names, lambda name: name.startswith("encoder.")),
    ),
    "videomae": Family(
        title="VideoMAE (Tong et al. 2022); EVEREST, VideoMAE V2 and classifiers of MME have the same names",
        recognize=lambda names: bool(
            {"patch_embed.proj.weight", "encoder.patch_embed.proj.weight"} & set(names)
        ),
        translate=_released,
    ),
}
# Programs with the names of `videomae`, for users who know where their file is from.
ALIASES: dict[str, Positions] = {
    "everest": "flat",
    "videomae": "flat",
    "videomae-v2": "flat",
    "mme": "flat",
    "mvd": "separable",  # its classifier builds the same table and does not store it
}


def family_of(names: Collection[str]) -> str | None:
    """Return the family of a checkpoint with these parameter names; None if there is none."""
    return next((name for name, family in FAMILIES.items() if family.recognize(names)), None)
