import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

import everest
from everest.config.recipe import make_selector
from everest.data.crops import resize
from everest.figures.animation import STYLE, animation_figure, draw_frames
from everest.figures.legend import CHOICES, DROPPED, PREDICTED, ShownFrames, legend_of, view_title
from everest.figures.mask_choice import requested_selectors
from everest.figures.mask_files import MaskRequest
from everest.figures.masks import GRAY, MaskView, view_masks
from everest.figures.pictures import draw_rows, rows_of
from everest.methods.strategies import STRATEGIES
from everest.video.writer import write_video

SIZES = [(48, 64), (96, 32), (32, 128)]  # landscape, portrait, wide


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 frames of noise, all different."""
    path = tmp_path_factory.mktemp("video") / "noise.mp4"
    frames = torch.randint(0, 256, (50, 48, 64, 3), generator=torch.Generator().manual_seed(0))
    write_video(path, frames.to(torch.uint8), 24)
    return path


def request(**options: Any) -> MaskRequest:
    selectors = requested_selectors(None, (), {}, compared=False, has_tokenizer=False)
    values = {"frames": 8, "stride": 3, "windows": 1, "size": 48, "seed": 0, "model": None}
    return MaskRequest(**values | {"selectors": selectors} | options)


def views_of(
    *strategies: str, size: tuple[int, int] = (48, 64), frames: int = 8, keep: float | None = None
) -> list[MaskView]:
    generator = torch.Generator().manual_seed(0)
    clip = torch.randint(0, 256, (3, frames, *size), generator=generator).to(torch.uint8)
    plain = [(name, make_selector(name, {})) for name in strategies]
    selectors = plain if keep is None else [(name, selector.showing(keep)) for name, selector in plain]
    return view_masks(clip, selectors, model=None, tubelet=(2, 8, 8), seed=0)


def source_of(frames: int, video: str = "a.mp4") -> ShownFrames:
    return ShownFrames(video=video, numbers=tuple(range(100, 100 + 3 * frames, 3)), total=1000)


def figure_of(views: list[MaskView], source: ShownFrames | None = None) -> Figure:
    with tempfile.TemporaryDirectory() as folder:
        return draw_rows(
            Path(folder) / "figure.png",
            rows_of(views),
            slices=views[0].grid.t,
            title=f"{source}\n{view_title(views[0])}",
            legend=legend_of(views, numbered=source is not None),
            numbers=None if source is None else source.numbers,
        )


def texts_of(figure: Figure) -> list[Text]:
    shown = figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible())
    return [text for text in shown if isinstance(text, Text) and text.get_text().strip()]


@pytest.mark.parametrize("windows", [1, 3])
@pytest.mark.parametrize("stride", [1, 3, 9])
def test_frame_numbers_are_the_numbers_in_the_video(video: Path, windows: int, stride: int):
    for clip, source in request(stride=stride, windows=windows).clips(video):
        frames = everest.read_frames(video, source.numbers)
        assert torch.equal(clip, resize(frames, (48, 64), antialias=False))
        assert source.total == 50


def test_a_source_states_its_frames():
    def text(*numbers: int, missing: int = 0) -> str:
        return str(ShownFrames(video="a.mp4", numbers=numbers, total=84, missing=missing))

    assert text(8, 12, 16) == "a.mp4: 3 of 84 frames, 8 to 16 in steps of 4"
    assert text(8, 9, 10) == "a.mp4: 3 of 84 frames, 8 to 10"
    assert text(3) == "a.mp4: 1 of 84 frames, 3"
    repeated = "a.mp4: 3 of 84 frames, 0 to 80 in steps of 40; the video is too short for 5 such frames: "
    assert text(0, 40, 80, 80, 80, missing=2) == repeated + "the last is repeated"


def test_a_source_states_why_frames_are_repeated(video: Path):
    def reasons(**options: Any) -> list[str]:
        ((_, source),) = request(size=16, **options).clips(video)
        return str(source).split("; ")[1:]

    slow = "frames are repeated because the video has fewer than 60 per second"
    short = "the video is too short for %d such frames: the last is repeated"
    assert reasons(stride=7) == reasons(stride=1, fps=24) == []
    assert reasons(stride=8) == [short % 8]
    assert reasons(stride=40, fps=60) == [short % 8]
    assert reasons(stride=1, fps=60) == [slow]
    assert reasons(stride=1, fps=1000, frames=2) == [slow.replace("60", "1000")]  # one number, twice
    assert reasons(stride=1, fps=60, frames=140) == [slow, short % 140]
    evenly = {"frames": 64, "sampling": "spread"}
    assert reasons(stride=1, **evenly) == ["frames are repeated because the video has fewer"]
    assert reasons(stride=1, fps=30, **evenly | {"frames": 60}) == [slow.replace("60", "30")]


def test_columns_name_the_frames_of_their_time_slice():
    views = views_of("redundancy-robust", frames=8)
    titles = [ax.get_title() for ax in figure_of(views, source_of(8)).axes if ax.get_title()]
    assert titles == ["frames 100, 103", "frames 106, 109", "frames 112, 115", "frames 118, 121"]
    titles = [ax.get_title() for ax in figure_of(views).axes if ax.get_title()]
    assert titles == ["frames 0, 1", "frames 2, 3", "frames 4, 5", "frames 6, 7"]
    long = views_of("redundancy-robust", frames=32)  # 16 slices: every second one has a column
    titles = [ax.get_title() for ax in figure_of(long, source_of(32)).axes if ax.get_title()]
    assert titles[:2] == ["frames 100, 103", "frames 112, 115"]
    assert len(titles) == 8


def test_the_counts_are_the_numbers_of_tokens():
    (view,) = views_of("redundancy-robust")
    kept, visible, total = len(view.kept), len(view.visible), view.grid.num_tokens
    assert (kept, visible, total) == (57, 19, 192)
    assert view_title(view) == (
        "redundancy-robust keeps 29.7 % = 57 of 192 tokens, of which 9.9 % = 19 are visible to the encoder"
    )
    notes = {row.label: row for row in rows_of([view])}
    assert notes["kept tokens"].note == "29.7 % = 57 of 192"
    assert notes["visible tokens"].note.endswith("9.9 % = 19 of 192")
    assert notes["kept tokens"].captions == [f"{count} of 48" for count in view.kept_per_slice()]
    (tube,) = views_of("tube")
    assert view_title(tube) == "tube: 10.4 % = 20 of 192 tokens are visible, all others are predicted"
    assert [row.label for row in rows_of([tube])] == ["original", "visible tokens"]
    robust, tube = rows_of(views_of("redundancy-robust", "tube"))[1:3]
    assert robust.note == "visible 9.9 % = 19 of 192\npredicted 19.8 % = 38 of 192"
    assert tube.note == "visible 10.4 % = 20 of 192\npredicted 89.6 % = 172 of 192"
    several = rows_of(views_of("redundancy-robust", "frame-difference", keep=0.5))
    assert [row.note for row in several[1:3]] == ["keeps 50 % = 96 of 192"] * 2


def test_views_of_uniform_draws_have_no_importance_and_hide_nothing():
    selector = make_selector("drawn", {"uniform": 1.0, "visible_ratio": None})
    clip = torch.randint(0, 256, (3, 8, 48, 64), generator=torch.Generator().manual_seed(0)).byte()
    pair = [("drawn, view 1", selector), ("drawn, view 2", selector)]
    views = view_masks(clip, pair, model=None, tubelet=(2, 8, 8), seed=0)
    assert views[0].kept.tolist() != views[1].kept.tolist()
    assert [row.label for row in rows_of(views)] == ["original", "drawn, view 1", "drawn, view 2"]
    legend = legend_of(views, numbered=True)
    assert "drawn, view 1: draws tokens, all with the same probability" in legend
    assert sum(line.startswith("each view has other tokens, here of one clip") for line in legend) == 1
    assert not any("importance" in line or "reddish" in line for line in legend)


@pytest.mark.parametrize("strategies", [["redundancy-robust"], ["tube"], ["redundancy-robust", "tube"]])
def test_every_color_of_the_pixels_is_in_the_legend(strategies: list[str]):
    assert set(CHOICES) == set(STRATEGIES)
    views = views_of(*strategies)
    legend = legend_of(views, numbered=True)
    colors = list(legend.values())
    rows = [row.frames for row in rows_of(views) if row.frames.dim() == 4]
    grayed = any(bool((frames == GRAY).all(dim=-1).any()) for frames in rows)
    assert (DROPPED in colors) == grayed
    assert (PREDICTED in colors) == (len(views) > 1)
    for name in strategies:
        assert f"{name}: {CHOICES[name]}".format(most="most") in legend
    assert any(text.startswith("token: 2 frames x 8 x 8 pixels") for text in legend)
    drawn = {text.get_text() for text in texts_of(figure_of(views, source_of(8)))}
    assert {" ".join(text.split()) for text in drawn} >= set(legend)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frames", [4, 16])
@pytest.mark.parametrize("strategies", [["redundancy-robust"], ["redundancy-robust", "tube", "running-cell"]])
def test_all_words_are_inside_the_image(size: tuple[int, int], frames: int, strategies: list[str]):
    views = views_of(*strategies, size=size, frames=frames)
    figure = figure_of(views, source_of(frames, "a name of a video that is rather long, as many are.mp4"))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    for text in texts_of(figure):
        box = text.get_window_extent()
        assert (box.x0, box.y0) >= (0, 0), text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    panels = [ax for ax in figure.axes if ax.images]
    left = min(ax.get_window_extent().x0 for ax in panels)
    names = [text for ax in panels for text in ax.texts]
    assert len(names) == 2 * len(rows_of(views))
    assert all(text.get_window_extent().x1 <= left for text in names)
    legend_top = figure.legends[0].get_window_extent().y1
    assert legend_top <= min(ax.get_tightbbox().y0 for ax in panels)


@pytest.mark.parametrize("size", SIZES)
def test_an_animation_has_panels_of_readable_size(size: tuple[int, int]):
    views, source = views_of("redundancy-robust", size=size), source_of(8)
    legend = legend_of(views, numbered=True)
    animation = draw_frames(rows_of(views), title=str(source), legend=legend, source=source)
    frames, height, width, _ = animation.shape
    assert frames == 8
    assert (height % 2, width % 2) == (0, 0)
    assert 600 <= width <= 1200
    assert 400 <= height <= 1200
    changed = (animation[0] != animation[1]).any(dim=-1)
    rows = changed.any(dim=1).nonzero().flatten()
    assert rows[0] > 20  # the title rests
    assert rows[-1] < height - 60  # and so does the legend


@pytest.mark.parametrize("strategies", [["redundancy-robust"], ["random", "tube", "redundancy-robust"]])
@pytest.mark.parametrize("size", [(48, 64), (32, 48)])
def test_no_words_of_an_animation_are_on_others(size: tuple[int, int], strategies: list[str]):
    views = views_of(*strategies, size=size, frames=2)
    source = source_of(2, "a name of a video that is rather long, as many are.mp4")
    title = f"{source}\n{view_title(views[0])}; change measured on pixels (no checkpoint)"
    with matplotlib.rc_context(STYLE):
        figure = animation_figure(rows_of(views), title=title, legend=legend_of(views, numbered=True))
        FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for text in texts_of(figure)]
    boxes += [ax.get_window_extent() for ax in figure.axes if ax.images]
    # A pixel: lines of a legend may touch.
    overlaps = [
        (one, other)
        for one, other in combinations(boxes, 2)
        if min(one.x1, other.x1) - max(one.x0, other.x0) > 1
        and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
    ]
    assert overlaps == []
    whole = figure.bbox
    assert all(whole.x0 <= box.x0 and whole.y0 <= box.y0 for box in boxes)
    assert all(box.x1 <= whole.x1 and box.y1 <= whole.y1 for box in boxes)
