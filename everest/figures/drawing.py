"""The code that all figures share: colors, PNG files, names of any letters, and pages with images and clips.

H height, W width.
"""

from __future__ import annotations

import base64
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import font_manager
from matplotlib.figure import Figure
from torch import Tensor

from everest.data.crops import resize
from everest.data.footage import footage_of
from everest.errors import RecipeError
from everest.lists.sample import Sample
from everest.system.files import atomic_file, check_new_file, write_text
from everest.system.processes import warn_on_main
from everest.video.reader import TimedFrame, VideoError, frames_in_order, probe
from everest.video.writer import H264, write_timed_frames

# Okabe and Ito (2008), distinct to color-blind readers; without the yellow, which is faint on white.
COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES: Final = ("-", "--", ":", "-.")  # the next style when all colors are used
# Fonts of common systems with Chinese, Japanese or Korean letters, which matplotlib's own font lacks.
FALLBACK: Final = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Source Han Sans", "IPAexGothic"),
    *("IPAGothic", "TakaoGothic", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic"),
    *("SimHei", "MS Gothic", "Arial Unicode MS"),
)
# Of a clip on a page; our choices.
CLIP_FPS: Final = 12.0  # frames per second, at most
CLIP_FRAMES: Final = 360  # frames; longer ones have a lower rate
CLIP_SIDE: Final = 240  # pixels of the longer side
CLIP_QUALITY: Final = 26  # x264's crf
_MISSING: Final = re.compile(r"Glyph \d+ .* missing from")


def is_own_figure(path: Path) -> bool:
    """Whether a file exists and is a figure of matplotlib, such as an earlier one of everest."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return b"Software\0Matplotlib" in file.read(200)


def check_target(path: Path, *, option: str, overwrite: bool) -> None:
    """Check that a PNG can be written to `path`, and replaces a file only with --overwrite.

    Args:
        option: the option that names the path, for messages.
    """
    if path.suffix.lower() != ".png":
        raise RecipeError(f"{option} {path}: the figure is a PNG; end its name in .png")
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
    """A figure, written as a PNG at the end of the block.

    Letters that matplotlib's font lacks are drawn with an installed font; else as boxes, with a notice.

    Args:
        size: inches, width and height.
        points: of letters.
        framed: whether panels have a line at the top and at the right, too.
        tight: cut the margins, and show what is outside of the figure; else the image has `size`.
    """
    installed = {font.name for font in font_manager.fontManager.ttflist}
    style: Any = {"font.size": points, "axes.spines.top": framed, "axes.spines.right": framed}
    style["font.family"] = [*mpl.rcParams["font.family"], *(name for name in FALLBACK if name in installed)]
    with warnings.catch_warnings(record=True) as caught, mpl.rc_context(style):
        warnings.simplefilter("default")
        figure = Figure(figsize=size, dpi=dpi, layout=layout)
        yield figure
        with atomic_file(path) as part:
            figure.savefig(part, format="png", bbox_inches="tight" if tight else None)
    for warning in caught:
        if _MISSING.match(str(warning.message)):
            notice_boxes()
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@cache  # one notice for all figures
def notice_boxes() -> None:
    """Tell the user why some letters are boxes."""
    warn_on_main(
        "figures show boxes for letters that no font has; install a font with them, such as fonts-noto-cjk"
    )


def plain(name: str) -> str:
    """A name as literal text for matplotlib: dollars start no formula."""
    return name.replace("$", r"\$")


def shorten(name: str, most: int) -> str:
    """A name of up to `most` letters; a longer one loses its middle."""
    return name if len(name) <= most else f"{name[: (most - 1) // 2]}…{name[-(most // 2) :]}"


def in_colors(frames: Tensor) -> Tensor:
    """Frames (..., 3) as they are; gray ones (..., 1) with three equal channels."""
    return frames.expand(*frames.shape[:-1], 3)


def data_uri(kind: str, content: bytes) -> str:
    """Return a file as part of a page; its kind is a MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def write_page(path: Path, package: str, template: str, **values: Any) -> None:
    """Write a page by a template of a package, such as `figures`; all values are escaped."""
    templates = Environment(
        loader=PackageLoader(f"everest.{package}", ""), autoescape=True, undefined=StrictUndefined
    )
    write_text(path, templates.get_template(template).render(**values))


def clip_card(sample: Sample) -> dict[str, Any]:
    """A clip as a data URI, or why the video is unreadable; its file, and its times."""
    times = "" if sample.start is None else f"{sample.start:.2f} s"
    times += "" if sample.end is None else f" to {sample.end:.2f} s"
    card = {"file": Path(sample.path).name, "path": sample.path, "times": times, "uri": None, "problem": None}
    try:
        info, footage = probe(sample.video), footage_of(sample, None)
        rate = info.fps or CLIP_FPS
        stride = max(round(rate / CLIP_FPS), -(-footage.num_frames // CLIP_FRAMES), 1)
        numbers = footage.numbers(np.arange(footage.num_frames)[::stride])
        scale = min(CLIP_SIDE / max(info.height, info.width), 1.0)
        size = max(round(info.height * scale / 2) * 2, 2), max(round(info.width * scale / 2) * 2, 2)  # even
        shown = Fraction(rate).limit_denominator(1001) / stride
        small = (
            resize(frame[None], size, antialias=True)[:, 0].movedim(0, -1).contiguous().numpy()  # (H, W, 3)
            for frame in frames_in_order(sample.video, numbers)
        )
        timed = (TimedFrame(pixels, number, 1 / shown) for number, pixels in enumerate(small))
        with TemporaryDirectory() as folder:
            clip = Path(folder) / "clip.mp4"
            write_timed_frames(clip, timed, shown, codec=H264(crf=CLIP_QUALITY, gop=12), comment="")
            return card | {"uri": data_uri("video/mp4", clip.read_bytes())}
    except VideoError as error:
        return card | {"problem": error.reason}
