import csv
import io
import warnings
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from PIL import Image
from small_runs import called, json_of, refused, run

from everest.figures.timeline import ROW, colors_of, draw_timeline, row_seconds
from everest.inference.bouts import Window, merge_windows

LENGTH = 8  # of a window, in eighths of a second
FPS = 16


@st.composite
def timelines(draw: st.DrawFn) -> tuple[list[Window], list[dict[str, Any]]]:
    """Windows of one second, overlapping or apart; their classes and probabilities."""
    steps = draw(st.lists(st.integers(1, 12), max_size=11))
    starts = [float(start) / 8 for start in np.cumsum([0, *steps])]
    windows = [Window(start=at, end=at + LENGTH / 8, first=int(at * FPS), length=FPS) for at in starts]
    best = [
        {"label": f"class {index}", "index": index, "probability": draw(st.integers(0, 10)) / 10}
        for index in draw(st.lists(st.integers(0, 2), min_size=len(windows), max_size=len(windows)))
    ]
    return windows, best


@given(timeline=timelines(), background=st.none() | st.integers(0, 10).map(lambda tenths: tenths / 10))
def test_a_bout_has_the_class_of_the_nearest_window_at_each_time(timeline, background):
    windows, best = timeline
    times = np.arange(int(windows[-1].end * FPS)) / FPS
    bouts = merge_windows(windows, best, times, background=background)
    centers = [(window.start + window.end) / 2 for window in windows]

    def class_of(number: int) -> int | None:
        given = best[number]
        return None if background is not None and given["probability"] < background else given["index"]

    for sixteenth in range(1, int(windows[-1].end * 16), 2):  # no border is at an odd 32nd of a second
        at = sixteenth / 16 + 1 / 32
        near = min(range(len(windows)), key=lambda number: abs(centers[number] - at))
        seen = [bout for bout in bouts if bout["start"] <= at < bout["end"]]
        if windows[near].start <= at < windows[near].end:
            (bout,) = seen
            assert bout["index"] == class_of(near)
        else:
            assert seen == []  # between windows
    for bout in bouts:
        inside = [i for i, center in enumerate(centers) if bout["start"] <= center < bout["end"]]
        assert {class_of(i) for i in inside} == {bout["index"]}
        assert bout["probability"] == pytest.approx(fmean(best[i]["probability"] for i in inside), abs=1e-6)
        assert bout["label"] == (None if bout["index"] is None else f"class {bout['index']}")
        frames = np.flatnonzero((times >= bout["start"] - 5e-4) & (times < bout["end"] - 5e-4))
        assert bout["start_frame"] == frames[0]
        assert bout["end_frame"] == frames[-1] + 1
    for bout, after in pairwise(bouts):
        assert bout["end"] < after["start"] or bout["index"] != after["index"]


def test_a_timeline_has_bouts_in_every_format(classifier_run: Path, clip_files: Path):
    video = clip_files / "clip1.mp4"
    options = ["-c", classifier_run, "--timeline", "--window", 0.5, "--step", 0.25, "-q"]
    (row,) = json_of("predict", video, *options)
    bouts = row["bouts"]
    assert (bouts[0]["start"], bouts[0]["start_frame"]) == (0, 0)
    assert (bouts[-1]["end"], bouts[-1]["end_frame"]) == (2, 32)
    assert all(a["end"] == b["start"] and a["end_frame"] == b["start_frame"] for a, b in pairwise(bouts))
    options.append("--bouts")
    lines = list(csv.DictReader(io.StringIO(run("predict", video, *options, "--format", "csv"))))
    assert [(float(line["start"]), int(line["end_frame"]), line["label"]) for line in lines] == [
        (bout["start"], bout["end_frame"], bout["label"]) for bout in bouts
    ]
    assert len(run("predict", video, *options, "--format", "srt").split("\n\n")) == len(bouts)
    assert len(run("predict", video, *options).splitlines()) == 1 + len(bouts)


def test_improbable_windows_are_background(classifier_run: Path, clip_files: Path):
    video = clip_files / "clip1.mp4"
    options = ["-c", classifier_run, "--timeline", "--window", 0.5, "-q", "--background", 1]
    (row,) = json_of("predict", video, *options)
    (bout,) = row["bouts"]
    best = [window["predictions"][0]["probability"] for window in row["windows"]]
    assert bout["probability"] == pytest.approx(fmean(best), abs=1e-5)
    times = {"start": 0, "end": 2, "start_frame": 0, "end_frame": 32}
    assert {**bout, "probability": 0} == {**times, "label": None, "index": None, "probability": 0}
    options.append("--bouts")
    assert "background (highest probability " in run("predict", video, *options)
    assert run("predict", video, *options, "--format", "srt") == ""
    (line,) = csv.DictReader(io.StringIO(run("predict", video, *options, "--format", "csv")))
    assert (line["label"], line["index"], line["end_frame"]) == ("", "", "32")


def test_options_of_bouts_that_do_not_go_together_are_named(classifier_run, clip_files, tmp_path):
    timeline, plot = ["--timeline", "--bouts"], ["--plot", tmp_path / "t.png"]
    for options, message in (
        (["--bouts"], "belongs to --timeline"),
        (["--background", 0.5], "belongs to --timeline"),
        (plot, "belongs to --timeline"),
        (["--timeline", "--background", 0.5], "--background: for bouts only; add --bouts, "),
        (["--timeline", "--smooth", 1, "--background", 0.5], "--background and --smooth: for bouts only; "),
        ([*timeline, "--background", "nan"], "--background: must be from 0 to 1, not nan"),
        ([*timeline, *plot, "-o", f"{tmp_path}/./t.png"], "also the file of --output"),
        (["--timeline", "--plot", tmp_path / "t.pdf"], "end its name in .png"),
        (["--timeline", *plot, clip_files], "--plot: a figure is of one video, not of 5"),
    ):
        command = ("predict", clip_files / "clip0.mp4", "-c", classifier_run, *options)
        assert message in refused(*command, code=2)
    assert list(tmp_path.iterdir()) == []


