"""A labelled set of rendered videos on the disk: H.264 files, lists, names of classes.

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

FPS: Final = 12
_CHUNK: Final = 3072  # frames rendered at once: 38 MB of float32
_CRF: Final = 17  # keeps the texture


@dataclass(frozen=True, kw_only=True)
class RenderedSet:
    """What is rendered, and how much of it.

    Args:
        render: makes one clip for each entry of an array (n,) of numbers in `classes`: (n, F, H, W, 3) uint8.
        pretrain: clips without labels, of all classes alike.
    """

    classes: tuple[str, ...]
    num_frames: int
    render: Callable[[NDArray[np.int64], np.random.Generator], NDArray[np.uint8]]
    pretrain: int
    train_per_class: int
    test_per_class: int

    def write(self, root: Path, *, seed: int = 0) -> None:
        """Write `videos/*.mp4`, `pretrain.csv`, `train.csv`, `test.csv` and `classes.txt` under `root`.

        The lists hold `path label` lines, paths relative to `root`. The clips of `pretrain.csv` do not say of
        which class they are: their label is 0. File names are numbers in the order of writing.
        """
        (root / "videos").mkdir(parents=True, exist_ok=True)
        (root / "classes.txt").write_text("".join(f"{name}\n" for name in self.classes))
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
            _write_list(root / f"{split}.csv", names, labels)
            first += count

    def _write_videos(
        self, root: Path, names: Sequence[str], classes: NDArray[np.int64], rng: np.random.Generator
    ) -> None:
        """As chunks, so that memory does not grow with the set. Keyframes are a clip apart."""
        at_once = max(1, _CHUNK // self.num_frames)
        for start in range(0, len(names), at_once):
            part = slice(start, start + at_once)
            for name, clip in zip(names[part], self.render(classes[part], rng), strict=True):
                write_video(root / name, torch.from_numpy(clip), FPS, crf=_CRF, gop=self.num_frames)


def _write_list(path: Path, names: Sequence[str], labels: Sequence[str]) -> None:
    path.write_text("".join(f"{name} {label}\n" for name, label in zip(names, labels, strict=True)))
