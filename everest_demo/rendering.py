"""Labeled sets of rendered videos: a soft shape moves over a drifting texture while a second shape rests.

Form, color, size and rotation of the shapes and the texture are random and independent of the motion.
A shape that leaves the image on one side enters on the other side. A set on disk consists of H.264 files,
lists and class names.

n clips, F frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from everest.video.writer import write_video

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

SIZE: Final = 32  # H and W
RADIUS: Final = (4.5, 8.0)  # of a shape: the mean of its long and short radius

_STRETCH: Final = (0.45, 0.65)  # logarithm of the ratio of long to mean radius
_ROUNDNESS: Final = (1.0, 2.0, 6.0)  # exponents of a superellipse: diamond, ellipse, almost a rectangle
_EDGE: Final = 0.25  # softness of a shape's edge, in radii
_BACKGROUND: Final = (40, 90)  # color levels, each of red, green, blue
_MOVING: Final = (100, 230)
_RESTING: Final = (60, 170)
_TEXTURE: Final = (4, 24.0, (8.0, 30.0))  # gratings, their contrast in levels, their wavelengths in pixels
_DRIFT: Final = 3.0  # pixels that the texture moves in a clip, at most
FPS: Final = 12
_CHUNK: Final = 3072  # frames rendered at once: 38 MB of float32
_CRF: Final = 17  # keeps the texture


@dataclass(frozen=True, kw_only=True)
class Paths:
    """The position and look of a shape in each of the F frames of n clips."""

    centre: Doubles  # (n, F, 2) pixels, x before y
    turn: Doubles  # (n, F) radians
    radius: Doubles  # (n, F) pixels
    light: Doubles | float = 1.0  # (n, F): factor of the shape's color


def render(moving: Paths, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Render clips (n, F, H, W, 3) of shapes that take the given paths."""
    n, num_frames = moving.radius.shape
    frames = _texture(n, num_frames, rng)
    every_frame = np.ones((n, num_frames))
    resting = Paths(
        centre=rng.uniform(0, SIZE, (n, 1, 2)) * every_frame[..., None],
        turn=rng.uniform(0, 2 * np.pi, (n, 1)) * every_frame,
        radius=np.exp(rng.uniform(np.log(RADIUS[0]), np.log(RADIUS[1]), (n, 1))) * every_frame,
    )
    for colors, paths in ((_RESTING, resting), (_MOVING, moving)):
        alpha = _coverage(paths, rng)[..., None]  # (n, F, H, W, 1)
        light = np.broadcast_to(paths.light, (n, num_frames)).astype(np.float32)[..., None, None, None]
        frames = frames * (1 - alpha) + alpha * light * _color(colors, n, rng)
    return np.clip(frames, 0, 255).astype(np.uint8)


def _color(levels: tuple[int, int], n: int, rng: np.random.Generator) -> Floats:
    return rng.uniform(*levels, (n, 1, 1, 1, 3)).astype(np.float32)


def _texture(n: int, num_frames: int, rng: np.random.Generator) -> Floats:
    """Render a color under a few colored gratings that drift together: (n, F, H, W, 3)."""
    gratings, contrast, wavelengths = _TEXTURE
    heading = rng.uniform(0, 2 * np.pi, n)
    moved = rng.uniform(0, _DRIFT, (n, 1)) * np.linspace(0, 1, num_frames)  # (n, F) pixels
    x = np.arange(SIZE) - _per_pixel(moved * np.cos(heading)[:, None])  # (n, F, 1, W)
    y = np.arange(SIZE)[:, None] - _per_pixel(moved * np.sin(heading)[:, None])  # (n, F, H, 1)
    texture: Floats = _color(_BACKGROUND, n, rng)  # (n, 1, 1, 1, 3)
    for _ in range(gratings):
        turn, phase = rng.uniform(0, 2 * np.pi, (2, n, 1))
        shortest, longest = np.log(wavelengths)
        wavenumber = 2 * np.pi / np.exp(rng.uniform(shortest, longest, (n, 1)))
        along = _per_pixel(wavenumber * np.cos(turn)) * x + _per_pixel(wavenumber * np.sin(turn)) * y
        color = rng.normal(0, contrast / np.sqrt(gratings), (n, 1, 1, 1, 3)).astype(np.float32)
        grating = np.cos(along + _per_pixel(phase)).astype(np.float32)[..., None]
        texture = (texture + grating * color).astype(np.float32)
    return texture


