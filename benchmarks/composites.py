"""Clips with a known moving object: a window into one real clip moves over a still image of another one.

The camera looks at this world: it rests, pans, zooms, turns, shakes, or the scene is cut. The object
moves in the world, so its mask is known in every frame.

T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from everest.video.reader import probe, read_frames

FRAMES: Final = 16
SIZE: Final = 112  # H and W
WORLD: Final = 1.4  # short side of the image, in sizes of the frame; images are wider than high
RADIUS: Final = (14.0, 22.0)  # pixels, of the object
SPEED: Final = (1.5, 3.0)  # pixels a frame, of the object in the world

# Of the camera, a frame: pixels, pixels of a random walk, percent, degrees; and whether half of the clip is
# another scene.
CAMERAS: Final[dict[str, dict[str, float]]] = {
    "still": {},
    "pan 1": {"pan": 1},
    "pan 2": {"pan": 2},
    "pan 4": {"pan": 4},
    "pan 8": {"pan": 8},
    "zoom 1 %": {"zoom": 1},
    "zoom 4 %": {"zoom": 4},
    "rotation 1": {"turn": 1},
    "shake": {"shake": 2},
    "parallax": {"pan": 2, "parallax": 1},
    "cut": {"cut": 1},
}


@dataclass(frozen=True, kw_only=True)
class Composite:
    """A clip, and the share of each pixel that the object covers."""

    frames: Tensor  # (T, H, W, 3) uint8
    mask: Tensor  # (T, H, W) bool


def make_composite(
    camera: str, images: Sequence[Path], objects: Sequence[Path], rng: np.random.Generator
) -> Composite:
    """Draw a image, an object and their motions, and render a clip."""
    settings = CAMERAS[camera]
    scenes = [_scene(settings, images, objects, rng) for _ in range(2 if "cut" in settings else 1)]
    if len(scenes) == 1:
        return scenes[0]
    half = FRAMES // 2
    first, second = scenes
    return Composite(
        frames=torch.cat([first.frames[:half], second.frames[half:]]),
        mask=torch.cat([first.mask[:half], second.mask[half:]]),
    )


def _scene(
    camera: dict[str, float], images: Sequence[Path], objects: Sequence[Path], rng: np.random.Generator
) -> Composite:
    image = _first_image(images[rng.integers(len(images))])
    content = _content(objects[rng.integers(len(objects))])
    matrices = _camera(camera, rng)  # (T, 2, 3): from a place in the frame to one in the world
    radius = float(rng.uniform(*RADIUS))
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(*SPEED)
    velocity = speed * np.array([np.cos(angle), np.sin(angle)])
    middle = matrices[FRAMES // 2, :, 2] + rng.uniform(-0.2, 0.2, 2) * SIZE
    centers = middle + velocity * (np.arange(FRAMES)[:, None] - FRAMES / 2)  # (T, 2), in the world
    places = _places(matrices)  # (T, H, W, 2), in the world
    frames = _sampled(image.expand(FRAMES, -1, -1, -1), places)
    if "parallax" in camera:  # the lower half is nearer: it moves twice as far
        near = _places(_scaled_motion(matrices, 2.0))
        lower = torch.arange(SIZE)[None, None, :, None] >= SIZE // 2
        frames = torch.where(lower, _sampled(image.flip(-1).expand(FRAMES, -1, -1, -1), near), frames)
    away = (places - torch.from_numpy(centers).float()[:, None, None]) / radius
    mask = away.norm(dim=-1) <= 1  # (T, H, W)
    inside = F.grid_sample(content, away, padding_mode="border", align_corners=False)
    frames = torch.where(mask[:, None], inside, frames)
    return Composite(frames=frames.round().clamp(0, 255).byte().movedim(1, -1), mask=mask)


def _first_image(path: Path) -> Tensor:
    """The first frame (3, h, w) float32, with the origin of the world in its middle."""
    frame = read_frames(path, [0])[0].movedim(-1, 0).float()
    return resize(frame, [round(WORLD * SIZE)], antialias=True)


def _content(path: Path) -> Tensor:
    """T frames (T, 3, h, w) float32 from the middle of a clip."""
    count = probe(path).frames
    first = max(0, (count - FRAMES) // 2)
    numbers = np.minimum(first + np.arange(FRAMES), count - 1)
    return resize(read_frames(path, numbers.tolist()).movedim(-1, 1).float(), [SIZE, SIZE], antialias=True)


def _camera(camera: dict[str, float], rng: np.random.Generator) -> NDArray[np.float64]:
    """The motion of the camera as affine matrices (T, 2, 3), from the frame to the world."""
    time = np.arange(FRAMES) - (FRAMES - 1) / 2
    heading = rng.choice([0.0, np.pi])  # images are wide: the camera pans to a side
    shift = camera.get("pan", 0) * time[:, None] * np.array([np.cos(heading), np.sin(heading)])
    if "shake" in camera:
        shift = shift + rng.normal(0, camera["shake"], (FRAMES, 2)).cumsum(axis=0)
        shift -= shift.mean(axis=0)
    scale = (1 + camera.get("zoom", 0) / 100) ** (time * rng.choice([-1, 1]))
    turn = np.deg2rad(camera.get("turn", 0)) * time * rng.choice([-1, 1])
    rotation = np.stack([np.cos(turn), -np.sin(turn), np.sin(turn), np.cos(turn)], axis=-1)  # (T, 4)
    linear = rotation.reshape(-1, 2, 2) * scale[:, None, None]
    return np.concatenate([linear, shift[..., None]], axis=-1)


def _scaled_motion(matrices: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    scaled = matrices.copy()
    scaled[..., 2] *= factor
    return scaled


def _places(matrices: NDArray[np.float64]) -> Tensor:
    """The place in the world of each pixel: (T, H, W, 2) float32, x before y."""
    side = torch.arange(SIZE, dtype=torch.float64) - (SIZE - 1) / 2
    y, x = torch.meshgrid(side, side, indexing="ij")
    ones = torch.stack([x, y, torch.ones_like(x)], dim=-1)  # (H, W, 3)
    return torch.einsum("tij,hwj->thwi", torch.from_numpy(matrices), ones).float()


def _sampled(image: Tensor, places: Tensor) -> Tensor:
    """(T, 3, H, W) of images (T, 3, h, w) at places of the world; outside, the image is mirrored."""
    height, width = image.shape[-2:]
    half = torch.tensor([width, height]) / 2
    return F.grid_sample(image, places / half, padding_mode="reflection", align_corners=False)
