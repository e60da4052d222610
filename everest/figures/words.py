"""The title and the legend of a figure, wrapped to its width."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import chain
from typing import Final

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from everest.figures.legend import LegendLine
from everest.system.text import escape_bytes

SMALL: Final = 8  # points, of explanations
TITLE_LINE: Final = 0.17  # inches
LEGEND_LINE: Final = 0.16


def add_words(figure: Figure, title: str, legend: Sequence[LegendLine]) -> None:
    """Add a title at the top and a legend at the bottom, wrapped to the width of the figure."""
    title_lines, texts = _wrapped(title, legend, figure.get_figwidth())
    figure.suptitle("\n".join(title_lines), fontsize=10, parse_math=False)
    handles = [
        Patch(facecolor=entry.color or "none", edgecolor="black" if entry.color else "none", label=text)
        for entry, text in zip(legend, texts, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower left", fontsize=SMALL, frameon=False, labelspacing=0.25)


def height_of_words(title: str, legend: Sequence[LegendLine], width: float) -> float:
    """Inches of a title and a legend as `add_words` adds them to a figure of `width` inches."""
    title_lines, texts = _wrapped(title, legend, width)
    return TITLE_LINE * len(title_lines) + LEGEND_LINE * sum(len(text.splitlines()) for text in texts)


def _wrapped(title: str, legend: Sequence[LegendLine], width: float) -> tuple[list[str], list[str]]:
    """Return the lines of a title, and the text of each line of a legend, wrapped to `width` inches."""
    columns = int(width * 72 / (0.54 * SMALL))  # letters of medium width, with a margin
    lines = [textwrap.wrap(line, int(columns * SMALL / 10)) for line in escape_bytes(title).splitlines()]
    return list(chain(*lines)), [textwrap.fill(entry.text, columns - 8) for entry in legend]