def _coverage(paths: Paths, rng: np.random.Generator) -> Floats:
    """Return the fraction of each pixel that a shape covers: (n, F, H, W) in [0, 1]."""
    n = len(paths.radius)
    stretch = np.exp(rng.uniform(*_STRETCH, (n, 1)))
    roundness = _per_pixel(rng.choice(_ROUNDNESS, (n, 1)))
    away = np.arange(SIZE) + 0.5 - paths.centre[..., None]  # (n, F, 2, SIZE)
    away = ((away + SIZE / 2) % SIZE - SIZE / 2).astype(np.float32)  # the nearer way around
    x, y = away[:, :, 0, None, :], away[:, :, 1, :, None]  # (n, F, 1, W), (n, F, H, 1)
    cos, sin = _per_pixel(np.cos(paths.turn)), _per_pixel(np.sin(paths.turn))
    across = np.abs(cos * x + sin * y) / _per_pixel(paths.radius * stretch)  # (n, F, H, W)
    along = np.abs(cos * y - sin * x) / _per_pixel(paths.radius / stretch)
    reach = (across**roundness + along**roundness) ** (1 / roundness)  # 1 on the shape's edge
    outside = np.minimum((reach - 1) * (2 / _EDGE), 30)
    return (1 / (1 + np.exp(outside))).astype(np.float32)


def _per_pixel(values: NDArray[np.float64]) -> Floats:
    """(n, F) or (n, 1) to (n, F or 1, 1, 1) float32."""
    return values.astype(np.float32)[:, :, None, None]


@dataclass(frozen=True, kw_only=True)
class RenderedSet:
    """The contents and the size of a rendered set.

    Args:
        render: makes one clip for each entry of an array (n,) of numbers in `classes`: (n, F, H, W, 3) uint8.
        pretrain: unlabeled clips, equally many of each class.
    """

    classes: tuple[str, ...]
    num_frames: int
    render: Callable[[NDArray[np.int64], np.random.Generator], NDArray[np.uint8]]
    pretrain: int
    train_per_class: int
    test_per_class: int

    def write(self, root: Path, *, seed: int = 0) -> None:
        """Write `videos/*.mp4`, `pretrain.csv`, `train.csv`, `test.csv` and `classes.txt` under `root`.

        The lists hold `path label` lines, paths relative to `root`. In `pretrain.csv` every label
        is 0. File names are numbers in the order of writing.
        """
        (root / "videos").mkdir(parents=True, exist_ok=True)
        (root / "classes.txt").write_text("".join(f"{name}\n" for name in self.classes), "utf-8")
        sizes = {
            "pretrain": self.pretrain,
            "train": self.train_per_class * len(self.classes),
            "test": self.test_per_class * len(self.classes),
        }
        first = 0
        for (split, count), source in zip(sizes.items(), np.random.SeedSequence(seed).spawn(3), strict=True):
            rng = np.random.default_rng(source)
            classes = rng.permutation(np.arange(count) % len(self.classes))
            names = [f"videos/{first + i:05d}.mp4" for i in range(count)]
            self._write_videos(root, names, classes, rng)
            labels = ["0"] * count if split == "pretrain" else [self.classes[c] for c in classes]
            rows = (f"{name} {label}\n" for name, label in zip(names, labels, strict=True))
            (root / f"{split}.csv").write_text("".join(rows), "utf-8")
            first += count

    def _write_videos(
        self, root: Path, names: Sequence[str], classes: NDArray[np.int64], rng: np.random.Generator
    ) -> None:
        """Render and write in chunks, so that memory does not grow with the set; one keyframe per clip."""
        at_once = max(1, _CHUNK // self.num_frames)
        for start in range(0, len(names), at_once):
            chunk = slice(start, start + at_once)
            for name, clip in zip(names[chunk], self.render(classes[chunk], rng), strict=True):
                write_video(root / name, torch.from_numpy(clip), FPS, crf=_CRF, gop=self.num_frames)
