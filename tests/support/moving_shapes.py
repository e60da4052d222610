"""Clips for a tokenizer: a shape that moves over a noisy texture, another that stands still, some slow pans.

n clips, F frames, H W pixels.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from everest.video.writer import write_video

Floats = NDArray[np.float32]

SIZE = 32
PANNED = 0.3  # of the clips: the camera moves slowly
NOISE = 2.0  # levels, new in every frame


def render_shapes(count: int, rng: np.random.Generator, *, frames: int = 16) -> NDArray[np.uint8]:
    """(n, F, H, W, 3); shapes and texture go around the edges of the picture."""
    times = np.arange(frames)
    pan = (rng.random(count) < PANNED)[:, None] * rng.uniform(-0.5, 0.5, (count, 2))
    angle = rng.uniform(0, 2 * np.pi, count)
    motion = rng.uniform(1.0, 2.0, (count, 1)) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    clips = np.stack([_rolled(_texture(rng), times[:, None] * step) for step in pan])
    for velocity in (pan, motion):
        centre = rng.uniform(0, SIZE, (count, 1, 2)) + velocity[:, None] * times[:, None]  # (n, F, 2)
        radius, colour = rng.uniform(3.5, 5.5, count), rng.uniform(90, 240, (count, 1, 1, 1, 3))
        cover = _disc(centre, radius)[..., None]
        clips = clips * (1 - cover) + cover * colour
    clips += rng.normal(0, NOISE, clips.shape)
    return np.clip(clips, 0, 255).astype(np.uint8)


def write_shapes(root: Path, *, train: int, test: int, seed: int = 0) -> None:
    """Write videos of 16 frames, `train.csv` and `test.csv` below `root`."""
    rng = np.random.default_rng(seed)
    for name, count in (("train", train), ("test", test)):
        rows = []
        for number, clip in enumerate(render_shapes(count, rng)):
            rows.append(f"{name}{number:04d}.mp4 0\n")
            write_video(root / rows[-1].split()[0], torch.from_numpy(clip), 12, crf=12)
        (root / f"{name}.csv").write_text("".join(rows))


def _texture(rng: np.random.Generator) -> Floats:
    """(H, W, 3): soft coloured spots under fine grey ones."""
    spots = torch.from_numpy(rng.normal(110, 30, (1, 3, 6, 6)))
    soft = F.interpolate(spots, size=(SIZE, SIZE), mode="bicubic")[0].permute(1, 2, 0).numpy()
    return soft + rng.normal(0, 6, (SIZE, SIZE, 1))


def _rolled(picture: Floats, shifts: Floats) -> Floats:
    """(F, H, W, 3): the picture moved by each of the shifts (F, 2), x before y, in whole pixels."""
    return np.stack([np.roll(picture, (round(y), round(x)), (0, 1)) for x, y in shifts])


def _disc(centre: Floats, radius: Floats) -> Floats:
    """(n, F, H, W) in [0, 1]: how much of each pixel is covered, around centres (n, F, 2)."""
    away = (np.arange(SIZE) + 0.5 - centre[..., None] + SIZE / 2) % SIZE - SIZE / 2  # (n, F, 2, SIZE)
    distance = np.hypot(away[:, :, 0, None, :], away[:, :, 1, :, None])
    return np.clip(radius[:, None, None, None] + 0.5 - distance, 0, 1)
