"""Costs that few recipes have: removing the motion of the camera, and ST-MAE's released program.

ST-MAE's program (Feichtenhofer et al. 2022) differs from everest's model: its encoder and decoder have a
class token, its decoder predicts all tokens, also the visible ones, and its classifier norms all tokens. Its
pre-training guide, like the paper, has a decoder of 4 blocks, 512 wide: so has the recipe `st-mae-k400`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from everest.methods.alignment import previous_frames
from everest.methods.ranked import ByChange
from everest.models.classifier import VideoClassifier
from everest.models.cost import Macs, count_tokens, counting, embedding_macs, macs_by_kind
from everest.models.mae import MaskedAutoencoder
from everest.models.meta import model_on_meta
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


def camera_operations(spec: ModelSpec) -> int:
    """Count the operations that estimate the motion of the camera in one clip of bytes; 0 without them.

    Each value that an operation writes counts once, an interpolated one as 11, a product as two for each
    multiply-accumulate.
    """
    selection = spec.selection
    if not (isinstance(selection, ByChange) and selection.sees_camera):
        return 0
    lag = selection.lag(spec.model.tubelet[0])
    if lag >= spec.offered_frames:  # one slice: nothing is compared
        return 0
    clip = torch.empty(1, spec.channels, spec.offered_frames, *spec.size, dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as products, _WrittenValues() as written:
        previous_frames(clip, lag=lag, align=selection.align, pixels=USUAL[spec.channels])
    return products.get_total_flops() + written.count


def released_macs(spec: ModelSpec, *, encoder_class: int = 1, decoder_class: int = 1) -> Macs:
    """Count the multiply-accumulates of ST-MAE's program for one clip, with the sizes and tokens of `spec`.

    Args:
        encoder_class, decoder_class: the number of class tokens.
    """
    model, visible, total = model_on_meta(spec), count_tokens(spec).visible, spec.grid.num_tokens
    with counting() as counter:
        x = torch.empty(1, visible + encoder_class, model.encoder.width, device="meta")
        for block in model.encoder.blocks:
            x = block(x)
        if isinstance(model, VideoClassifier):
            model.head(model.norm(x)[:, 0])
        elif isinstance(model, MaskedAutoencoder):
            x = model.encoder_to_decoder(model.encoder.norm(x)[:, :visible])
            y = x.new_empty(1, total + decoder_class, x.size(2))
            for block in model.decoder.blocks:
                y = block(y)
            model.decoder.head(model.decoder.norm(y))
    macs = macs_by_kind(counter.get_flop_counts()["Global"])
    return replace(macs, embedding=embedding_macs(model.encoder.patch_embed, total))
