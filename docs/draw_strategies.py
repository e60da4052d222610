"""Draw docs/strategies.png: the visible and predicted tokens of every strategy on one rendered clip.

python docs/draw_strategies.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from everest.figures.masks import view_masks
from everest.figures.pictures import draw_views
from everest.methods.masks import FrameWise, RandomSpaceTime, RunningCell, Tube
from everest.methods.selector import Selector
from everest.methods.strategies import FrameDifference, RedundancyRobust

SIZE, FRAMES, TUBELET = 112, 16, (2, 8, 8)
STRATEGIES: list[tuple[str, Selector]] = [
    ("redundancy-robust", RedundancyRobust()),
    ("… order: ascending", RedundancyRobust(order="ascending")),
    ("frame-difference", FrameDifference()),
    ("tube", Tube()),
    ("random", RandomSpaceTime()),
    ("frame", FrameWise()),
    ("running-cell, V2", RunningCell()),
    ("running-cell, MAR", RunningCell(encoder="running-cell", mask_ratio=0.5)),
]


def moving_clip() -> Tensor:
    """(3, T, H, W) uint8: a disc crosses a smooth background, a square stays, the camera adds noise."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    background = np.stack([0.35 + 0.3 * x, 0.45 + 0.2 * y, 0.5 + 0.2 * (1 - x)])  # (3, H, W)
    background[:, 70:95, 12:37] = np.array([0.2, 0.3, 0.7])[:, None, None]
    camera_noise = np.random.default_rng(0)
    frames = []
    for number in range(FRAMES):
        frame = background.copy()
        disc = (x - 0.15 - 0.045 * number) ** 2 + (y - 0.3 - 0.02 * number) ** 2 < 0.012
        frame[:, disc] = np.array([0.95, 0.75, 0.2])[:, None]
        frames.append((frame + 0.01 * camera_noise.standard_normal(frame.shape)).clip(0, 1))
    return torch.from_numpy(np.stack(frames, axis=1) * 255).to(torch.uint8)


def main() -> None:
    views = view_masks(moving_clip(), STRATEGIES, model=None, tubelet=TUBELET, seed=3)
    path = Path(__file__).with_name("strategies.png")
    draw_views(path, views, title="visible and predicted tokens of one clip; change measured on pixels")
    with Image.open(path) as picture:  # small enough for a repository
        small = picture.convert("RGB").resize((picture.width * 2 // 3, picture.height * 2 // 3))
    small.quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    main()
