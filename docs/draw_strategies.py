"""Draw docs/strategies.png: the visible and predicted tokens of every strategy on one rendered clip.

python docs/draw_strategies.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from everest.figures.masks import apply_strategies
from everest.figures.rows import draw_rows, make_figure_rows
from everest.methods.importance import RawPixels
from everest.methods.selection import Strategy
from everest.methods.strategies import (
    FrameDifference,
    FrameWise,
    RandomSpaceTime,
    RedundancyRobust,
    RunningCell,
    Tube,
)

SIZE, FRAMES, TUBELET = 112, 8, (2, 8, 8)
STRATEGIES: list[tuple[str, Strategy]] = [
    ("redundancy-robust", RedundancyRobust()),
    ("redundancy-robust, ascending", RedundancyRobust(order="ascending")),
    ("frame-difference", FrameDifference()),
    ("tube", Tube()),
    ("random", RandomSpaceTime()),
    ("frame", FrameWise()),
    ("running-cell, V2", RunningCell()),
    ("running-cell, MAR", RunningCell(encoder="running-cell", mask_ratio=0.5)),
]


def moving_clip() -> Tensor:
    """(3, T, H, W) uint8: a disc crosses the sky above waves, a square rests, the camera adds noise."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    sky = np.stack([0.35 + 0.3 * x, 0.45 + 0.2 * y, 0.5 + 0.2 * (1 - x)])  # (3, H, W)
    sky[:, 52:80, 70:98] = np.array([0.2, 0.3, 0.7])[:, None, None]
    camera_noise = np.random.default_rng(0)
    frames = []
    for number in range(FRAMES):
        frame = sky.copy()
        disc = (x - 0.15 - 0.09 * number) ** 2 + (y - 0.25 - 0.03 * number) ** 2 < 0.014
        frame[:, disc] = np.array([0.95, 0.75, 0.2])[:, None]
        water = y > 0.8 + 0.04 * np.sin(12 * x + 0.9 * number)
        crests = 0.5 + 0.5 * np.sin(40 * x + 60 * y - 1.3 * number)
        frame[:, water] = np.stack([0.1 + 0.3 * crests, 0.3 + 0.4 * crests, 0.5 + 0.4 * crests])[:, water]
        frames.append((frame + 0.01 * camera_noise.standard_normal(frame.shape)).clip(0, 1))
    return torch.from_numpy(np.stack(frames, axis=1) * 255).to(torch.uint8)


def main() -> None:
    masks = apply_strategies(moving_clip(), STRATEGIES, embed=RawPixels(TUBELET), seed=3)
    path = Path(__file__).with_name("strategies.png")
    title = "tokens of one clip by strategy: predicted tokens are orange, omitted tokens gray"
    draw_rows(path, make_figure_rows(masks), num_time_indices=masks[0].grid.t, title=title)
    with Image.open(path) as image:  # small enough for a repository
        image.convert("RGB").quantize(256, kmeans=1).save(path, optimize=True)


if __name__ == "__main__":
    main()
