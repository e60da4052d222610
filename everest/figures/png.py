"""PNG figures: their files, style and colors, and names of any letters in them."""

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

# Okabe and Ito (2008), distinct to color-blind readers; without the yellow, which is faint on white.
COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
PALE: Final = "#BBBBBB"  # of what matters less
ENDINGS: Final = (".png", ".pdf", ".svg")
LINES: Final = ("-", "--", ":", "-.")  # the next style when all colors are used
# Fonts of common systems with Chinese, Japanese or Korean letters, which matplotlib's own font lacks.
FALLBACK: Final = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Source Han Sans", "IPAexGothic"),
    *("IPAGothic", "TakaoGothic", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic"),
    *("SimHei", "MS Gothic", "Arial Unicode MS"),
)


def is_own_figure(path: Path) -> bool:
    """Whether a file exists and is a figure of matplotlib, such as an earlier one of everest."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return b"Software\0Matplotlib" in file.read(200)


def check_png(path: Path, *, option: str, overwrite: bool) -> None:
    """Check that a figure can be written to the file of an option; --overwrite replaces one that exists."""
    if path.suffix.lower() not in ENDINGS:
        raise RecipeError(f"{option} {path}: end the name of the figure in {', '.join(ENDINGS)}")
    if path.is_dir():
        raise RecipeError(f"{option} {path}: is a folder; name a file")
    check_new_file(path, option=option, overwrite=overwrite)


@contextmanager
def png_figure(
    path: Path,
    size: tuple[float, float],
    *,
    points: int = 12,
    dpi: int = 120,
    framed: bool = False,
    tight: bool = True,
    layout: Literal["constrained", "compressed"] = "constrained",
) -> Iterator[Figure]:
    """A figure, written at the end of the block, as a PNG unless the path ends in .pdf or .svg.

    Letters that matplotlib's font lacks are drawn with an installed font; else as boxes, of which it warns.

    Args:
        size: inches, width and height.
        points: of letters.
        framed: whether panels have a line at the top and at the right, too.
        tight: cut the margins, and show what is outside of the figure; else the image has `size`.
    """
    installed = {font.name for font in font_manager.fontManager.ttflist}
    style: Any = {"font.size": points, "axes.spines.top": framed, "axes.spines.right": framed}
    style["font.family"] = [*mpl.rcParams["font.family"], *(name for name in FALLBACK if name in installed)]
    with mpl.rc_context(style):
        figure = Figure(figsize=size, dpi=dpi, layout=layout)
        yield figure
        with atomic_file(path) as part:
            kind = path.suffix.lower().removeprefix(".") or "png"
            figure.savefig(part, format=kind, bbox_inches="tight" if tight else None)


def escape_dollars(name: str) -> str:
    """A name as literal text for matplotlib: dollars start no formula."""
    return name.replace("$", r"\$")


def shorten(name: str, most: int = 64) -> str:
    """A name of up to `most` letters; a longer one loses its middle."""
    return name if len(name) <= most else f"{name[: (most - 1) // 2]}…{name[-(most // 2) :]}"
