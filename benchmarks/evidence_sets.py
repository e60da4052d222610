"""The sets of videos of the evidence that are not there already: rendered clips, and shaken copies.

The rendered set is as of `everest demo`, of another seed: the recipe `demo` was selected with seed 0.
`resting.csv` has other unlabeled clips, three times as long, whose shape moves in one third of the time.

Shaken copies of labeled clips simulate a hand-held camera: a window of three quarters of a frame starts in
the middle and moves by a random walk, the same for a clip in every call.

n clips, F or T frames, H W pixels.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from everest.video.reader import read_frames, video_info
from everest.video.writer import write_video
from everest_demo.event_pairs import event_set
from everest_demo.motions import DEMO_SET, NUM_FRAMES, paths_of
from everest_demo.rendering import render

SEED: Final = 1
LENGTH: Final = 3  # of a resting clip, in clips
RESTING: Final = "resting"
SIDE: Final = 96  # pixels of the shorter side before the window is cut
WINDOW: Final = 0.75  # of each side
STEP: Final = 1.5  # pixels a frame, standard deviation of each coordinate
SUFFIX: Final = "-shaken"
PARTS: Final = ("train", "val", "test")


def write_set(folder: Path, *, pretrain: int, test_per_class: int) -> None:
    """Write both sets below a folder: pretrain.csv, resting.csv, train.csv, test.csv, classes.txt."""
    replace(DEMO_SET, pretrain=pretrain, test_per_class=test_per_class).write(folder, seed=SEED)
    resting = replace(
        DEMO_SET,
        num_frames=LENGTH * NUM_FRAMES,
        render=_render_resting,
        pretrain=pretrain,
        train_per_class=0,
        test_per_class=0,
    )
    resting.write(folder / RESTING, seed=SEED)
    lines = (folder / RESTING / "pretrain.csv").read_text().splitlines()
    (folder / f"{RESTING}.csv").write_text("".join(f"{RESTING}/{line}\n" for line in lines))


def write_events(folder: Path, **sizes: int) -> None:
    """Write the set of LVMAE's demo; `sizes` replace its own."""
    replace(event_set(), **sizes).write(folder, seed=SEED)


def _render_resting(classes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Render clips (n, F, H, W, 3) whose shape rests before and after its motion."""
    paths = paths_of(classes, rng)
    first = rng.integers(0, (LENGTH - 1) * NUM_FRAMES + 1, (len(classes), 1))
    moment = np.clip(np.arange(LENGTH * NUM_FRAMES) - first, 0, NUM_FRAMES - 1)  # (n, F)
    centre = np.take_along_axis(paths.centre, moment[..., None], axis=1)  # (n, F, 2)
    turn, radius = (np.take_along_axis(values, moment, axis=1) for values in (paths.turn, paths.radius))
    return render(replace(paths, centre=centre, turn=turn, radius=radius), rng)


def shaken(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Cut a wandering window out of frames (T, H, W, 3) uint8; its sides are even."""
    height, width = (int(side * WINDOW) // 2 * 2 for side in frames.shape[1:3])
    room = np.array([frames.size(1) - height, frames.size(2) - width])
    places = wander(len(frames), room, rng)  # (T, 2)
    return torch.stack(
        [frame[y : y + height, x : x + width] for frame, (y, x) in zip(frames, places.tolist(), strict=True)]
    )


def wander(steps: int, room: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """A random walk (steps, 2) from the middle of the room, mirrored at its sides."""
    walk = room / 2 + rng.normal(0, STEP, (steps, 2)).cumsum(axis=0)
    folded = np.abs((walk - room) % (2 * room) - room)  # from 0 to room
    return folded.round().astype(np.int64)


def write_shaken(videos: Path, folder: Path, name: str) -> None:
    """Copy the clips of a labeled set, unless they are there, and write the lists of the copies."""
    for part in PARTS:
        rows = []
        for line in (videos / f"{name}_{part}.csv").read_text().splitlines():
            path, label = line.split(" ")
            copy = Path(f"{name}{SUFFIX}") / Path(path).with_suffix(".mp4")
            rows.append(f"{copy} {label}\n")
            if not (folder / copy).is_file():
                _write_copy(videos / path, folder / copy, seed=zlib.crc32(path.encode()))
        (folder / f"{name}{SUFFIX}_{part}.csv").write_text("".join(rows))


def _write_copy(clip: Path, copy: Path, *, seed: int) -> None:
    info = video_info(clip)
    frames = read_frames(clip, list(range(info.num_frames)))  # (T, H, W, 3)
    small = resize(frames.movedim(-1, 1), [SIDE], antialias=True).movedim(1, -1)
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = copy.with_suffix(".part.mp4")
    write_video(part, shaken(small, np.random.default_rng(seed)), round(info.fps or 25))
    part.replace(copy)
