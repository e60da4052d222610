"""Costs that few recipes have: removing the motion of the camera, and ST-MAE's released program.

ST-MAE's program (Feichtenhofer et al. 2022) differs from everest's model: its encoder and decoder have a
class token, its decoder predicts all tokens, also the visible ones, and its classifier norms all tokens. Its
pre-training guide, like the paper, has a decoder of 4 blocks, 512 wide: so has the recipe `st-mae-k400`.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from everest.methods.alignment import Align, previous_frames
from everest.models.cost import NORM_OPERATIONS, Macs, embedding_macs, stack_macs, stacks_of
from everest.models.spec import ModelSpec
from everest.video.pixels import USUAL

ST_MAE: Final = "st-mae-k400"  # the recipe
BILINEAR: Final = 11  # per value that is interpolated between four others


class _WrittenValues(TorchDispatchMode):
    """Counts the values that operations write; views write none."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and isinstance(out, Tensor):
            factor = BILINEAR if "grid_sampler" in func.name() else 1
            self.count += factor * out.numel()
        return out


def camera_operations(*, size: tuple[int, int], frames: int, channels: int, lag: int, align: Align) -> int:
    """Count the operations of `previous_frames` for one clip of bytes, by shapes alone.

    Each value that an operation writes counts once, an interpolated one as 11, a product as two for each
    multiply-accumulate.

    Args:
        size: height and width of a frame.
        lag: frames between those that are compared.
    """
    clip = torch.empty(1, channels, frames, *size, dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as products, _WrittenValues() as written:
        previous_frames(clip, lag=lag, align=align, pixels=USUAL[channels])
    return products.get_total_flops() + written.count


def released_macs(spec: ModelSpec, *, encoder_class: int = 1, decoder_class: int = 1) -> Macs:
    """Count the multiply-accumulates of ST-MAE's program for one clip, with the sizes and tokens of `spec`.

    Args:
        encoder_class, decoder_class: the number of class tokens.
    """
    stacks = stacks_of(spec)
    visible, total = stacks[0].tokens, spec.grid.num_tokens
    encoder = stacks[0]._replace(tokens=visible + encoder_class)
    macs = embedding_macs(spec.model, total, spec.channels) + stack_macs(encoder)
    macs += Macs(layer_norm=NORM_OPERATIONS * encoder.tokens * encoder.width)
    if spec.kind == "classifier":
        assert spec.num_classes is not None
        return macs + Macs(linear=encoder.width * spec.num_classes)
    decoder = stacks[1]._replace(tokens=total + decoder_class)
    return (
        macs
        + stack_macs(decoder)
        + Macs(
            linear=decoder.width * (visible * encoder.width + decoder.tokens * spec.target_width),
            layer_norm=NORM_OPERATIONS * decoder.tokens * decoder.width,
        )
    )
