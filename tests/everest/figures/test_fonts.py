from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import font_manager

from everest.config.heads import Head
from everest.figures.curves import Curve, RunCurves, draw_curves
from everest.figures.frame_selection import FrameSelection, SelectionOptions, draw_selection
from everest.figures.rows import FigureRow, draw_rows
from everest.lists.classes import Classes
from everest_workflows.recordings.timeline_figure import draw_timelines
from everest_workflows.recordings.timelines import Timelines, VideoTimeline

NAME = "\u65e5\u672c"  # Japan


@pytest.fixture(autouse=True)
def _only_fonts_of_matplotlib(monkeypatch: pytest.MonkeyPatch):
    manager = font_manager.fontManager
    own = [font for font in manager.ttflist if font.name.startswith(("DejaVu", "STIX", "cm"))]
    monkeypatch.setattr(manager, "ttflist", own)


FRAMES = torch.zeros(2, 16, 16, 3)
RUN = RunCurves(name=NAME, curves={"loss": Curve(np.array([1.0, 2.0]), np.array([1.0, 0.5]))})
SELECTION = FrameSelection(
    **{"video": Path(f"{NAME}.mp4"), "frames_total": 2, "numbers": [(0, 1)], "frames": FRAMES.byte()},
    **{"options": SelectionOptions(), "counts": torch.tensor([1]), "sampled": torch.tensor([0])},
)
TIMELINE = VideoTimeline(
    **{"video": NAME, "path": NAME, "frames": (0, 1), "borders": np.array([0.0, 1.0])},
    **{"starts": np.array([0.0]), "ends": np.array([1.0]), "outputs": np.array([[1.0, 0.0]], np.float32)},
)
TIMELINES = Timelines(classes=Classes(heads=(Head(outputs=2),), names=(NAME, "b")), videos=[TIMELINE])


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: draw_rows(path, [FigureRow("original", FRAMES)], slices=1, title=NAME),
        lambda path: draw_curves(path, [RUN], x="steps"),
        lambda path: draw_selection(path, SELECTION),
        lambda path: draw_timelines(path, TIMELINES, TIMELINES.bouts(), {}),
    ],
    ids=["masks", "curves", "selection", "timeline"],
)
def test_every_figure_with_names_of_files_and_runs_draws_any_letter(tmp_path, draw):
    with pytest.warns(UserWarning, match="Glyph .* missing from font"):  # a box, no error
        draw(tmp_path / "figure.png")
