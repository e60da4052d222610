"""An image of thumbnails with their titles: of a data set, or of what a search found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from everest.figures.drawing import any_script, png_figure
from everest.system.text import escape_bytes

COLUMNS: Final = 6
WIDEST: Final = 0.96  # of a column, which a title may fill
SMALLEST: Final = 2  # points
LONGEST: Final = 24  # characters of a name in a title

Titled = tuple[NDArray[np.uint8] | None, str]  # an image (H, W, 3), and its title; None: no image


@any_script()
def draw_thumbnails(path: Path, heading: str, shown: Sequence[Titled]) -> Figure:
    """Write a PNG of thumbnails, `COLUMNS` in a row, under a heading.

    Raises:
        EnvironmentProblem: the file cannot be written.
    """
    rows = -(-len(shown) // COLUMNS)
    size = (1.9 * COLUMNS, 2.1 * rows + 0.5)
    # A name may contain dollar signs, which are no formula.
    plain = mpl.rc_context({"axes.titlesize": 8, "text.parse_math": False})
    with plain, png_figure(path, size, points=8, dpi=110, tight=False) as figure:
        widest = WIDEST * figure.get_figwidth() * figure.dpi / COLUMNS
        grid = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
        for ax in grid:
            ax.axis("off")
        for ax, (image, title) in zip(grid, shown, strict=False):
            if image is not None:
                ax.imshow(image, interpolation="nearest")
            text = ax.set_title(escape_bytes(title))
            # Step by step: the widths of small letters are rounded, and not proportional to their size.
            while text.get_window_extent().width > widest and text.get_fontsize() > SMALLEST:
                text.set_fontsize(0.95 * text.get_fontsize())
        figure.suptitle(escape_bytes(heading))
    return figure


def cut(name: str) -> str:
    """The first `LONGEST` characters of a name."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
