"""Names in figures, of classes, heads, files and runs: a user chooses them, in any script."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.legend import Legend

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
