"""Names of parameters in the released programs of EVEREST and VideoMAE, and ours.

Pre-training names are the same. Their classifier has the encoder at the top level and calls the norm after
mean pooling `fc_norm`; with the first token as feature the same place is called `norm`.
"""

from __future__ import annotations

from typing import Literal

_ENCODER_PARTS = ("patch_embed.", "blocks.")


def our_name(official: str, kind: Literal["pretrain", "classifier"]) -> str:
    """Our name of an official parameter."""
    if kind == "pretrain":
        return official
    if official.startswith(_ENCODER_PARTS):
        return f"encoder.{official}"
    return official.replace("fc_norm.", "norm.", 1)
