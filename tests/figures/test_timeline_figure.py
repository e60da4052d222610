import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from everest.annotations.bout import Bout
from everest.config.heads import Head
from everest.errors import DataError
from everest.figures.timeline import LANES, PANELS, draw_timelines
from everest.inference.bouts import PredictedBout
from everest.inference.timelines import Timelines, VideoTimeline
from everest.lists.classes import Classes


def predicted(label: str, start: float, end: float) -> PredictedBout:
    frames = {"start_frame": 0, "end_frame": 0}
    return PredictedBout(start=start, end=end, label=label, index=0, probability=0.5, **frames)


def timelines(*heads: Head, seconds: int, names: tuple[str, ...], videos: int = 1) -> Timelines:
    """Recordings with a window a second, and random outputs."""
    outputs = np.random.default_rng(0).dirichlet(np.ones(sum(head.outputs for head in heads)), seconds)
    starts = np.arange(seconds, dtype=np.float64)
    each = [
        VideoTimeline(
            video=f"${number}.mp4",
            path=f"${number}.mp4",
            frames=(0, seconds),
            starts=starts,
            ends=starts + 1,
            outputs=outputs.astype(np.float32),
            borders=np.arange(seconds + 1, dtype=np.float64),
        )
        for number in range(videos)
    ]
    return Timelines(classes=Classes(heads=heads, names=names), videos=each)


@pytest.mark.parametrize("videos", [1, pytest.param(PANELS + 2, marks=pytest.mark.slow)])
def test_each_recording_has_a_panel_and_no_label_is_cut(tmp_path: Path, videos: int):
    names = tuple(f"$class_{i}" for i in range(25))
    drawn = timelines(Head(outputs=25), seconds=400, names=names, videos=videos)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, if there is no place for the bars
        figure = draw_timelines(tmp_path / "t.png", drawn, drawn.bouts(), {})
    with Image.open(tmp_path / "t.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels[[0, -1]].min() == pixels[:, [0, -1]].min() == 255
    assert len(figure.axes) == min(videos, PANELS)
    assert ("2 other panels not shown" in figure.get_suptitle()) == (videos > PANELS)
    for panel in figure.axes:
        assert len(panel.get_yticklabels()) == LANES
        assert "5 other classes not shown" in panel.get_title(loc="left")


def test_lanes_show_the_seconds_of_the_model_and_of_a_person(tmp_path: Path):
    drawn = timelines(Head(outputs=3), seconds=10, names=("background", "run", "sit"))
    spans = {"background": (0, 5), "run": (5, 9), "sit": (9, 10)}
    bouts = [predicted(name, start, end) for name, (start, end) in spans.items()]
    truth = [Bout(video="a", start=6, end=10, label="run"), Bout(video="a", start=0, end=1, label="unscored")]
    figure = draw_timelines(tmp_path / "t.png", drawn, [{"": bouts}], {"$0.mp4": truth})
    (panel,) = figure.axes
    assert [label.get_text() for label in panel.get_yticklabels()] == [
        "run  4.0 s, true 4.0 s",
        "sit  1.0 s, true 0.0 s",
        "background  5.0 s",
    ]
    FigureCanvasAgg(figure).draw()
    tops = [tick.get_window_extent().y1 for tick in panel.get_yticklabels()]
    assert all(above > below for above, below in pairwise(tops))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (panel,) = draw_timelines(tmp_path / "none.png", drawn, [{"": []}], {}).axes  # without a bout
    assert [text.get_text() for text in panel.texts] == ["no class is present"]
    drawn = timelines(Head(outputs=2), seconds=0, names=("run", "sit"))
    with pytest.raises(DataError, match=r"^no recording has a window"):
        draw_timelines(tmp_path / "windows.png", drawn, [{"": []}], {})


def test_twenty_classes_have_their_own_color_which_is_that_of_every_recording(tmp_path: Path):
    names = ("background", *(f"class {number}" for number in range(20)))
    drawn = timelines(Head(outputs=21), seconds=21, names=names, videos=2)
    rows = [predicted(name, second, second + 1) for second, name in enumerate(names)]
    truth = [Bout(video="a", start=0, end=1, label="class 3")]
    bouts = [{"": rows[1:]}, {"": rows[::-1]}]  # the order of lanes follows the bouts
    figure = draw_timelines(tmp_path / "t.png", drawn, bouts, {"$0.mp4": truth})
    colors = []
    for panel in figure.axes:
        lanes = [label.get_text().split("  ")[0] for label in panel.get_yticklabels()]
        of_lane = {}
        for bars in panel.collections:
            if (paths := bars.get_paths()) and bars.get_alpha() == 1:
                top = paths[0].vertices[:, 1].max()
                of_lane.setdefault(lanes[int(-top)], tuple(bars.get_facecolor()[0]))
        colors.append(of_lane)
    shared = colors[0].keys() & colors[1].keys()
    assert len(shared) >= 18
    assert all(colors[0][name] == colors[1][name] for name in shared)
    of_classes = {name: color for each in colors for name, color in each.items() if name != "background"}
    assert len(set(of_classes.values())) == len(of_classes) == 20
    assert (0, 0, 0, 1) not in of_classes.values()  # black is for a person


def test_heads_of_every_task_have_a_panel(tmp_path: Path):
    tags = Head(name="tags", task="multi-label", outputs=3)
    heads = Head(name="verb", outputs=2), tags, Head(name="_$", task="regression", outputs=1)
    drawn = timelines(*heads, seconds=5, names=("a", "b", "c"))
    figure = draw_timelines(tmp_path / "t.png", drawn, drawn.bouts(), {})
    assert [panel.get_title(loc="left") for panel in figure.axes] == [
        *(rf"\$0.mp4, {name}" for name in ("verb", "tags", r"_\$"))
    ]
    (curve,) = figure.axes[2].lines
    assert np.array_equal(curve.get_ydata(), drawn.videos[0].outputs[:, 5])
