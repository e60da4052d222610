"""Names of parameters in the released programs of EVEREST and VideoMAE, and ours.

Pre-training names are the same. Their classifier has the encoder at the top level and calls the norm after
mean pooling `fc_norm`; with the first token as feature the same place is called `norm`.

Which program wrote a checkpoint, told by its names, and what its parameters are called here.

The facts about names are those of the released state dicts; `everest.official_keys` has what EVEREST and
VideoMAE share with us. To add a family: a function that translates, and its line in `FAMILIES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

from everest.models.embedding import Positions

_ENCODER_PARTS = ("patch_embed.", "blocks.")


def our_name(official: str, kind: Literal["pretrain", "classifier"]) -> str:
    """Our name of an official parameter."""
    if kind == "pretrain":
        return official
    if official.startswith(_ENCODER_PARTS):
        return f"encoder.{official}"
    return official.replace("fc_norm.", "norm.", 1)


KEY_BIAS = "a key bias adds the same to every score of a query, which the softmax takes out again"


@dataclass(frozen=True)
class Translation:
    """What becomes of each foreign tensor."""

    # Ours to theirs: several are stacked in this order (query, key, value).
    take: dict[str, tuple[str, ...]] = field(default_factory=dict)
    idle: dict[str, str] = field(default_factory=dict)  # without effect on the model: why
    unexpected: list[str] = field(default_factory=list)  # no place for it here
    table: str | None = None  # a stored position table of the encoder


@dataclass(frozen=True, kw_only=True)
class Family:
    """Checkpoints that are told apart by their names."""

    title: str
    recognise: Callable[[Collection[str]], bool]
    translate: Callable[[Collection[str]], Translation]
    positions: Positions = "flat"
    refusal: str | None = None  # why nothing of it can be used


def _starts(names: Iterable[str], *prefixes: str) -> bool:
    return any(name.startswith(prefixes) for name in names)


# --- EVEREST, VideoMAE, VideoMAE V2, MME's classifiers

_PRETRAINING = ("encoder.", "decoder.", "encoder_to_decoder.", "mask_token")
_KEY_BIASES = (".k_bias", ".key.bias", ".attn.k.bias")


def _released(names: Collection[str]) -> Translation:
    """Names of the released programs; the encoder stands under `encoder.` or, in classifiers, on top."""
    told = Translation()
    pretraining = _starts(names, "encoder.")
    classifier = _starts(names, "head.", "fc.")
    table = None
    for name in names:
        ours = _released_name(name, names, pretraining=pretraining, classifier=classifier)
        if name in ("pos_embed", "encoder.pos_embed"):
            table = name
        elif name.endswith(_KEY_BIASES):
            told.idle[name] = KEY_BIAS
        elif ours is None:
            told.unexpected.append(name)
        else:
            told.take[ours] = (name,)
    return Translation(told.take, told.idle, told.unexpected, table)


def _released_name(name: str, names: Collection[str], *, pretraining: bool, classifier: bool) -> str | None:
    if pretraining:
        return our_name(name, "pretrain") if name.startswith(_PRETRAINING) else None
    if not classifier:  # an encoder alone, whose norm is the one after its blocks
        return f"encoder.{name}" if name.startswith(("patch_embed.", "blocks.", "norm.")) else None
    if name.startswith("norm.") and "fc_norm.weight" in names:
        return None
    if name.startswith(("patch_embed.", "blocks.", "norm.", "fc_norm.", "head.", "fc.")):
        return re.sub(r"^fc\.", "head.", our_name(name, "classifier"))  # MME's loader calls it fc
    return None


# --- MME: several decoders with several heads (histograms of gradients, trajectories)


def _mme(names: Collection[str]) -> Translation:
    return _encoder_only(names, keep=lambda name: name.startswith("encoder."))


# --- MVD: the encoder on top, two decoders of features, stored position tables


def _mvd(names: Collection[str]) -> Translation:
    tops, of_decoders = ("patch_embed.", "blocks.", "norm.", "pos_embed"), "pos_embed_"
    return _encoder_only(names, keep=lambda name: name.startswith(tops) and not name.startswith(of_decoders))


def _encoder_only(names: Collection[str], keep: Callable[[str], bool]) -> Translation:
    told = _released([name for name in names if keep(name)])
    told.unexpected.extend(name for name in names if not keep(name))
    return told


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
# Older versions keep the biases beside the matrices, as q_bias and v_bias.
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
    told = Translation()
    classifier = _starts(names, "classifier.")
    for name in names:
        layer = _LAYER.fullmatch(name)
        if layer:
            _layer(told, name, f"{_STACKS[layer[1]]}.blocks.{layer[2]}", f"{layer[3]}.{layer[4]}", names)
            continue
        module, _, leaf = name.removeprefix("videomae.").rpartition(".")
        if name == "mask_token":
            told.take[name] = (name,)
        elif module == "layernorm" and "fc_norm.weight" not in names:
            told.take[f"{'norm' if classifier else 'encoder.norm'}.{leaf}"] = (name,)
        elif module in _TOP:
            told.take[f"{_TOP[module]}.{leaf}"] = (name,)
        else:
            told.unexpected.append(name)
    return told


def _layer(told: Translation, name: str, block: str, rest: str, names: Collection[str]) -> None:
    """One tensor of a transformer layer."""
    module, _, leaf = rest.rpartition(".")
    stem = name.removesuffix(rest)
    matrices = tuple(stem + matrix for matrix in _MATRICES)
    if rest in _KEY:
        told.idle[name] = KEY_BIAS
    elif rest in _BIASES:
        told.take[f"{block}.{_BIASES[rest]}"] = (name,)
    elif name in matrices and all(matrix in names for matrix in matrices):
        told.take[f"{block}.attn.qkv.weight"] = matrices
    elif module in _PARTS:
        told.take[f"{block}.{_PARTS[module]}.{leaf}"] = (name,)
    else:
        told.unexpected.append(name)


# --- ST-MAE


def _nothing(names: Collection[str]) -> Translation:
    return Translation(unexpected=list(names))


FAMILIES = {  # the first that recognises a checkpoint has it
    "transformers": Family(
        title="VideoMAE of the transformers library",
        recognise=lambda names: any(n.endswith("patch_embeddings.projection.weight") for n in names),
        translate=_transformers,
    ),
    "st-mae": Family(
        title="ST-MAE (Feichtenhofer et al. 2022)",
        recognise=lambda names: (
            "patch_embed.proj.weight" in names
            and ("blocks.0.attn.q.weight" in names or "pos_embed_spatial" in names or "cls_token" in names)
        ),
        translate=_nothing,
        refusal="its class token and its learned positions of space and time have no place in our encoder, "
        "whose positions are computed; its masking is there: selection.strategy=random",
    ),
    "mvd": Family(
        title="MVD (Wang et al. 2023), pre-training",
        recognise=lambda names: (
            "patch_embed.proj.weight" in names
            and _starts(names, "decoder_img.", "decoder_vid.", "pos_embed_img", "pos_embed_vid")
        ),
        translate=_mvd,
        positions="separable",
    ),
    "mme": Family(
        title="MME (Sun et al. 2023), pre-training",
        recognise=lambda names: "encoder.patch_embed.proj.weight" in names and _starts(names, "decoder.0."),
        translate=_mme,
    ),
    "videomae": Family(
        title="VideoMAE (Tong et al. 2022); EVEREST, VideoMAE V2 and classifiers of MME have the same names",
        recognise=lambda names: bool(
            {"patch_embed.proj.weight", "encoder.patch_embed.proj.weight"} & set(names)
        ),
        translate=_released,
    ),
}
# What can be meant by names of `videomae`, for those who know where their file is from.
ALIASES: dict[str, Positions] = {
    "everest": "flat",
    "videomae": "flat",
    "videomae-v2": "flat",
    "mme": "flat",
    "mvd": "separable",  # its classifier builds the same table and does not store it
}
