from pathlib import Path

import pytest
from matplotlib import font_manager

from everest.figures.style import saved_figure


def test_a_figure_draws_letters_that_no_font_has_as_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    manager = font_manager.fontManager
    own = [font for font in manager.ttflist if font.name.startswith(("DejaVu", "STIX", "cm"))]
    monkeypatch.setattr(manager, "ttflist", own)
    with (
        pytest.warns(UserWarning, match="Glyph .* missing from font"),
        saved_figure(tmp_path / "figure.png", (4, 4)) as figure,
    ):
        figure.suptitle("\u65e5\u672c")  # Japan
    assert (tmp_path / "figure.png").is_file()
