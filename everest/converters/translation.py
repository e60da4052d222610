"""The programs whose checkpoints everest reads: our names for their parameters, and their released values.

The rules are for the names in released weights. To add a program, write its rules and add it to `FAMILIES`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from everest.config.values import Positions
from everest.models.positions import SPATIAL, TEMPORAL

NO_EFFECT: Final = "without effect on our model"
POSITION_TABLES: Final = ("pos_embed", "encoder.pos_embed")  # stored by the programs, computed by everest

# Patterns of foreign names, and our name for their matches, or NO_EFFECT. The first matching rule counts.
# Matrices of queries, keys and values, marked |q, |k and |v after one name, are stacked.
Rules = list[tuple[str, str]]


@dataclass(frozen=True)
class Translation:
    """Where each foreign tensor goes."""

    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)  # our name: foreign names, q, k, v
    without_effect: list[str] = field(default_factory=list)  # tensors without effect on our model
    unexpected: list[str] = field(default_factory=list)  # tensors without a place in our model
    table: str | None = None  # a stored position table of the encoder


@dataclass(frozen=True, kw_only=True)
class Family:
    """Checkpoints with the same parameter names."""

    title: str
    marker: str  # a pattern of names that only this family and earlier families have
    rules: Callable[[Collection[str]], Rules]
    positions: Positions = "flat"  # positions if the file stores no table
    kind: Literal["pretrain", "encoder"] = "pretrain"  # kind of our weights, unless it is a classifier
    clip: tuple[int, int] = (16, 224)  # frames and pixels of the released weights
    clip_keys: tuple[str, str] = ("num_frames", "input_size")  # keys of both in the stored settings
    # Eps of transformers' norms if config.json states none; None: no files of transformers describe them.
    eps: float | None = None
    left_out: str | None = None  # why tensors have no place in our model

    def translate(self, names: Collection[str]) -> Translation:
        """Find where each tensor goes, by its name."""
        translation = Translation(table=next((name for name in POSITION_TABLES if name in names), None))
        rules = self.rules(names)
        parts: dict[str, dict[str, str]] = defaultdict(dict)  # our name: {"" or q, k, v: foreign name}
        for name in names:
            target = _rename(name, rules)
            our_name, _, matrix = (target or "").partition("|")
            if target == NO_EFFECT:
                translation.without_effect.append(name)
            elif target is not None and matrix not in parts[our_name] and name != translation.table:
                parts[our_name][matrix] = name
            elif name != translation.table:  # no place in our model, or a second name for one of its tensors
                translation.unexpected.append(name)
        for our_name, foreign in parts.items():
            if "" in foreign:
                translation.sources[our_name] = (foreign.pop(""),)
            elif len(foreign) == 3:
                translation.sources[our_name] = tuple(foreign.pop(matrix) for matrix in "qkv")
            translation.unexpected.extend(foreign.values())
        return translation


def _rename(name: str, rules: Rules) -> str | None:
    """Return the target of the first rule that matches a name; None if no rule matches."""
    matches = ((re.fullmatch(pattern, name), target) for pattern, target in rules)
    return next((match.expand(target) for match, target in matches if match), None)


def find_family(names: Collection[str]) -> str | None:
    """Return the family of a checkpoint with these parameter names; None if there is none."""
    for family_name, family in FAMILIES.items():
        if any(re.fullmatch(family.marker, name) for name in names):
            return family_name
    return None


def _any_starts(names: Iterable[str], *prefixes: str) -> bool:
    return any(name.startswith(prefixes) for name in names)


# --- EVEREST, VideoMAE, VideoMAE V2; MME and MVD, whose pre-training has other decoders

# A key bias shifts all scores of a query equally, which softmax cancels.
_NO_EFFECT_RULES: Rules = [(r"((en|de)coder\.)?blocks\.\d+\.attn\.(k_bias|key\.bias|k\.bias)", NO_EFFECT)]
_PRETRAINING: Rules = [(r"(encoder|decoder|encoder_to_decoder)\..+|mask_token", r"\g<0>")]
_ENCODER: Rules = [(r"(patch_embed|blocks|norm)\..+", r"encoder.\g<0>")]  # without a head
_CLASSIFIER: Rules = [
    (r"(patch_embed|blocks)\..+", r"encoder.\g<0>"),
    (r"fc_norm\.(.+)", r"norm.\1"),  # after mean pooling
    (r"(head|fc)\.(.+)", r"head.\2"),  # MME's loader calls it fc
]
_FIRST_TOKEN: Rules = [(r"norm\.(.+)", r"norm.\1")]  # the norm of a classifier without mean pooling


def _official_rules(names: Collection[str]) -> Rules:
    """Return the rules for an encoder under `encoder.` or, in classifiers, at the top level."""
    if _any_starts(names, "encoder."):
        return _NO_EFFECT_RULES + _PRETRAINING
    if not _any_starts(names, "head.", "fc."):
        return _NO_EFFECT_RULES + _ENCODER
    return _NO_EFFECT_RULES + _CLASSIFIER + ([] if "fc_norm.weight" in names else _FIRST_TOKEN)


# --- ST-MAE: separate queries, keys and values, a class token, learned positions of space and time

_ST_MAE: Rules = [
    ("cls_token", "encoder.class_token"),
    ("pos_embed_class", "encoder.position.class_token"),
    ("pos_embed_spatial", f"encoder.{SPATIAL}"),
    ("pos_embed_temporal", f"encoder.{TEMPORAL}"),
    (r"(blocks\.\d+\.attn)\.([qv])\.bias", r"encoder.\1.\2_bias"),
    (r"(blocks\.\d+\.attn)\.([qkv])\.weight", r"encoder.\1.qkv.weight|\2"),
    (r"head\.projection\.(weight|bias)", r"head.\1"),  # PySlowFast, which trained the released models
]  # the decoder of ST-MAE has parts that ours lacks


# --- VideoMAE and V-JEPA 2 of transformers: separate queries, keys and values

_LAYER: Final = r"(?:videomae\.)?(encoder|decoder)\.(?:decoder_layers|layer)\.(\d+)\."
_BLOCK: Final = r"\1.blocks.\2."
_VIDEOMAE: Rules = [
    # Older versions keep the biases outside the modules of the matrices, as q_bias and v_bias.
    (rf"{_LAYER}attention\.attention\.(key\.bias|k_bias)", NO_EFFECT),
    (rf"{_LAYER}attention\.attention\.([qv])(uery\.|alue\.|_)bias", rf"{_BLOCK}attn.\3_bias"),
    (rf"{_LAYER}attention\.attention\.([qkv])(uery|ey|alue)\.weight", rf"{_BLOCK}attn.qkv.weight|\3"),
    (rf"{_LAYER}attention\.output\.dense\.(weight|bias)", rf"{_BLOCK}attn.proj.\3"),
    (rf"{_LAYER}intermediate\.dense\.(weight|bias)", rf"{_BLOCK}mlp.fc1.\3"),
    (rf"{_LAYER}output\.dense\.(weight|bias)", rf"{_BLOCK}mlp.fc2.\3"),
    (rf"{_LAYER}layernorm_before\.(weight|bias)", rf"{_BLOCK}norm1.\3"),
    (rf"{_LAYER}layernorm_after\.(weight|bias)", rf"{_BLOCK}norm2.\3"),
    (r"(?:videomae\.)?embeddings\.patch_embeddings\.projection\.(.+)", r"encoder.patch_embed.proj.\1"),
    (r"fc_norm\.(.+)", r"norm.\1"),
    (r"classifier\.(.+)", r"head.\1"),
    (r"(decoder\.norm|decoder\.head|encoder_to_decoder)\.(weight|bias)|mask_token", r"\g<0>"),
]


def _transformers_rules(names: Collection[str]) -> Rules:
    """Return the rules for a classifier with either of two norms."""
    norm = "norm" if _any_starts(names, "classifier.") else "encoder.norm"
    last: Rules = [(r"(?:videomae\.)?layernorm\.(.+)", rf"{norm}.\1")]
    return _VIDEOMAE + ([] if "fc_norm.weight" in names else last)


_V_JEPA_LAYER: Final = r"(?:vjepa2\.)?encoder\.layer\.(\d+)\."
_V_JEPA_BLOCK: Final = r"encoder.blocks.\1."
_V_JEPA: Rules = [
    (r"(vjepa2\.)?predictor\..+", NO_EFFECT),  # predicts features of hidden tokens in pre-training
    # A key bias has an effect, because keys are rotated after it is added.
    (rf"{_V_JEPA_LAYER}attention\.([qkv])(uery|ey|alue)\.bias", rf"{_V_JEPA_BLOCK}attn.\2_bias"),
    (rf"{_V_JEPA_LAYER}attention\.([qkv])(uery|ey|alue)\.weight", rf"{_V_JEPA_BLOCK}attn.qkv.weight|\2"),
    (rf"{_V_JEPA_LAYER}attention\.(proj\.(weight|bias))", rf"{_V_JEPA_BLOCK}attn.\2"),
    (rf"{_V_JEPA_LAYER}((norm1|norm2|mlp\.fc1|mlp\.fc2)\.(weight|bias))", rf"{_V_JEPA_BLOCK}\2"),
    (r"(?:vjepa2\.)?encoder\.embeddings\.patch_embeddings\.(proj\..+)", r"encoder.patch_embed.\1"),
    (r"(?:vjepa2\.)?encoder\.layernorm\.(.+)", r"encoder.norm.\1"),
]


FAMILIES: Final = {  # the first family that recognizes a checkpoint is used
    "transformers": Family(
        title="VideoMAE of the transformers library",
        marker=r".*patch_embeddings\.projection\.weight",
        rules=_transformers_rules,
        clip_keys=("num_frames", "image_size"),
        eps=1e-12,
    ),
    "vjepa2": Family(
        title="V-JEPA 2 of the transformers library (Assran et al. 2025)",
        marker=r".*encoder\.embeddings\.patch_embeddings\.proj\.weight",
        rules=lambda names: _V_JEPA,
        positions="rotary",
        kind="encoder",
        clip=(64, 256),
        clip_keys=("frames_per_clip", "crop_size"),
        eps=1e-6,
        left_out="everest has no attentive pooler of several blocks, so it cannot use the head behind it",
    ),
    "st-mae": Family(
        title="ST-MAE (Feichtenhofer et al. 2022)",
        marker="pos_embed_spatial",
        rules=lambda names: _ST_MAE + _official_rules(names),
        positions="learned-separable",
    ),
    "videomae": Family(
        title="VideoMAE (Tong et al. 2022); EVEREST, VideoMAE V2, MME and MVD have the same names",
        marker=r"(encoder\.)?patch_embed\.proj\.weight",
        rules=_official_rules,
    ),
}
# Programs that share the names of `videomae`, for users who know the origin of their file.
ALIASES: Final[dict[str, Positions]] = {
    "everest": "flat",
    "videomae": "flat",
    "videomae-v2": "flat",
    "mme": "flat",
    "mvd": "separable",  # MVD's classifier builds the table that its pre-training stores
}
