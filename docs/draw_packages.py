"""Draw the packages of the two houses and their imports, counted in the code: `python docs/draw_packages.py`.

A row imports from a column. Every import is above the diagonal, as tests/test_imports.py requires.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from test_imports import TOOLKIT, WORKFLOWS, imports, modules, package_of  # noqa: E402

HOUSE = "everest"  # the column of all packages of the toolkit, in the figure of the workflows


def count_imports(*, toolkit_is_one: bool) -> tuple[Counter[tuple[str, str]], Counter[str]]:
    """How many files of one package import from another, by (importing, imported); the files of each."""
    known, arrows, files = modules(), Counter(), Counter()

    def place(name: str) -> str:
        package = package_of(name)
        return HOUSE if toolkit_is_one and package in TOOLKIT else package

    for name, path in known.items():
        if path.stem == "__init__":
            continue
        files[place(name)] += 1
        for used in {place(used) for used in imports(path) & known.keys()} - {place(name)}:
            arrows[place(name), used] += 1
    return arrows, files


def draw(path: Path, packages: Sequence[str], *, toolkit_is_one: bool, side: float) -> None:
    """Draw one house as a matrix, its highest package on top."""
    arrows, files = count_imports(toolkit_is_one=toolkit_is_one)
    order = list(reversed(packages))
    figure = Figure(figsize=(side, side * 0.85))
    axes = figure.add_subplot()
    for (row, column), number in arrows.items():
        if row not in order or column not in order:
            continue
        x, y = order.index(column), order.index(row)
        axes.add_patch(_square(x, y, color="#1f77b4", alpha=min(1.0, 0.15 + number / 14)))
        axes.text(x, y, str(number), ha="center", va="center", fontsize=8)
    for position in range(len(order)):
        axes.add_patch(_square(position, position, color="#d9d9d9", alpha=1.0))
    axes.set_xticks(range(len(order)), order, rotation=60, ha="left")
    axes.set_yticks(range(len(order)), [f"{package} ({files[package]})" for package in order])
    axes.xaxis.tick_top()
    axes.set(xlim=(-0.5, len(order) - 0.5), ylim=(len(order) - 0.5, -0.5), aspect="equal")
    axes.tick_params(length=0)
    axes.set_title("Files of a row's package that import from a column's (files per package)", fontsize=9)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def _square(x: int, y: int, *, color: str, alpha: float) -> Rectangle:
    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, alpha=alpha, edgecolor="white")


if __name__ == "__main__":
    docs = Path(__file__).parent
    draw(docs / "packages-toolkit.png", TOOLKIT, toolkit_is_one=False, side=8)
    workflows = (HOUSE, *WORKFLOWS, "demo", "cli")
    draw(docs / "packages-workflows.png", workflows, toolkit_is_one=True, side=5)
