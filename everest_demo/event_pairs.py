"""The video set of `everest demo --recipe lvmae-demo`: classes are ordered pairs of distant events.

A shape moves, grows or fades in the first quarter of a clip, and does another of these in the last quarter:
the class is the two events and their order. More frames are between them than a short clip has: a model
that sees a single event knows the event but not its time.

n clips, F frames, H W pixels.
"""

from __future__ import annotations

from functools import partial
from itertools import permutations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from everest_demo.rendering import RADIUS, SIZE, Doubles, Paths, RenderedSet, render

EVENTS: Final = ("moves", "grows", "fades")
ORDERS: Final = tuple(permutations(EVENTS, 2))
CLASSES: Final = tuple(f"{first}-then-{second}" for first, second in ORDERS)
NUM_FRAMES: Final = 64

_DURATION: Final = 8  # frames of an event
_BEGINS: Final = ((2, 8), (48, 54))  # range of the first frame of either event: 32 frames or more between
_DISTANCE: Final = (8.0, 14.0)  # pixels
_GROWTH: Final = (0.4, 0.6)  # of the logarithm of the radius
_FADE: Final = (-0.8, -0.6)  # of the light


def render_clips(
    classes: NDArray[np.int64], rng: np.random.Generator, *, num_frames: int = NUM_FRAMES
) -> NDArray[np.uint8]:
    """Render a clip (n, F, H, W, 3) for each entry of `classes` (n,), an index in CLASSES.

    Args:
        num_frames: F; with more frames the same events are slower.
    """
    return render(event_paths(classes, rng, num_frames=num_frames), rng)


def event_paths(
    classes: NDArray[np.int64], rng: np.random.Generator, *, num_frames: int = NUM_FRAMES
) -> Paths:
    """Draw the path of the shape in each clip."""
    n, done = len(classes), _progress(classes, rng, num_frames)
    heading = rng.uniform(0, 2 * np.pi, (n, 1))
    distance = rng.uniform(*_DISTANCE, (n, 1)) * done["moves"]  # (n, F) pixels
    smallest, largest = np.log(RADIUS)
    size = rng.uniform(smallest, (smallest + largest) / 2, (n, 1))
    return Paths(
        centre=rng.uniform(0, SIZE, (n, 1, 2))
        + np.stack([distance * np.cos(heading), distance * np.sin(heading)], -1),
        turn=rng.uniform(0, 2 * np.pi, (n, 1)) * np.ones(num_frames),
        radius=np.exp(size + _there_and_back(done["grows"], _GROWTH, rng)),
        light=1 + _there_and_back(done["fades"], _FADE, rng),
    )


def _progress(classes: NDArray[np.int64], rng: np.random.Generator, num_frames: int) -> dict[str, Doubles]:
    """Return the progress (n, F) of each event: 0 before it, 1 after it; always 0 in classes without it."""
    n = len(classes)
    moments = np.arange(num_frames) * (NUM_FRAMES / num_frames)
    done = {event: np.zeros((n, num_frames)) for event in EVENTS}
    for turn, (low, high) in enumerate(_BEGINS):
        progress = np.clip((moments - rng.integers(low, high, (n, 1))) / _DURATION, 0, 1)
        for event, fractions in done.items():
            has_event = np.array([ORDERS[c][turn] == event for c in classes])
            fractions[has_event] = progress[has_event]
    return done


def _there_and_back(progress: Doubles, height: tuple[float, float], rng: np.random.Generator) -> Doubles:
    """Return (n, F): up to a random height in the middle of the event, and down again."""
    return rng.uniform(*height, (len(progress), 1)) * np.sin(np.pi * progress)


def event_set(num_frames: int = NUM_FRAMES) -> RenderedSet:
    """Return the demo's set; with more frames the same events are slower."""
    return RenderedSet(
        classes=CLASSES,
        num_frames=num_frames,
        render=partial(render_clips, num_frames=num_frames),
        pretrain=512,
        train_per_class=12,
        test_per_class=40,
    )
