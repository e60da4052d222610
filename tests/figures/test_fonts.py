"""Letters in figures that matplotlib's font does not have."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image, ImageChops

from everest.figures.timeline import draw_timeline

NAME = "\u65e5\u672c"  # Japan
BOUT = {
    "start": 0.0,
    "end": 1.0,
    "start_frame": 0,
    "end_frame": 9,
    "index": 0,
    "label": NAME,
    "probability": 0.9,
}


def drawn(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_timeline(path, {"": [BOUT]}, title=NAME, background=None)
    return path


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


def test_letters_that_no_font_has_are_boxes_with_one_notice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    manager = font_manager.fontManager
    own = [font for font in manager.ttflist if font.name.startswith(("DejaVu", "STIX", "cm"))]
    monkeypatch.setattr(manager, "ttflist", own)
    boxes = drawn(tmp_path / "boxes.png")
    assert caplog.messages == [
        "figures show boxes for letters that no font has; install one, such as fonts-noto-cjk"
    ]
    caplog.clear()
    write_font(tmp_path / "font.ttf")
    manager.addfont(tmp_path / "font.ttf")
    letters = drawn(tmp_path / "letters.png")
    assert caplog.messages == []
    one, other = (Image.open(path).convert("RGB") for path in (boxes, letters))
    assert ImageChops.difference(one, other).getbbox() is not None