def test_a_timeline_is_drawn(classifier_run: Path, clip_files: Path, tmp_path: Path):
    out = tmp_path / "t.png"
    options = ["-c", classifier_run, "--timeline", "--window", 0.5, "-q", "--plot", out]
    called("predict", clip_files / "clip1.mp4", *options, "-o", tmp_path / "t.csv", "--bouts")
    with Image.open(out) as picture:
        assert picture.format == "PNG"
    assert "exists" in called("predict", clip_files / "clip1.mp4", *options, code=2).stderr
    (tmp_path / "text.mp4").write_text("no video")
    options[-1] = tmp_path / "none.png"
    called("predict", tmp_path / "text.mp4", *options, code=4)
    assert not (tmp_path / "none.png").exists()


def bouts(count: int, seconds: float, classes: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    edges = np.sort(rng.uniform(0, seconds, count - 1)).round(3)
    labels = rng.integers(-1, classes, count).tolist()
    return [
        {
            **{"start": start, "end": end, "start_frame": 0, "end_frame": 1, "probability": rng.uniform()},
            **{"label": None if i < 0 else f"$class_{i}", "index": None if i < 0 else i},
        }
        for start, end, i in zip([0.0, *edges], [*edges, seconds], labels, strict=True)
    ]


def test_a_figure_has_up_to_12_rows():
    for seconds, rows in ((0.04, 1), (3, 1), (59, 1), (600, 10), (7200, 12), (86400, 12)):
        assert -(-seconds // row_seconds(seconds)) == rows


@pytest.mark.parametrize(("seconds", "count"), [(3, 4), (7200, 400)])
def test_no_label_of_a_timeline_is_cut(tmp_path: Path, seconds: float, count: int):
    head = bouts(count, seconds, classes=25)
    draw_timeline(tmp_path / "t.png", {"verb": head, "noun": head[: count // 2]}, title="$a.mp4")
    with Image.open(tmp_path / "t.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels[[0, -1]].min() == pixels[:, [0, -1]].min() == 255


@pytest.mark.parametrize(("names", "classes"), [([""], 22), (["_verb $a$ x$", "noun"], 18)])
def test_the_legend_of_a_timeline_is_below_the_bars(tmp_path: Path, names: list[str], classes: int):
    one = {"probability": 0.5}
    bouts = [one | {"start": i, "end": i + 1, "label": f"class {i}", "index": i} for i in range(classes)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, if there is no place for the bars
        figure = draw_timeline(tmp_path / "t.png", dict.fromkeys(names, bouts), title="a.mp4")
        FigureCanvasAgg(figure).draw()
    heights = [panel.get_window_extent().height / figure.dpi for panel in figure.axes]
    assert min(heights) > 0.7 * ROW
    assert [panel.get_ylabel() for panel in figure.axes] == [name.replace("$", r"\$") for name in names]
    (legend,) = figure.legends
    assert len(legend.get_texts()) == len(names) * min(classes, 21)
    assert legend.get_window_extent().y1 < min(panel.get_tightbbox().y0 for panel in figure.axes)


def test_truth_and_prediction_share_the_legend_and_background_is_pale(tmp_path: Path):
    def bout(start: float, end: float, label: str | None, index: int | None) -> dict:
        return {"start": start, "end": end, "label": label, "index": index, "probability": 1.0}

    heads = {
        "truth": [bout(0, 6, None, None), bout(6, 10, "run", 1)],
        "prediction": [bout(0, 5, "background", 0), bout(5, 9, "run", 1), bout(9, 10, "sit", 2)],
    }
    figure = draw_timeline(tmp_path / "t.png", heads, title="a.mp4", aligned=True)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "run  truth 4.0 s, 40.0%; prediction 4.0 s, 40.0%",
        "sit  truth 0.0 s, 0.0%; prediction 1.0 s, 10.0%",
        "background  truth 6.0 s, 60.0%; prediction 5.0 s, 50.0%",
    ]
    first = []  # of each head, the color of the first bar and its height in both layers
    for panel in figure.axes:
        layers = [each for each in panel.collections if isinstance(each, PolyCollection)]
        heights = [layer.get_paths()[0].vertices[:, 1].max() for layer in layers]
        first.append((layers[0].get_facecolor()[0].tolist(), heights))
    assert first[0] == first[1]
    assert first[0][1] == [1, 0]


def test_no_window_has_no_bout_and_a_video_of_no_length_is_drawn(tmp_path: Path):
    assert merge_windows([], [], np.zeros(0), background=None) == []
    bout = {"start": 0.0, "end": 0.0, "start_frame": 0, "end_frame": 1, "label": "a", "index": 0}
    draw_timeline(tmp_path / "t.png", {"": [bout | {"probability": 0.5}]}, title="a.mp4")
    assert (tmp_path / "t.png").stat().st_size > 0


def test_up_to_20_classes_have_the_same_colors_in_all_figures():
    assert len(set(colors_of(range(20)).values())) == 20
    assert colors_of([7])[7] == colors_of([3, 7])[7]
    many = colors_of([0, 20, 40, 1])  # the first 20 take the colors of their places, or the next that is free
    assert len(set(many.values())) == 4
    assert len(set(colors_of(range(30)).values())) == 21  # the others share one
