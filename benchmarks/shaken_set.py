"""Copies labeled clips with a simulated hand-held camera: a window that wanders over the frames.

    python benchmarks/shaken_set.py VIDEOS FOLDER surveillance2 weizmann10

The window has three quarters of a frame. It starts in the middle and moves by a random walk, the same for a
clip in every call. Lists are named `NAME-shaken_PART.csv`.

T frames, H W pixels.
"""

from __future__ import annotations

import argparse
import csv
import zlib
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from everest.video.reader import probe, read_frames
from everest.video.writer import write_video

SIDE: Final = 96  # pixels of the shorter side before the window is cut
WINDOW: Final = 0.75  # of each side
STEP: Final = 1.5  # pixels a frame, standard deviation of each coordinate
SUFFIX: Final = "-shaken"
PARTS: Final = ("train", "val", "test")


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
    """Copy all lists of a labeled set; clips that are there are left as they are."""
    for part in PARTS:
        copy_list(videos, folder, name, part)


def copy_list(videos: Path, folder: Path, name: str, part: str) -> None:
    """Copy the clips of a list, and write the list of the copies."""
    rows = []
    with (videos / f"{name}_{part}.csv").open() as file:
        for path, label in csv.reader(file, delimiter=" "):
            copy = Path(f"{name}{SUFFIX}") / Path(path).with_suffix(".mp4")
            rows.append(f"{copy} {label}\n")
            if (folder / copy).is_file():
                continue
            info = probe(videos / path)
            frames = read_frames(videos / path, list(range(info.frames)))  # (T, H, W, 3)
            small = resize(frames.movedim(-1, 1), [SIDE], antialias=True).movedim(1, -1)
            (folder / copy).parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(zlib.crc32(path.encode()))
            part_file = (folder / copy).with_suffix(".part.mp4")
            write_video(part_file, shaken(small, rng), round(info.fps or 25))
            part_file.replace(folder / copy)
    (folder / f"{name}{SUFFIX}_{part}.csv").write_text("".join(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+", help="of labeled sets")
    arguments = parser.parse_args()
    for name in arguments.names:
        write_shaken(arguments.videos, arguments.folder, name)


if __name__ == "__main__":
    main()
