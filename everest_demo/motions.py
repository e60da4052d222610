"""The video set that `everest demo` renders: clips that differ only in how a shape moves.

Position and size of the moving shape have one distribution in all classes at all times (a shape that grows
too large becomes small again), so no single frame reveals the class. Many clips are unlabeled and few are
labeled: in this case pre-training pays.

n clips, F frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from everest_demo.rendering import RADIUS, SIZE, Paths, RenderedSet, render


@dataclass(frozen=True, kw_only=True)
class Motion:
    """The motion of a class's shape; unset fields mean no motion of that kind.

    Args:
        heading: in eighths of a turn, from the x axis towards the bottom of the image; None: random.
        speed: in the first and in the second half of a clip, as factors of the clip's random speed.
        turn: 1 clockwise, -1 counterclockwise.
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
    "counterclockwise": Motion(turn=-1),
    "growing": Motion(growth=1),
    "shrinking": Motion(growth=-1),
    "speeding-up": Motion(speed=(0.0, 2.0)),
    "slowing-down": Motion(speed=(2.0, 0.0)),
}
CLASSES: Final = tuple(MOTIONS)
NUM_FRAMES: Final = 12  # more than a training clip's 8: the start of a clip is random

_SPEED: Final = (1.5, 2.5)  # pixels a frame: 12 to 20 in a clip of 8 frames
_HEADING_JITTER: Final = 0.25  # radians to either side of the class's heading
_TURN: Final = (0.3, 0.5)  # radians a frame
_GROWTH: Final = (0.06, 0.09)  # of the logarithm of the radius, a frame


def render_clips(classes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Render a clip (n, F, H, W, 3) for each entry of `classes` (n,), an index in CLASSES."""
    return render(paths_of(classes, rng), rng)


def paths_of(classes: NDArray[np.int64], rng: np.random.Generator) -> Paths:
    """The paths of n shapes in NUM_FRAMES frames."""
    motions = [MOTIONS[CLASSES[c]] for c in classes]
    n, frame = len(motions), np.arange(NUM_FRAMES)
    sampled = rng.integers(0, 8, n)
    heading = np.array([d if m.heading is None else m.heading for m, d in zip(motions, sampled, strict=True)])
    angle = heading * (np.pi / 4) + rng.uniform(-_HEADING_JITTER, _HEADING_JITTER, n)
    halves = np.array([m.speed for m in motions])  # (n, 2)
    speed = rng.uniform(*_SPEED, (n, 1)) * halves[:, 2 * frame // NUM_FRAMES]  # (n, F)
    step = speed[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)[:, None]  # (n, F, 2)
    turn = np.array([m.turn for m in motions]) * rng.uniform(*_TURN, n)
    growth = np.array([m.growth for m in motions]) * rng.uniform(*_GROWTH, n)
    smallest, largest = np.log(RADIUS)
    size = rng.uniform(0, largest - smallest, (n, 1)) + growth[:, None] * frame
    return Paths(
        centre=rng.uniform(0, SIZE, (n, 1, 2)) + np.cumsum(step, axis=1),
        turn=rng.uniform(0, 2 * np.pi, (n, 1)) + turn[:, None] * frame,
        radius=np.exp(smallest + size % (largest - smallest)),
    )


DEMO_SET: Final = RenderedSet(
    classes=CLASSES,
    num_frames=NUM_FRAMES,
    render=render_clips,
    pretrain=2048,
    train_per_class=6,
    test_per_class=50,
)
