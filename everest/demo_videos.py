"""The video set that `everest demo` renders: clips told apart by where a shape moves, and by nothing else.

A soft shape of random form, colour, size and turn drifts over a still texture; a second, often dimmer, stands
still. What leaves the picture on one side comes in on the other, so the place of the moving shape is uniform
at every time and no single frame tells the class. Many clips carry no label and few do: what pre-training on
the many is worth shows in the few.

n clips, F frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from everest.data.video import write_video

Floats = NDArray[np.float32]

# Angles count from the x axis towards the bottom of the picture, where y grows; one eighth of a turn each.
CLASSES: Final = ("right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right")
SIZE: Final = 32  # H and W
NUM_FRAMES: Final = 12  # more than a clip's 8: where a clip starts is left to chance
FPS: Final = 12

_SPEED: Final = (1.5, 2.5)  # pixels a frame: 12 to 20 in a clip of 8 frames
_ANGLE_JITTER: Final = 0.1  # radians to either side of the class's direction
_RADIUS: Final = (5.0, 7.0)
_ROUNDNESS: Final = (1.0, 2.0, 6.0)  # exponents of a superellipse: diamond, ellipse, almost a rectangle
_EDGE: Final = 0.25  # softness of a shape's edge, in radii
_BACKGROUND: Final = (40, 90)  # colour levels, each of red, green, blue
_MOVING: Final = (100, 230)
_STILL: Final = (60, 170)
_TEXTURE: Final = (4, 24.0, (8.0, 30.0))  # gratings, their contrast in levels, their wavelengths in pixels
_CHUNK: Final = 256  # clips rendered at once: 38 MB of float32
_CRF: Final = 17  # keeps the texture


def render_demo_set(
    root: Path, *, seed: int = 0, pretrain: int = 2048, train_per_class: int = 4, test_per_class: int = 50
) -> None:
    """Write `videos/*.mp4`, `pretrain.csv`, `train.csv`, `test.csv` and `classes.txt` under `root`.

    The lists hold `path label` lines, paths relative to `root`. The clips of `pretrain.csv` move in all
    directions alike but do not say so: their label is 0. File names are numbers in the order of writing.
    """
    (root / "videos").mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    sizes = {
        "pretrain": pretrain,
        "train": train_per_class * len(CLASSES),
        "test": test_per_class * len(CLASSES),
    }
    first = 0
    for (split, count), source in zip(sizes.items(), np.random.SeedSequence(seed).spawn(3), strict=True):
        rng = np.random.default_rng(source)
        classes = rng.permutation(np.arange(count) % len(CLASSES))
        names = [f"videos/{first + i:05d}.mp4" for i in range(count)]
        for start in range(0, count, _CHUNK):
            stop = start + _CHUNK
            for name, clip in zip(names[start:stop], render_clips(classes[start:stop], rng), strict=True):
                write_video(root / name, torch.from_numpy(clip), FPS, crf=_CRF, gop=NUM_FRAMES)
        labels = ["0"] * count if split == "pretrain" else [CLASSES[c] for c in classes]
        _write_list(root / f"{split}.csv", names, labels)
        first += count


def render_clips(classes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """One clip for each entry of `classes` (n,), a number in CLASSES: (n, F, H, W, 3)."""
    n = len(classes)
    angle = classes * (2 * np.pi / len(CLASSES)) + rng.uniform(-_ANGLE_JITTER, _ANGLE_JITTER, n)
    speed = rng.uniform(*_SPEED, n)
    velocity = np.stack([speed * np.cos(angle), speed * np.sin(angle)], axis=-1)  # (n, 2), x before y
    frames = _texture(n, rng)[:, None]  # (n, 1, H, W, 3)
    for colours, moves in ((_STILL, 0 * velocity), (_MOVING, velocity)):
        alpha = _shape(moves, rng)[..., None]  # (n, F, H, W, 1)
        frames = frames * (1 - alpha) + alpha * _colour(colours, n, rng)
    return np.clip(frames, 0, 255).astype(np.uint8)


def _colour(levels: tuple[int, int], n: int, rng: np.random.Generator) -> Floats:
    return rng.uniform(*levels, (n, 1, 1, 1, 3)).astype(np.float32)


def _texture(n: int, rng: np.random.Generator) -> Floats:
    """A colour under a few coloured gratings: (n, H, W, 3)."""
    gratings, contrast, wavelengths = _TEXTURE
    along = np.arange(SIZE, dtype=np.float32)
    picture = _colour(_BACKGROUND, n, rng)[:, 0]  # (n, 1, 1, 3)
    for _ in range(gratings):
        turn, phase = rng.uniform(0, 2 * np.pi, (2, n, 1, 1)).astype(np.float32)
        shortest, longest = np.log(wavelengths)
        wavenumber = (2 * np.pi / np.exp(rng.uniform(shortest, longest, (n, 1, 1)))).astype(np.float32)
        place = np.cos(turn) * along[None, :] + np.sin(turn) * along[:, None]  # (n, H, W)
        colour = rng.normal(0, contrast / np.sqrt(gratings), (n, 1, 1, 3)).astype(np.float32)
        picture = picture + np.cos(wavenumber * place + phase)[..., None] * colour
    return picture


def _shape(velocity: NDArray[np.float64], rng: np.random.Generator) -> Floats:
    """How much of each pixel a shape covers, moving by `velocity` (n, 2): (n, F, H, W) in [0, 1]."""
    n = len(velocity)
    start = rng.uniform(0, SIZE, (n, 2))
    turn = rng.uniform(0, 2 * np.pi, n)
    radius = rng.uniform(*_RADIUS, n)
    stretch = np.exp(rng.uniform(-0.25, 0.25, n))
    roundness = _per_pixel(rng.choice(_ROUNDNESS, n))
    centre = start[:, None] + velocity[:, None] * np.arange(NUM_FRAMES)[:, None]  # (n, F, 2)
    away = np.arange(SIZE) + 0.5 - centre[..., None]  # (n, F, 2, SIZE)
    away = ((away + SIZE / 2) % SIZE - SIZE / 2).astype(np.float32)  # the nearer way around
    x, y = away[:, :, 0, None, :], away[:, :, 1, :, None]  # (n, F, 1, W), (n, F, H, 1)
    cos, sin = _per_pixel(np.cos(turn)), _per_pixel(np.sin(turn))
    across = np.abs(cos * x + sin * y) / _per_pixel(radius * stretch)  # (n, F, H, W)
    along = np.abs(cos * y - sin * x) / _per_pixel(radius / stretch)
    reach = (across**roundness + along**roundness) ** (1 / roundness)  # 1 on the shape's edge
    outside = np.minimum((reach - 1) * (2 / _EDGE), 30)
    return (1 / (1 + np.exp(outside))).astype(np.float32)


def _per_pixel(values: NDArray[np.float64]) -> Floats:
    """(n,) to (n, 1, 1, 1) float32."""
    return values.astype(np.float32)[:, None, None, None]


def _write_list(path: Path, names: Sequence[str], labels: Sequence[str]) -> None:
    path.write_text("".join(f"{name} {label}\n" for name, label in zip(names, labels, strict=True)))
