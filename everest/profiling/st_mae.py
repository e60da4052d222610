"""The cost of ST-MAE's released program (Feichtenhofer et al. 2022), which differs from everest's model.

Its encoder and decoder have a class token, its decoder predicts all tokens, also the visible ones, and its
classifier norms all tokens. Its pre-training guide, like the paper, has a decoder of 4 blocks, 512 wide: so
has the recipe `st-mae-k400`.
"""

from __future__ import annotations

from typing import Final

from everest.models.cost import NORM_OPERATIONS, Macs, embedding_macs, stack_macs, stacks_of
from everest.models.spec import ModelSpec

RECIPE: Final = "st-mae-k400"


def released_macs(spec: ModelSpec, *, encoder_class: int = 1, decoder_class: int = 1) -> Macs:
    """Count the multiply-accumulates of ST-MAE's program for one clip, with the sizes and tokens of `spec`.

    Args:
        encoder_class, decoder_class: the number of class tokens.
    """
    visible, total = stacks_of(spec)[0].tokens, spec.grid.num_tokens
    encoder = stacks_of(spec)[0]._replace(tokens=visible + encoder_class)
    macs = embedding_macs(spec.model, total, spec.channels) + stack_macs(encoder)
    macs += Macs(layer_norm=NORM_OPERATIONS * encoder.tokens * encoder.width)
    if spec.kind == "classifier":
        assert spec.num_classes is not None
        return macs + Macs(linear=encoder.width * spec.num_classes)
    decoder = stacks_of(spec)[1]._replace(tokens=total + decoder_class)
    return (
        macs
        + stack_macs(decoder)
        + Macs(
            linear=decoder.width * (visible * encoder.width + decoder.tokens * spec.target_width),
            layer_norm=NORM_OPERATIONS * decoder.tokens * decoder.width,
        )
    )
