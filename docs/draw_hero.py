"""Draw docs/hero.png: a rendered clip, the importance of its tokens, and the 15 % that are kept.

python docs/draw_hero.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from everest.figures.masks import NO_MODEL, apply_strategies
from everest.figures.rows import draw_rows, make_figure_rows
from everest.methods.strategies import RedundancyRobust

HEIGHT, WIDTH, FRAMES = 192, 336, 8
SCALE: Final = 4  # drawn larger, then reduced: smooth edges
GROUND: Final = 150  # row of the pavement
SKIN, SHIRT, TROUSERS, DARK = (224, 172, 140), (200, 60, 50), (40, 60, 110), (35, 35, 40)

Point = tuple[float, float]


class Scene:
    """A street, drawn at `SCALE` times the size of a frame."""

    def __init__(self) -> None:
        rows = np.linspace(0, 1, HEIGHT * SCALE)[:, None, None]
        sky = np.array([120, 175, 225]) * (1 - rows) + np.array([235, 240, 240]) * rows
        sky = np.broadcast_to(sky, (HEIGHT * SCALE, WIDTH * SCALE, 3))
        self.image = Image.fromarray(sky.astype(np.uint8))
        self._draw = ImageDraw.Draw(self.image)

    def box(self, left: float, top: float, right: float, bottom: float, color: tuple[int, int, int]) -> None:
        self._draw.rectangle([SCALE * side for side in (left, top, right, bottom)], fill=color)

    def disc(self, center: Point, radius: float, color: tuple[int, int, int]) -> None:
        x, y = center
        box = [SCALE * side for side in (x - radius, y - radius, x + radius, y + radius)]
        self._draw.ellipse(box, fill=color)

    def limb(self, points: list[Point], width: float, color: tuple[int, int, int]) -> None:
        """A line with round ends and joints."""
        scaled = [(SCALE * x, SCALE * y) for x, y in points]
        self._draw.line(scaled, fill=color, width=round(SCALE * width))
        for point in points:
            self.disc(point, width / 2, color)

    def street(self) -> None:
        """Houses with windows, a pavement, a road and a tree."""
        houses = ((0, 62, (176, 140, 118)), (92, 40, (150, 152, 160)), (206, 74, (190, 176, 140)))
        for left, top, color in houses:
            right = min(left + 112, WIDTH)
            self.box(left, top, right, GROUND, color)
            for x in range(left + 12, right - 16, 26):
                for y in range(top + 12, GROUND - 30, 26):
                    self.box(x, y, x + 12, y + 15, (70, 84, 100))
        self.box(0, GROUND, WIDTH, GROUND + 18, (170, 168, 164))
        self.box(0, GROUND + 18, WIDTH, HEIGHT, (92, 94, 98))
        self.limb([(312, GROUND), (312, 96)], 7, (96, 70, 50))
        for x, y, radius in ((312, 84, 20), (298, 96, 14), (326, 96, 14)):
            self.disc((x, y), radius, (70, 120, 66))

    def car(self, x: float) -> None:
        """A car on the road, whose front is at `x`."""
        self.box(x - 62, 158, x, 174, (50, 110, 130))
        self.box(x - 48, 146, x - 14, 158, (180, 205, 212))
        for wheel in (x - 48, x - 14):
            self.disc((wheel, 174), 8, DARK)
            self.disc((wheel, 174), 3, (190, 190, 190))

    def walker(self, x: float, phase: float) -> None:
        """A person at column `x`; the legs are at `phase` (radians) of their swing."""
        hip, shoulder = (x, GROUND - 36.0), (x + 2, GROUND - 66.0)
        for side, shade in ((-1, 0.75), (1, 1.0)):
            swing = 0.55 * np.sin(phase) * side
            bend = 0.35 * max(0, np.cos(phase) * side)
            self.limb(_bent(hip, swing, bend, 19), 8, _darker(TROUSERS, shade))
            self.limb(_bent(shoulder, -swing, -0.5, 14), 6, _darker(SHIRT, shade))
            if side == -1:
                self.limb([hip, shoulder], 14, SHIRT)
        self.limb([shoulder, (x + 3, GROUND - 74)], 6, SKIN)
        self.disc((x + 3, GROUND - 82), 9, SKIN)
        self.disc((x, GROUND - 86), 8, DARK)


def _darker(color: tuple[int, int, int], fraction: float) -> tuple[int, int, int]:
    red, green, blue = color
    return int(fraction * red), int(fraction * green), int(fraction * blue)


def _bent(start: Point, angle: float, bend: float, length: float) -> list[Point]:
    """Two parts of a limb that hangs from `start` at `angle`; the second one is rotated back by `bend`."""
    x, y = start
    middle = (x + length * np.sin(angle), y + length * np.cos(angle))
    end = (middle[0] + length * np.sin(angle - bend), middle[1] + length * np.cos(angle - bend))
    return [start, middle, end]


def street_clip() -> Tensor:
    """(3, T, H, W) uint8: a person and a car cross a street, the camera adds noise."""
    camera_noise = np.random.default_rng(0)
    frames = []
    for number in range(FRAMES):
        scene = Scene()
        scene.street()
        scene.walker(54 + 9.5 * number, 0.9 * number)
        scene.car(316 - 17 * number)
        frame = np.asarray(scene.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS), dtype=np.float64)
        frames.append((frame + 1.5 * camera_noise.standard_normal(frame.shape)).clip(0, 255))
    return torch.from_numpy(np.stack(frames).astype(np.uint8)).permute(3, 0, 1, 2)


def main() -> None:
    strategy = RedundancyRobust(keep_ratio=0.15, visible_ratio=None)
    masks = apply_strategies(street_clip(), [(strategy.strategy, strategy)], embed=NO_MODEL, seed=0)
    frames, kept, importance = make_figure_rows(masks)
    path = Path(__file__).with_name("hero.png")
    rows = [frames, importance, kept]
    draw_rows(path, rows, num_time_indices=masks[0].grid.t, title="tokens that change most are kept")
    with Image.open(path) as image:  # small enough for a repository
        image.convert("RGB").quantize(256, kmeans=1).save(path, optimize=True)


if __name__ == "__main__":
    main()
