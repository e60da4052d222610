"""The known data sets, and the search for their annotations in a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from everest.errors import DataError, RecipeError, unknown_name
from everest.prepare.layout import Layout, Sources
from everest.prepare.layouts_clips import DIVING48, HMDB51, OSCC, SSV2, UCF101
from everest.prepare.layouts_segments import EPIC, FINEGYM99, FINEGYM288, KINETICS

LAYOUTS: Final = {
    layout.name: layout
    for layout in (UCF101, HMDB51, SSV2, KINETICS, OSCC, DIVING48, EPIC, FINEGYM288, FINEGYM99)
}
FOLDERS: Final = "folders"  # no annotations: everest.lists.class_folders
EXPECTATIONS: Final = "\n".join(  # a line for each layout with the files it expects
    [
        *(f"  {layout.name}: {layout.expects}" for layout in LAYOUTS.values()),
        f"  {FOLDERS}: a folder of videos for each class, or videos without classes",
    ]
)
_SUFFIXES: Final = (".txt", ".csv", ".json")


def find_layout(folder: Path, name: str | None, *, split: int) -> tuple[Layout, Sources] | None:
    """The layout of the annotations below a folder, and their files; None if there are no annotations.

    Args:
        name: the expected layout; None takes the one that fits.
        split: of UCF101 and HMDB51, which have three.
    Raises:
        RecipeError: an unknown name, or several layouts fit.
        DataError: files that the named layout needs are missing.
    """
    if name == FOLDERS:
        return None
    if name is not None and name not in LAYOUTS:
        raise unknown_name("--layout", name, [*LAYOUTS, FOLDERS])
    files: list[Path] = []  # texts, tables and JSON documents at any depth, sorted by name
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        files += [Path(parent, name) for name in sorted(names) if name.endswith(_SUFFIXES)]
    candidates = [LAYOUTS[name]] if name else list(LAYOUTS.values())
    matches: list[tuple[Layout, Sources]] = []
    for layout in candidates:
        sources: dict[str, list[Path]] = {}
        for role, pattern in {**layout.needs, **layout.may_have}.items():
            fits = re.compile(pattern.replace("{split}", str(split))).fullmatch
            sources[role] = [file for file in files if fits(file.name) and layout.holds(file)]
        if all(sources[role] for role in layout.needs):
            matches.append((layout, sources))
    if name and not matches:
        raise DataError(
            f"{folder}: not all of {LAYOUTS[name].title} (split {split}) is there; expected below it are "
            f"{LAYOUTS[name].expects}"
        )
    if len(matches) > 1:
        listed = ", ".join(layout.name for layout, _ in matches)
        raise RecipeError(f"{folder}: annotations of {listed} are below it; choose one by --layout")
    return matches[0] if matches else None
