import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image, ImageChops

from everest.config.heads import Head
from everest.figures.curves import Curve, RunCurves, draw_curves
from everest.figures.drawing import notice_boxes
from everest.figures.frame_selection import FrameDraw, FrameView, draw_selection
from everest.figures.pictures import FigureRow, draw_rows
from everest.figures.timeline import draw_timelines
from everest.inference.timelines import Timelines, VideoTimeline
from everest.lists.classes import Classes
from everest.methods.strategies import RedundancyRobust

NOTICE = "figures show boxes for letters that no font has; install a font with them, such as fonts-noto-cjk"
NAME = "\u65e5\u672c"  # Japan
TIMELINE = VideoTimeline(
    **{"video": NAME, "path": NAME, "frames": (0, 1), "borders": np.array([0.0, 1.0])},
    **{"starts": np.array([0.0]), "ends": np.array([1.0]), "outputs": np.array([[1.0, 0.0]], np.float32)},
)
TIMELINES = Timelines(classes=Classes(heads=(Head(outputs=2),), names=(NAME, "b")), videos=[TIMELINE])


@pytest.fixture(autouse=True)
def _only_fonts_of_matplotlib(monkeypatch: pytest.MonkeyPatch):
    manager = font_manager.fontManager
    own = [font for font in manager.ttflist if font.name.startswith(("DejaVu", "STIX", "cm"))]
    monkeypatch.setattr(manager, "ttflist", own)
    notice_boxes.cache_clear()


def drawn(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_timelines(path, TIMELINES, TIMELINES.bouts(), {})
    return path


FRAMES = torch.zeros(2, 16, 16, 3)
RUN = RunCurves(name=NAME, curves={"loss": Curve(np.array([1.0, 2.0]), np.array([1.0, 0.5]))})
DRAW = FrameDraw(
    **{"frames": 2, "stride": 1, "size": 16, "seed": 0, "model": None},
    **{"selector": RedundancyRobust(), "alpha": 1.0, "whole_video": True},
)
SELECTION = FrameView(
    **{"video": Path(f"{NAME}.mp4"), "frames_total": 2, "numbers": [(0, 1)], "frames": FRAMES.byte()},
    **{"request": DRAW, "counts": torch.tensor([1]), "drawn": torch.tensor([0])},
)


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: draw_rows(path, [FigureRow("original", FRAMES)], slices=1, title=NAME),
        lambda path: draw_curves(path, [RUN], x="steps"),
        lambda path: draw_selection(path, SELECTION),
    ],
    ids=["masks", "curves", "selection"],
)
def test_every_figure_with_names_of_files_and_runs_draws_any_letter(tmp_path, caplog, draw):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(tmp_path / "figure.png")
    assert caplog.messages == [NOTICE]


def write_font(path: Path) -> None:
    """Write a font whose two letters are triangles, under the name of one that the figures look for."""
    pen = TTGlyphPen(None)
    for i, point in enumerate(((0, 0), (500, 1000), (1000, 0))):
        (pen.lineTo if i else pen.moveTo)(point)
    pen.closePath()
    glyphs = [".notdef", "first", "second"]
    font = FontBuilder(1000)
    font.setupGlyphOrder(glyphs)
    font.setupCharacterMap(dict(zip(map(ord, NAME), glyphs[1:], strict=True)))
    font.setupGlyf(dict.fromkeys(glyphs, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    font.setupHorizontalHeader(ascent=1000, descent=0)
    font.setupNameTable({"familyName": "IPAGothic", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)


def test_letters_that_no_font_has_are_boxes_with_one_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    manager = font_manager.fontManager
    boxes = drawn(tmp_path / "boxes.png")
    assert caplog.messages == [NOTICE]
    caplog.clear()
    notice_boxes.cache_clear()
    write_font(tmp_path / "font.ttf")
    manager.addfont(tmp_path / "font.ttf")
    letters = drawn(tmp_path / "letters.png")
    assert caplog.messages == []
    one, other = (Image.open(path).convert("RGB") for path in (boxes, letters))
    assert ImageChops.difference(one, other).getbbox() is not None
