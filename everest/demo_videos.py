"""The video set that `everest demo` renders: clips told apart by how a shape moves, and by nothing else.

A soft shape of random form, colour, size and turn moves over a texture that drifts; a second, often dimmer,
stands still. What leaves the picture on one side comes in on the other, and what grows too large comes in
small, so place and size of the moving shape have one distribution in all classes at all times: no single
frame tells the class. Many clips carry no label and few do: what pre-training on the many is worth shows in
the few.

n clips, F frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from everest.data.video import write_video

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Motion:
    """What the shape of a class does; what is not said, it does not do.

    Args:
        heading: from the x axis towards the bottom of the picture, where y grows, in eighths of a turn;
            None: drawn for every clip.
        speed: in the first and in the second half of a clip, in shares of the speed drawn for it.
        turn: 1 clockwise, -1 anticlockwise.
        growth: 1 grows, -1 shrinks.
    """

    heading: int | None = None
    speed: tuple[float, float] = (0.0, 0.0)
    turn: int = 0
    growth: int = 0


_STEADY: Final = (1.0, 1.0)
MOTIONS: Final = {
    "right": Motion(heading=0, speed=_STEADY),
    "down": Motion(heading=2, speed=_STEADY),
    "left": Motion(heading=4, speed=_STEADY),
    "up": Motion(heading=6, speed=_STEADY),
    "clockwise": Motion(turn=1),
    "anticlockwise": Motion(turn=-1),
    "growing": Motion(growth=1),
    "shrinking": Motion(growth=-1),
    "speeding-up": Motion(speed=(0.0, 2.0)),
    "slowing-down": Motion(speed=(2.0, 0.0)),
}
CLASSES: Final = tuple(MOTIONS)
SIZE: Final = 32  # H and W
NUM_FRAMES: Final = 12  # more than a clip's 8: where a clip starts is left to chance
FPS: Final = 12

_SPEED: Final = (1.5, 2.5)  # pixels a frame: 12 to 20 in a clip of 8 frames
_HEADING_JITTER: Final = 0.25  # radians to either side of the class's heading
_TURN: Final = (0.3, 0.5)  # radians a frame
_GROWTH: Final = (0.06, 0.09)  # of the logarithm of the radius, a frame
_RADIUS: Final = (4.5, 8.0)
_STRETCH: Final = (0.45, 0.65)  # logarithm of the long radius over the mean one
_ROUNDNESS: Final = (1.0, 2.0, 6.0)  # exponents of a superellipse: diamond, ellipse, almost a rectangle
_EDGE: Final = 0.25  # softness of a shape's edge, in radii
_BACKGROUND: Final = (40, 90)  # colour levels, each of red, green, blue
_MOVING: Final = (100, 230)
_STILL: Final = (60, 170)
_TEXTURE: Final = (4, 24.0, (8.0, 30.0))  # gratings, their contrast in levels, their wavelengths in pixels
_DRIFT: Final = 0.25  # largest speed of the texture, in pixels a frame
_CHUNK: Final = 256  # clips rendered at once: 38 MB of float32
_CRF: Final = 17  # keeps the texture


def render_demo_set(
    root: Path, *, seed: int = 0, pretrain: int = 2048, train_per_class: int = 8, test_per_class: int = 50
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
    frames = _texture(n, rng)
    still = [Motion()] * n
    for colours, motions in ((_STILL, still), (_MOVING, [MOTIONS[CLASSES[c]] for c in classes])):
        alpha = _coverage(_paths(motions, rng), rng)[..., None]  # (n, F, H, W, 1)
        frames = frames * (1 - alpha) + alpha * _colour(colours, n, rng)
    return np.clip(frames, 0, 255).astype(np.uint8)


def _colour(levels: tuple[int, int], n: int, rng: np.random.Generator) -> Floats:
    return rng.uniform(*levels, (n, 1, 1, 1, 3)).astype(np.float32)


def _texture(n: int, rng: np.random.Generator) -> Floats:
    """A colour under a few coloured gratings, which drift together: (n, F, H, W, 3)."""
    gratings, contrast, wavelengths = _TEXTURE
    drift, heading = rng.uniform(0, _DRIFT, n), rng.uniform(0, 2 * np.pi, n)
    moved = (drift * np.arange(NUM_FRAMES)[:, None]).T  # (n, F) pixels
    x = np.arange(SIZE) - _per_pixel(moved * np.cos(heading)[:, None])  # (n, F, 1, W)
    y = np.arange(SIZE)[:, None] - _per_pixel(moved * np.sin(heading)[:, None])  # (n, F, H, 1)
    picture = _colour(_BACKGROUND, n, rng)  # (n, 1, 1, 1, 3)
    for _ in range(gratings):
        turn, phase = rng.uniform(0, 2 * np.pi, (2, n, 1))
        shortest, longest = np.log(wavelengths)
        wavenumber = 2 * np.pi / np.exp(rng.uniform(shortest, longest, (n, 1)))
        along = _per_pixel(wavenumber * np.cos(turn)) * x + _per_pixel(wavenumber * np.sin(turn)) * y
        colour = rng.normal(0, contrast / np.sqrt(gratings), (n, 1, 1, 1, 3)).astype(np.float32)
        picture = picture + np.cos(along + _per_pixel(phase)).astype(np.float32)[..., None] * colour
    return picture


@dataclass(frozen=True, kw_only=True)
class _Paths:
    """Where the shapes of n clips are in their F frames."""

    centre: NDArray[np.float64]  # (n, F, 2) pixels, x before y
    turn: NDArray[np.float64]  # (n, F) radians
    radius: NDArray[np.float64]  # (n, F) pixels


def _paths(motions: Sequence[Motion], rng: np.random.Generator) -> _Paths:
    n, frame = len(motions), np.arange(NUM_FRAMES)
    drawn = rng.integers(0, 8, n)
    heading = np.array([d if m.heading is None else m.heading for m, d in zip(motions, drawn, strict=True)])
    angle = heading * (np.pi / 4) + rng.uniform(-_HEADING_JITTER, _HEADING_JITTER, n)
    halves = np.array([m.speed for m in motions])  # (n, 2)
    speed = rng.uniform(*_SPEED, (n, 1)) * halves[:, 2 * frame // NUM_FRAMES]  # (n, F)
    step = speed[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)[:, None]  # (n, F, 2)
    turn = np.array([m.turn for m in motions]) * rng.uniform(*_TURN, n)
    growth = np.array([m.growth for m in motions]) * rng.uniform(*_GROWTH, n)
    smallest, largest = np.log(_RADIUS)
    size = rng.uniform(0, largest - smallest, (n, 1)) + growth[:, None] * frame
    return _Paths(
        centre=rng.uniform(0, SIZE, (n, 1, 2)) + np.cumsum(step, axis=1),
        turn=rng.uniform(0, 2 * np.pi, (n, 1)) + turn[:, None] * frame,
        radius=np.exp(smallest + size % (largest - smallest)),
    )


def _coverage(paths: _Paths, rng: np.random.Generator) -> Floats:
    """How much of each pixel a shape covers: (n, F, H, W) in [0, 1]."""
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


def _write_list(path: Path, names: Sequence[str], labels: Sequence[str]) -> None:
    path.write_text("".join(f"{name} {label}\n" for name, label in zip(names, labels, strict=True)))
