"""Recognizes the program of a checkpoint by its parameter names.

To add a family, write a function that translates its names (everest.foreign.translation) and add its entry to
`FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from everest.config.values import Positions
from everest.foreign.translation import (
    Translation,
    encoder_only,
    released,
    st_mae,
    starts,
    videomae,
    vjepa2,
)


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


def _st_mae_refusal(names: Collection[str]) -> str | None:
    if not {"pos_embed_spatial", "pos_embed_temporal"} & set(names):
        return (
            "it has a class token, but not ST-MAE's learned positions of space and time "
            "(pos_embed_spatial, pos_embed_temporal), without which everest reads no such model"
        )
    if "cls_token" not in names and starts(names, "head."):
        return (
            "it classifies without a class token, for which ST-MAE leaves the first token of a clip out of "
            "the mean; everest has no such mean"
        )
    return None


FAMILIES = {  # the first one that recognizes a checkpoint is used
    "transformers": Family(
        title="VideoMAE of the transformers library",
        recognize=lambda names: any(n.endswith("patch_embeddings.projection.weight") for n in names),
        translate=videomae,
        has_config=True,
    ),
    "vjepa2": Family(
        title="V-JEPA 2 of the transformers library (Assran et al. 2025)",
        recognize=lambda names: any(
            n.endswith("encoder.embeddings.patch_embeddings.proj.weight") for n in names
        ),
        translate=vjepa2,
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
        translate=st_mae,
        positions="learned-separable",
        refusal=_st_mae_refusal,
    ),
    "mvd": Family(
        title="MVD (Wang et al. 2023), pre-training",
        recognize=lambda names: (
            "patch_embed.proj.weight" in names
            and starts(names, "decoder_img.", "decoder_vid.", "pos_embed_img", "pos_embed_vid")
        ),
        translate=lambda names: encoder_only(
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
        recognize=lambda names: "encoder.patch_embed.proj.weight" in names and starts(names, "decoder.0."),
        translate=lambda names: encoder_only(names, lambda name: name.startswith("encoder.")),
    ),
    "videomae": Family(
        title="VideoMAE (Tong et al. 2022); EVEREST, VideoMAE V2 and classifiers of MME have the same names",
        recognize=lambda names: bool(
            {"patch_embed.proj.weight", "encoder.patch_embed.proj.weight"} & set(names)
        ),
        translate=released,
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
