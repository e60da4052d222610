"""Real labeled clips by set, and the groups that a unit of a comparison holds out."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from everest.config.settings import Recipe
from everest.data.recipe_clips import center_views, make_dataset
from everest.lists.sources import read_source

SETS: Final = ("weizmann10", "interaction6", "surveillance2", "cameramotion8", "tabletennis2", "tennis7")
LETTERS: Final = "letters26"  # in the folder of lips
FOLDS, PARTITIONS = 3, 2


class Clips:
    """The clips of the training and validation lists of all sets, with their groups."""

    def __init__(self, videos: Path, recipe: Recipe) -> None:
        self.videos, self.recipe = videos, recipe
        self._pixels: dict[str, torch.Tensor] = {}
        self.sets = [name for name in (*SETS, LETTERS) if (videos / f"{name}_train.csv").exists()]
        self.unlabeled = sorted((videos / "unlabeled").glob("*.mp4"))
        self._groups: dict[str, str] = {}
        if (sheet := videos / "clips.csv").exists():
            with sheet.open() as file:
                self._groups = {row["path"]: row["group"] for row in csv.DictReader(file)}

    def rows(self, name: str) -> list[tuple[str, int, str]]:
        """Path, label and group of each clip of a set; the clips of one simulated camera share a frame."""
        lines = [
            line
            for part in ("train", "val")
            for line in (self.videos / f"{name}_{part}.csv").read_text().splitlines()
        ]
        if name == LETTERS:  # lists with names of columns and classes
            rows = [line.split(",") for line in lines if line != "path,label,group"]
            return [(path, ord(letter) - ord("A"), group) for path, letter, group in rows]
        pairs = [line.rsplit(" ", 1) for line in lines]
        return [(path, int(label), self._groups.get(path, Path(path).stem)) for path, label in pairs]

    def pixels(self, name: str) -> torch.Tensor:
        """The center clips (N, C, T, H, W) uint8 of a set."""
        if name not in self._pixels:
            with NamedTemporaryFile("w", suffix=".csv") as file:
                file.writelines(f"{path} {label}\n" for path, label, _ in self.rows(name))
                file.flush()
                data = replace(self.recipe.data, root=str(self.videos), train=file.name)
                samples = read_source(data, "train", labeled=False)
            dataset = make_dataset(self.recipe, samples, center_views(self.recipe))
            frames = [dataset.read((0, index)).frames[0] for index in range(len(dataset))]
            self._pixels[name] = torch.stack(frames)
        return self._pixels[name]

    def held_out(self, unit: int, name: str) -> NDArray[np.bool_]:
        """Whether each clip (N,) of a set is of a group that the unit holds out."""
        partition, fold = divmod(unit, FOLDS)
        groups = sorted({group for _, _, group in self.rows(name)})
        places = np.random.default_rng(partition).permutation(len(groups)) % FOLDS
        chosen = {group for group, place in zip(groups, places, strict=True) if place == fold}
        return np.array([group in chosen for _, _, group in self.rows(name)])
