"""The data sets that are known, and which of them a folder holds."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from everest.errors import DataError, RecipeError, unknown_name
from everest.prepare.layout import Layout, Sources
from everest.prepare.layouts_csv import EPIC, KINETICS
from everest.prepare.layouts_json import DIVING48, OSCC, SSV2
from everest.prepare.layouts_text import FINEGYM99, FINEGYM288, HMDB51, UCF101

LAYOUTS: Final = {
    layout.name: layout
    for layout in (UCF101, HMDB51, SSV2, KINETICS, OSCC, DIVING48, EPIC, FINEGYM288, FINEGYM99)
}
FOLDERS: Final = "folders"  # no annotations: everest.prepare.layouts.folders
_SUFFIXES: Final = (".txt", ".csv", ".json")


def find_layout(folder: Path, name: str | None, *, split: int) -> tuple[Layout, Sources] | None:
    """The layout of the annotations below a folder, and their files; None where there are none of any.

    Args:
        name: the layout that it has to be; None takes the one that fits.
        split: of UCF101 and HMDB51, which have three.
    Raises:
        RecipeError: an unknown name, or several layouts fit.
        DataError: files that the named layout needs are missing.
    """
    if name == FOLDERS:
        return None
    if name is not None and name not in LAYOUTS:
        raise unknown_name("--layout", name, [*LAYOUTS, FOLDERS])
    files = _annotation_files(folder)
    wanted = [LAYOUTS[name]] if name else list(LAYOUTS.values())
    found = [
        (layout, sources) for layout in wanted if (sources := _sources(layout, files, split)) is not None
    ]
    if name and not found:
        raise DataError(
            f"{folder}: not all of {LAYOUTS[name].title} (split {split}) is there; expected below it are "
            f"{LAYOUTS[name].expects}"
        )
    if len(found) > 1:
        names = ", ".join(layout.name for layout, _ in found)
        raise RecipeError(f"{folder}: annotations of {names} are below it; choose one by --layout")
    return found[0] if found else None


def expectations() -> str:
    """What each layout looks like, a line each."""
    lines = [f"  {layout.name}: {layout.expects}" for layout in LAYOUTS.values()]
    return "\n".join([*lines, f"  {FOLDERS}: a folder of videos for each class, or videos without classes"])


def _annotation_files(folder: Path) -> list[Path]:
    """Texts, tables and JSON documents at any depth, in the order of their names."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        found += [Path(parent, name) for name in sorted(names) if name.endswith(_SUFFIXES)]
    return found


def _sources(layout: Layout, files: Sequence[Path], split: int) -> Sources | None:
    """The files of a layout by what they are for; None where one that it needs is missing."""

    def fitting(pattern: str) -> list[Path]:
        name = re.compile(pattern.replace("{split}", str(split)))
        return [file for file in files if name.fullmatch(file.name) and layout.holds(file)]

    needs = {role: fitting(pattern) for role, pattern in layout.needs.items()}
    if not all(needs.values()):
        return None
    return needs | {role: fitting(pattern) for role, pattern in layout.may_have.items()}
