"""Real clips, decoded once and kept as bytes on a device, where views are cropped, mirrored and resized.

    python benchmarks/gpu_clips.py VIDEOS FOLDER

copies the clips that `gpu_real.py` reads from a folder with `actions`, `lips` and `more` (38 MB), without the
clips of any test list.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from held_out_clips import FOLDS, LETTERS, SETS, Clips
from numpy.typing import NDArray
from torch import Tensor

from everest.config.settings import Recipe
from everest.data.crops import Box, Size, center_box, covering_size, multi_scale_crop, random_resized_crop
from everest.data.frames import find_sampling
from everest.data.randomness import Purpose, generator_at
from everest.video.reader import read_frames, video_info

# Which division of the groups into thirds; see Clips.held_out. Each third of tennis7 has clips of all classes
# in this one, the first of a thousand with the most clips of the rarest.
PARTITION: Final = {"tennis7": 77}
MORE: Final = ("mouse", "robot")
SIMULATED: Final = "cameramotion8"  # made of the frames of other clips
LABELED: Final = (*(name for name in SETS if name != SIMULATED), LETTERS)
AT_ONCE: Final = 256  # clips, of which the positions of all pixels are in memory without compilation


class Listed(NamedTuple):
    """A clip of a list."""

    path: str
    label: int
    group: str
    is_known: bool  # False: held out, for testing


class Lists:
    """The clips of the training and validation lists, and which of them are held out.

    Args:
        fold: which third of the groups is held out: 0, 1 or 2.
    """

    def __init__(self, videos: Path, recipe: Recipe, fold: int = 0) -> None:
        self.sets: dict[str, list[Listed]] = {}
        self.unlabeled = [str(path) for path in sorted((videos / "lips" / "unlabeled").glob("*.mp4"))]
        for folder in ("actions", "lips"):
            clips = Clips(videos / folder, recipe)
            for name in (name for name in clips.sets if name in LABELED):
                held_out = clips.held_out(FOLDS * PARTITION.get(name, 0) + fold, name)
                self.sets[name] = [
                    Listed(str(videos / folder / path), label, group, not out)
                    for (path, label, group), out in zip(clips.rows(name), held_out, strict=True)
                ]
        for name, part in ((name, part) for name in MORE for part in ("train", "val")):
            lines = (videos / "more" / f"{name}_{part}.csv").read_text().splitlines()
            self.unlabeled += [str(videos / "more" / line.rsplit(" ", 1)[0]) for line in lines]

    @property
    def for_pretraining(self) -> list[str]:
        """The paths of all clips of groups that are not held out."""
        known = [clip.path for clips in self.sets.values() for clip in clips if clip.is_known]
        return [*known, *self.unlabeled]

    @property
    def all(self) -> list[str]:
        return [*(clip.path for clips in self.sets.values() for clip in clips), *self.unlabeled]


@dataclass(frozen=True)
class Frames:
    """The frames of clips of any size, one after the other.

    Attributes:
        pixels: bytes of all frames, RGB.
        first: (N,) where the first frame of each clip begins.
        sizes: (N, 3) number of frames, height and width.
        index: the number of a clip by its path.
    """

    pixels: Tensor
    first: NDArray[np.int64]
    sizes: NDArray[np.int64]
    index: dict[str, int]

    @classmethod
    def read(cls, paths: Sequence[str], executor: Executor, file: Path) -> Frames:
        """Decode clips in the processes of an executor, into a file that other processes can map."""
        decoded = executor.map(_decode, paths, chunksize=16)
        sizes = []
        with file.open("wb") as out:
            for clip in decoded:
                sizes.append(clip.shape[:3])
                out.write(clip.tobytes())
        first = [0, *accumulate(3 * frames * height * width for frames, height, width in sizes)]
        index = {path: number for number, path in enumerate(paths)}
        pixels = torch.from_file(str(file), size=first[-1], dtype=torch.uint8)
        return cls(pixels, np.array(first[:-1]), np.array(sizes), index)

    def on(self, device: torch.device, paths: Iterable[str]) -> Frames:
        """The frames of the clips at `paths`, on a device."""
        chosen = list(dict.fromkeys(paths))
        numbers = [self.index[path] for path in chosen]
        lengths = 3 * self.sizes[numbers].prod(axis=1)
        parts = [
            self.pixels[start : start + length]
            for start, length in zip(self.first[numbers], lengths, strict=True)
        ]
        first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        index = {path: number for number, path in enumerate(chosen)}
        return Frames(torch.cat(parts).to(device), first, self.sizes[numbers], index)


def _decode(path: str) -> NDArray[np.uint8]:
    torch.set_num_threads(1)
    return read_frames(path, range(video_info(path).num_frames)).numpy()  # (F, H, W, 3)


class Choice(NamedTuple):
    """Frames and boxes of views, chosen by the host: B views of T frames."""

    clips: NDArray[np.int64]  # (B,)
    frames: NDArray[np.int64]  # (B, T)
    boxes: NDArray[np.int64]  # (B, 4): top, left, height, width
    flips: NDArray[np.bool_]  # (B,)


@dataclass(frozen=True, kw_only=True)
class PretrainingViews:
    """Chooses the views of the steps of pre-training, with the library's own windows and crops.

    Each frame of all clips is equally likely, so that a long clip is drawn more often. Views of a video that
    are compared have windows and crops of their own, and are all mirrored or none.
    """

    recipe: Recipe
    sizes: NDArray[np.int64]  # (N, 3), as of Frames
    batch: int

    def __call__(self, step: int) -> Choice:
        data, section = self.recipe.data, self.recipe.pretrain
        rng = generator_at(self.recipe.train.seed, Purpose.VIEWS, step)
        views = section.views_per_decode
        lengths = self.sizes[:, 0]
        videos = rng.choice(len(lengths), size=self.batch // views, p=lengths / lengths.sum())
        window = find_sampling(section.sampling).pretrain
        clips = np.repeat(videos, views)
        frames, boxes = [], []
        for length, *size in self.sizes[clips].tolist():
            frames.append(window(length, data.frames, section.stride, rng))
            boxes.append(multi_scale_crop((size[0], size[1]), data.frame_size, rng))
        flips = np.repeat(rng.random(len(videos)) < 0.5 * data.flip, views)
        return Choice(clips, np.stack(frames), np.array(boxes), flips)


def finetuning_views(
    recipe: Recipe, sizes: NDArray[np.int64], clips: NDArray[np.int64], rng: np.random.Generator
) -> Choice:
    """Choose a random view of each of the numbered clips."""
    data, section = recipe.data, recipe.finetune
    window = find_sampling(section.sampling).finetune
    frames, boxes = [], []
    for length, *size in sizes[clips].tolist():
        frames.append(window(length, data.frames, section.stride, rng))
        boxes.append(random_resized_crop((size[0], size[1]), data.frame_size, rng, areas=section.crop_area))
    return Choice(clips, np.stack(frames), np.array(boxes), rng.random(len(clips)) < 0.5 * data.flip)


def center_views(recipe: Recipe, sizes: NDArray[np.int64], clips: NDArray[np.int64]) -> Choice:
    """Choose the middle of each of the numbered clips, and the center of its frames."""
    data, section = recipe.data, recipe.finetune
    center = find_sampling(section.sampling).center
    frames, boxes = [], []
    for length, *size in sizes[clips].tolist():
        frames.append(center(length, data.frames, section.stride))
        boxes.append(_center((size[0], size[1]), data.frame_size))
    return Choice(clips, np.stack(frames), np.array(boxes), np.zeros(len(clips), dtype=bool))


def _center(frame: Size, target: Size) -> Box:
    """The box of a frame that covers the target, once resized."""
    covering = covering_size(frame, target)
    scale = frame[0] / covering[0]
    box = center_box(covering, target)
    return Box(*(round(scale * side) for side in box))


def to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """Copy without waiting for the device."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class Crops:
    """Cuts views out of frames on a device, and resizes them.

    Bilinear without antialiasing, rounded to bytes.

    Args:
        compiled: whether torch compiles it on a GPU; then no position of a pixel is written to memory.
    """

    def __init__(self, frames: Frames, size: Size, *, compiled: bool = False) -> None:
        self._frames = frames
        self._cut: Callable[..., Tensor] = partial(_cut, size=size)
        if compiled and frames.pixels.device.type == "cuda":
            self._cut = torch.compile(self._cut, dynamic=False)

    def __call__(self, choice: Choice) -> Tensor:
        """Returns (B, 3, T, H, W) uint8."""
        sizes = self._frames.sizes[choice.clips]  # (B, 3)
        frame_bytes = 3 * sizes[:, 1:].prod(axis=1)  # (B,)
        starts = self._frames.first[choice.clips][:, None] + choice.frames * frame_bytes[:, None]  # (B, T)
        columns = (starts, sizes[:, 2], choice.boxes, choice.flips)
        on_device = [to_device(column, self._frames.pixels.device) for column in columns]
        parts = zip(*(column.split(AT_ONCE) for column in on_device), strict=True)
        return torch.cat([self._cut(self._frames.pixels, *part) for part in parts])


