"""Translates parameter names of other programs. The facts about names are from released weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from everest.models.positions import SPATIAL, TEMPORAL

KEY_BIAS = "a key bias adds the same to every score of a query, which the softmax takes out again"
PREDICTOR = "it predicts the features of hidden tokens in pre-training, from the outputs of the encoder"


@dataclass(frozen=True)
class Translation:
    """The fate of each foreign tensor."""

    # Our name to the foreign ones: several are stacked in this order (query, key, value).
    take: dict[str, tuple[str, ...]] = field(default_factory=dict)
    idle: dict[str, str] = field(default_factory=dict)  # without effect on the model, and why
    unexpected: list[str] = field(default_factory=list)  # our model has no place for these
    table: str | None = None  # a stored position table of the encoder


def starts(names: Iterable[str], *prefixes: str) -> bool:
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


def released(names: Collection[str]) -> Translation:
    """Translate the released programs; the encoder is under `encoder.` or, in classifiers, at the top."""
    tables = [name for name in names if name in ("pos_embed", "encoder.pos_embed")]
    translation = Translation(table=tables[-1] if tables else None)
    pretraining, classifier = starts(names, "encoder."), starts(names, "head.", "fc.")
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


def encoder_only(names: Collection[str], of_encoder: Callable[[str], bool]) -> Translation:
    translation = released([name for name in names if of_encoder(name)])
    translation.unexpected.extend(name for name in names if not of_encoder(name))
    return translation


# --- VideoMAE and V-JEPA 2 of transformers: separate queries, keys and values

_LAYER = re.compile(r"(encoder\.layer|decoder\.decoder_layers)\.(\d+)\.(.+)\.(weight|\w*bias)")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The names of a model of transformers."""

    prefix: str  # of the encoder, in front of which there may be none
    stacks: dict[str, str]
    top: dict[str, str]  # the modules outside of layers
    parts: dict[str, str]  # the modules of a layer
    biases: dict[str, str]  # of its attention
    matrices: tuple[str, ...]  # query, key and value
    idle: tuple[str, ...] = ()  # key biases without effect
    same: tuple[str, ...] = ()  # parameters that have the same name here

    def translate(self, names: Collection[str], top: dict[str, str]) -> Translation:
        """Translate `names`, with further modules outside of layers."""
        translation, top = Translation(), {**self.top, **top}
        for name in names:
            inner = name.removeprefix(self.prefix)
            layer = _LAYER.fullmatch(inner)
            module, _, leaf = inner.rpartition(".")
            if layer is not None and layer[1] in self.stacks:
                self._translate_layer(translation, names, name, layer)
            elif name in self.same:
                translation.take[name] = (name,)
            elif module in top:
                translation.take[f"{top[module]}.{leaf}"] = (name,)
            else:
                translation.unexpected.append(name)
        return translation

    def _translate_layer(
        self, translation: Translation, names: Collection[str], name: str, layer: re.Match[str]
    ) -> None:
        stack, number, module, leaf = layer.groups()
        block, rest = f"{self.stacks[stack]}.blocks.{number}", f"{module}.{leaf}"
        matrices = tuple(name.removesuffix(rest) + matrix for matrix in self.matrices)
        if rest in self.idle:
            translation.idle[name] = KEY_BIAS
        elif rest in self.biases:
            translation.take[f"{block}.{self.biases[rest]}"] = (name,)
        elif name in matrices and all(matrix in names for matrix in matrices):
            translation.take[f"{block}.attn.qkv.weight"] = matrices
        elif module in self.parts:
            translation.take[f"{block}.{self.parts[module]}.{leaf}"] = (name,)
        else:
            translation.unexpected.append(name)


VIDEOMAE: Final = Layout(
    prefix="videomae.",
    stacks={"encoder.layer": "encoder", "decoder.decoder_layers": "decoder"},
    top={
        "embeddings.patch_embeddings.projection": "encoder.patch_embed.proj",
        "fc_norm": "norm",
        "classifier": "head",
        "decoder.norm": "decoder.norm",
        "decoder.head": "decoder.head",
        "encoder_to_decoder": "encoder_to_decoder",
    },
    parts={
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
    },
    biases={  # older versions keep them outside of the matrices' modules, as q_bias and v_bias
        "attention.attention.query.bias": "attn.q_bias",
        "attention.attention.value.bias": "attn.v_bias",
        "attention.attention.q_bias": "attn.q_bias",
        "attention.attention.v_bias": "attn.v_bias",
    },
    matrices=tuple(f"attention.attention.{matrix}.weight" for matrix in ("query", "key", "value")),
    idle=("attention.attention.key.bias", "attention.attention.k_bias"),
    same=("mask_token",),
)
V_JEPA_2: Final = Layout(
    prefix="vjepa2.",
    stacks={"encoder.layer": "encoder"},
    top={
        "encoder.embeddings.patch_embeddings.proj": "encoder.patch_embed.proj",
        "encoder.layernorm": "encoder.norm",
    },
    parts={
        "norm1": "norm1",
        "norm2": "norm2",
        "attention.proj": "attn.proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
    # A key bias has an effect: keys are turned after it is added.
    biases={f"attention.{matrix}.bias": f"attn.{matrix[0]}_bias" for matrix in ("query", "key", "value")},
    matrices=tuple(f"attention.{matrix}.weight" for matrix in ("query", "key", "value")),
)


def videomae(names: Collection[str]) -> Translation:
    """Translate VideoMAE of transformers, whose classifier has one of two norms."""
    norm = "norm" if starts(names, "classifier.") else "encoder.norm"
    return VIDEOMAE.translate(names, {} if "fc_norm.weight" in names else {"layernorm": norm})


def vjepa2(names: Collection[str]) -> Translation:
    """Translate the encoder of V-JEPA 2 of transformers."""
    predictor = [name for name in names if name.removeprefix("vjepa2.").startswith("predictor.")]
    translation = V_JEPA_2.translate([name for name in names if name not in {*predictor}], {})
    translation.idle.update(dict.fromkeys(predictor, PREDICTOR))
    return translation


# --- ST-MAE: separate queries, keys and values, a class token, learned positions of space and time

_ST_MAE_ENCODER = {
    "cls_token": "encoder.class_token",
    "pos_embed_class": "encoder.position.class_token",
    "pos_embed_spatial": f"encoder.{SPATIAL}",
    "pos_embed_temporal": f"encoder.{TEMPORAL}",
}
_ATTENTION = re.compile(r"(blocks\.\d+\.attn\.)([qkv])\.(weight|bias)")


def st_mae(names: Collection[str]) -> Translation:
    """Translate ST-MAE's encoder or classifier; its decoder has parts that our decoder lacks."""
    attention = {name: match for name in names if (match := _ATTENTION.fullmatch(name))}
    translation = released([name for name in names if name not in {*_ST_MAE_ENCODER, *attention}])
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
