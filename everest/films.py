"""What strategies keep, as moving pictures: GIF and H.264."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
import torch
from PIL import Image
from torch import Tensor

from everest.mask_view import MaskView
from everest.pictures import HEAT, rows_of
from everest.system.files import write_atomically
from everest.video.writer import write_video

FPS: Final = 8  # slow enough to look
GAP: Final = 4  # pixels between panels


def film(views: Sequence[MaskView]) -> Tensor:
    """(T, H', W', 3) uint8: the rows of the picture side by side, frame by frame; sizes are even."""
    panels = [_coloured(frames) for _, frames in rows_of(views)]  # (T, H, W, 3) each
    length, height = panels[0].shape[:2]
    gap = torch.ones(length, height, GAP, 3)
    parts = [part for panel in panels for part in (panel, gap)][:-1]
    joined = torch.cat(parts, dim=2)
    joined = joined[:, : height // 2 * 2, : joined.size(2) // 2 * 2]
    return (joined * 255).round().to(torch.uint8)


def _coloured(frames: Tensor) -> Tensor:
    if frames.dim() == 4:
        return frames
    scaled = frames / frames.max().clamp_min(torch.finfo(torch.float32).tiny)
    return torch.from_numpy(mpl.colormaps[HEAT](scaled.numpy())[..., :3]).float()


def write_gif(path: Path, views: Sequence[MaskView]) -> None:
    """The film as an endless GIF."""
    pictures = [Image.fromarray(frame.numpy()) for frame in film(views)]
    options = {"save_all": True, "append_images": pictures[1:], "duration": 1000 // FPS, "loop": 0}
    write_atomically(path, lambda part: pictures[0].save(part, format="GIF", **options))


def write_mp4(path: Path, views: Sequence[MaskView]) -> None:
    """The film as H.264."""
    frames = film(views)

    def write(part: Path) -> None:
        with_suffix = part.with_suffix(".mp4")  # which tells the container
        write_video(with_suffix, frames, FPS)
        with_suffix.replace(part)

    write_atomically(path, write)
