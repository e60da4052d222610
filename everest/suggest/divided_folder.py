"""Class folders without lists: the lists of a suggested recipe."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from everest.errors import RecipeError
from everest.lists.sample import ListSize
from everest.prepare.split import LabeledVideos
from everest.system.storage import parse_location


class DividedFolder:
    """The lists of class folders: made in a folder beside the recipe, and moved into place at the end."""

    def __init__(self, data: str, recipe: Path, *, group: str | None, overwrite: bool) -> None:
        root = parse_location(data)
        if not isinstance(root, Path):
            raise RecipeError(f"{data}: remote class folders cannot be split; make lists of them")
        self._folder = recipe.absolute().with_name(f"{recipe.name.removesuffix('.yaml')}-lists")
        if recipe.absolute().parent == root.absolute():
            raise RecipeError(
                f"--output {recipe}: its lists would look like a class in this folder; name another folder"
            )
        if self._folder.exists() and not overwrite:
            raise RecipeError(f"{self._folder}: exists; name another recipe, or use --overwrite")
        self._part = self._folder.with_name(f"{self._folder.name}.part")
        self.clear()
        self._videos = LabeledVideos.read(root, root=root.absolute(), group=group)
        self._lists = self._videos.split()
        self.lists = self._videos.write(self._lists, self._part)

    def move(self, recipe: str, *, notify: Callable[[str], None]) -> str:
        """Move the lists to their folder; returns the recipe with their new paths.

        Args:
            notify: receives the sizes of the lists, and their folder.
        """
        self._folder.mkdir(exist_ok=True)
        for name in ("train.csv", "val.csv", "test.csv", "classes.txt"):  # of an earlier recipe
            (self._folder / name).unlink(missing_ok=True)
        for file in self._part.iterdir():
            file.replace(self._folder / file.name)
        sizes = (f"{name}: {ListSize.of(samples)}" for name, samples in self._lists.items())
        for text in (*self._videos.notices, *sizes, f"lists: {self._folder}"):
            notify(text)
        return recipe.replace(str(self._part), str(self._folder))

    def clear(self) -> None:
        """Remove the lists that were not moved."""
        shutil.rmtree(self._part, ignore_errors=True)
