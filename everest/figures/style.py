"""Figure files (PNG, PDF, SVG): their paths, style, colors and text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.figure import Figure

from everest.errors import RecipeError
from everest.system.files import atomic_file, check_new_file

# Colors of Okabe and Ito (2008), distinct to color-blind readers; without yellow, which is faint on white.
COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LIGHT_GRAY: Final = "#BBBBBB"  # for what matters less
FIGURE_SUFFIXES: Final = (".png", ".pdf", ".svg")
DASHES: Final = ("-", "--", ":", "-.")  # line styles: the next one when all colors are used
# Fonts of common systems with Chinese, Japanese or Korean letters, which matplotlib's own font lacks.
CJK_FONTS: Final = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Source Han Sans", "IPAexGothic"),
    *("IPAGothic", "TakaoGothic", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic"),
    *("SimHei", "MS Gothic", "Arial Unicode MS"),
)


def check_figure_path(path: Path, *, option: str, overwrite: bool) -> None:
    """Check that a figure can be written to the file of an option; --overwrite replaces an existing file."""
    if path.suffix.lower() not in FIGURE_SUFFIXES:
        raise RecipeError(f"{option} {path}: end the name of the figure in {', '.join(FIGURE_SUFFIXES)}")
    if path.is_dir():
        raise RecipeError(f"{option} {path}: is a folder; name a file")
    check_new_file(path, option=option, overwrite=overwrite)


@contextmanager
def saved_figure(
    path: Path,
    size: tuple[float, float],
    *,
    points: int = 12,
    dpi: int = 120,
    framed: bool = False,
    layout: Literal["constrained", "compressed"] = "constrained",
) -> Iterator[Figure]:
    """Yield a figure, and save it at the end of the block: as a PNG unless the path ends in .pdf or .svg.

    Letters that matplotlib's font lacks are sampled with an installed font, otherwise as boxes with a
    warning.

    Args:
        size: width and height in inches, before the figure is cut to its content.
        points: font size in points.
        framed: draw lines at the top and right of panels.
    """
    installed = {font.name for font in font_manager.fontManager.ttflist}
    style: Any = {"font.size": points, "axes.spines.top": framed, "axes.spines.right": framed}
    style["font.family"] = [*mpl.rcParams["font.family"], *(name for name in CJK_FONTS if name in installed)]
    with mpl.rc_context(style):
        figure = Figure(figsize=size, dpi=dpi, layout=layout)
        yield figure
        with atomic_file(path) as part:
            kind = path.suffix.lower().removeprefix(".") or "png"
            figure.savefig(part, format=kind, bbox_inches="tight")


def escape_dollars(name: str) -> str:
    """Escape the dollars of a name, which would start a formula in matplotlib."""
    return name.replace("$", r"\$")


def shorten(name: str, most: int = 64) -> str:
    """Cut the middle of a name that has more than `most` letters."""
    return name if len(name) <= most else f"{name[: (most - 1) // 2]}…{name[-(most // 2) :]}"
