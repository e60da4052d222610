"""Draw the packages of the library and their imports, counted in the code: `python docs/draw_packages.py`.

A row imports from a column. Every import is above the diagonal, as tests/test_imports.py requires.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from test_imports import PACKAGES, imports, modules, package_of  # noqa: E402


def count_imports() -> tuple[Counter[tuple[str, str]], Counter[str]]:
    """How many files of one package import from another, by (importing, imported); the files of each."""
    known, arrows, files = modules(), Counter(), Counter()
    for name, path in known.items():
        if path.stem == "__init__":
            continue
        files[package_of(name)] += 1
        for used in {package_of(used) for used in imports(path) & known.keys()} - {package_of(name)}:
            arrows[package_of(name), used] += 1
    return arrows, files


def draw(path: Path) -> None:
    arrows, files = count_imports()
    order = list(reversed(PACKAGES))  # the highest package on top
    figure = Figure(figsize=(9, 7.5))
    axes = figure.add_subplot()
    for (row, column), number in arrows.items():
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
    draw(Path(__file__).with_name("packages.png"))
