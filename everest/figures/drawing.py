"""The code that all figures share: writing them, names in any script, and images inside pages."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from PIL import Image
from torch import Tensor

from everest.figures.mask_view import in_colors
from everest.system.files import atomic_file
from everest.system.hub import warn_on_main
from everest.system.text import escape_bytes

# Fonts of common systems with Chinese, Japanese or Korean letters, which matplotlib's own font lacks.
FALLBACK: Final = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Source Han Sans", "IPAexGothic"),
    *("IPAGothic", "TakaoGothic", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic"),
    *("SimHei", "MS Gothic", "Arial Unicode MS"),
)
_MISSING: Final = re.compile(r"Glyph \d+ .* missing from")


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
    """A figure to draw on, which is written as a PNG at the end of the block.

    Args:
        size: inches, width and height.
        points: of letters.
        framed: whether panels have a line at the top and at the right, too.
        tight: cut the margins, and show what is outside of the figure; else the image has `size`.
    """
    with mpl.rc_context({"font.size": points, "axes.spines.top": framed, "axes.spines.right": framed}):
        figure = Figure(figsize=size, dpi=dpi, layout=layout)
        yield figure
        with atomic_file(path) as part:
            figure.savefig(part, format="png", bbox_inches="tight" if tight else None)


@contextmanager
def any_script() -> Iterator[None]:
    """Draw letters that matplotlib's font lacks with an installed font; else as boxes, with one notice."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    families = [*mpl.rcParams["font.family"], *(name for name in FALLBACK if name in installed)]
    with warnings.catch_warnings(record=True) as caught, mpl.rc_context({"font.family": families}):
        warnings.simplefilter("default")
        yield
    others = [warning for warning in caught if not _MISSING.match(str(warning.message))]
    for warning in others:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if len(others) < len(caught):
        warn_on_main("figures show boxes for letters that no font has; install one, such as fonts-noto-cjk")


def name_entries(legend: Legend, names: Sequence[str]) -> None:
    """Give the entries of a legend their names, unchanged.

    matplotlib omits labels that begin with "_" and reads dollars as formulas: make the legend with other
    labels.
    """
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(escape_bytes(name))


def jpeg_uri(image_pixels: Tensor, *, longest: int | None = None) -> str:
    """Return (H, W, C) uint8 as a data URI, scaled down if a side is above `longest` pixels."""
    image, buffer = Image.fromarray(in_colors(image_pixels).contiguous().numpy()), io.BytesIO()
    if longest is not None:
        image.thumbnail((longest, longest))
    image.save(buffer, format="JPEG", quality=88)
    return _uri("jpeg", buffer.getvalue())


def png_uri(file: Path) -> str:
    """Return a PNG file as a data URI."""
    return _uri("png", file.read_bytes())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