def _cut(
    pixels: Tensor, starts: Tensor, widths: Tensor, boxes: Tensor, flips: Tensor, *, size: Size
) -> Tensor:
    """Sample boxes (B, 4) of frames that begin at `starts` (B, T); widths and flips are (B,)."""
    top, left, height, width = (side[:, None] for side in boxes.unbind(1))  # (B, 1) each
    rows, columns = (torch.arange(side, device=pixels.device) for side in size)
    columns = torch.where(flips[:, None], size[1] - 1 - columns, columns)  # (B, W)
    upper, lower, down = _neighbors(rows[None], top, height, size[0])  # (B, H) each
    before, after, right = _neighbors(columns, left, width, size[1])  # (B, W) each

    def at(y: Tensor, x: Tensor) -> Tensor:
        place = y[:, :, None] * widths[:, None, None] + x[:, None, :]  # (B, H, W)
        channel = torch.arange(3, device=pixels.device)[:, None, None, None]
        return pixels[starts[:, None, :, None, None] + 3 * place[:, None, None] + channel].float()

    right, down = right[:, None, None, None, :], down[:, None, None, :, None]
    above = at(upper, before).lerp(at(upper, after), right)  # (B, 3, T, H, W)
    below = at(lower, before).lerp(at(lower, after), right)
    return above.lerp(below, down).round().to(torch.uint8)


