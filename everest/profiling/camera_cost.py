"""The operations by which a selection estimates and removes the motion of the camera."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from everest.methods.alignment import Align, previous_frames
from everest.methods.ranked import ByChange
from everest.models.spec import ModelSpec
from everest.video.pixels import USUAL

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


def operations_of(spec: ModelSpec) -> int | None:
    """Count them for a clip of a model; None if its selection does not look at the camera."""
    selection = spec.selection
    if not isinstance(selection, ByChange) or not selection.sees_camera:
        return None
    return camera_operations(
        size=spec.size,
        frames=spec.offered_frames,
        channels=spec.channels,
        lag=selection.lag(spec.model.tubelet[0]),
        align=selection.align,
    )