def _neighbors(places: Tensor, first: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels of a box next to each place (B, P), and the share of the second."""
    center = (places + 0.5) * length / size - 0.5
    center = torch.minimum(center.clamp(min=0), length - 1)
    lower = center.long()
    upper = torch.minimum(lower + 1, length - 1)
    return first + lower, first + upper, center - lower


def copy_clips(videos: Path, folder: Path, recipe: Recipe) -> None:
    """Copy the listed clips, and the lists themselves."""
    lists = Lists(videos, recipe)
    tables = [videos / "actions" / "clips.csv"]
    tables += [videos / "more" / f"{name}_{part}.csv" for name in MORE for part in ("train", "val")]
    for name in LABELED:
        within = videos / ("lips" if name == LETTERS else "actions")
        tables += [within / f"{name}_{part}.csv" for part in ("train", "val")]
    for path in (*tables, *map(Path, lists.all)):
        target = folder / path.relative_to(videos)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def main() -> None:
    from everest.config.recipe import load_recipe

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    copy_clips(options.videos.absolute(), options.folder.absolute(), load_recipe("custom"))
    total = sum(path.stat().st_size for path in options.folder.rglob("*.*"))
    print(f"{total / 1e6:.1f} MB in {options.folder}")


if __name__ == "__main__":
    main()
