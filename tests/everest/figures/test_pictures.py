import warnings
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from small_runs import run

import everest
from everest.config.heads import Head
from everest.config.recipe import make_strategy
from everest.errors import DataError, RecipeError
from everest.figures.masks import apply_strategies
from everest.figures.rows import HIDDEN_GRAY, ROW_LENGTH, TINT, ClipMask, draw_rows, make_figure_rows
from everest.lists.classes import Classes
from everest.methods.grid import patchify
from everest.methods.importance import RawPixels
from everest.methods.strategies import RedundancyRobust
from everest_demo.motions import CLASSES
from everest_workflows.annotations.bout import Bout
from everest_workflows.recordings.bouts import PredictedBout
from everest_workflows.recordings.timeline_figure import MAX_LANES, MAX_PANELS, draw_budget, draw_timelines
from everest_workflows.recordings.timelines import Timelines, VideoTimeline


@pytest.fixture(scope="module")
def shown(clip_files: Path) -> tuple[torch.Tensor, ClipMask]:
    """A clip, and the mask of a model's own strategy on it."""
    clip = everest.read_clip(clip_files / "clip0.mp4", frames=8, stride=2, size=32)
    torch.manual_seed(0)
    model = everest.create_model("vit-tiny", kind="pretrain", frames=8, size=32, tubelet=(2, 8, 8), depth=1)
    strategies = [("", model.strategy)]
    (mask,) = apply_strategies(clip, strategies, embed=model.embedding, model=model, seed=0)
    return clip, mask


def patches_of(frames: torch.Tensor) -> torch.Tensor:
    """(T, H, W, 3) frames as (N, values)."""
    return patchify(frames.movedim(-1, 0)[None], (2, 8, 8))[0].flatten(1)


def test_rows_show_the_tokens_they_are_named_after(shown):
    clip, mask = shown
    true = patches_of(clip.movedim(0, -1) / 255)
    visible, target = mask.visible, mask.predicted_ids
    left_out = torch.ones(64, dtype=torch.bool)
    left_out[mask.kept] = False
    original, kept, reconstructed, importance = make_figure_rows([mask])
    torch.testing.assert_close(patches_of(original.frames), true, atol=1e-6, rtol=0)
    torch.testing.assert_close(patches_of(kept.frames)[visible], true[visible], atol=1e-6, rtol=0)
    orange = patches_of(torch.tensor(TINT).expand(8, 32, 32, 3))  # of predicted tokens
    mixed = (true + orange)[target] / 2
    torch.testing.assert_close(patches_of(kept.frames)[target], mixed, atol=1e-6, rtol=0)
    for row in (kept, reconstructed):
        assert (patches_of(row.frames)[left_out] == HIDDEN_GRAY).all()
    torch.testing.assert_close(patches_of(reconstructed.frames)[visible], true[visible], atol=1e-6, rtol=0)
    assert (patches_of(reconstructed.frames)[target] != HIDDEN_GRAY).any(dim=1).all()
    heat = importance.frames  # of each pixel's token
    assert heat.shape == (8, 32, 32)
    assert torch.equal(heat[::2, ::8, ::8].flatten(), mask.importance)
    blocks = heat[0].unfold(0, 8, 8).unfold(1, 8, 8).flatten(0, 1)
    assert all((block == block[0, 0]).all() for block in blocks)


def test_without_a_model_pixels_measure_and_nothing_is_predicted(shown, monkeypatch):
    clip, _ = shown
    strategy = RedundancyRobust(keep_ratio=0.5)
    (view,) = apply_strategies(clip, [("", strategy)], embed=RawPixels((2, 8, 8)), seed=0)
    before, now = (everest.normalize(clip)[:, i : i + 2].unfold(2, 8, 8).unfold(3, 8, 8) for i in (0, 2))
    change = (now - before).square().sum(dim=(0, 1, 4, 5)).sqrt().flatten()  # of time index 1
    torch.testing.assert_close(view.importance[16:32], change)
    assert view.predicted is None
    monkeypatch.setattr(RedundancyRobust, "importance", lambda *_: torch.zeros(1, 7))
    with pytest.raises(RecipeError, match="one number for each token"):
        views_of("redundancy-robust")


def views_of(*strategies: str, size: tuple[int, int] = (48, 64), frames: int = 8) -> list[ClipMask]:
    generator = torch.Generator().manual_seed(0)
    clip = torch.randint(0, 256, (3, frames, *size), generator=generator).to(torch.uint8)
    strategies = [(name, make_strategy(name, {})) for name in strategies]
    return apply_strategies(clip, strategies, embed=RawPixels((2, 8, 8)), seed=0)


def test_the_counts_are_the_numbers_of_tokens():
    views = views_of("redundancy-robust", "tube", "frame-difference")
    assert (len(views[0].kept), len(views[0].visible), views[0].grid.num_tokens) == (57, 19, 192)
    _, robust, tube, _, first, second = make_figure_rows(views)
    assert robust.note == "visible 9.9 % = 19 of 192\npredicted 19.8 % = 38 of 192"
    assert tube.note == "visible 10.4 % = 20 of 192\npredicted 89.6 % = 172 of 192"
    for row, view in ((first, views[0]), (second, views[-1])):
        assert torch.equal(row.frames[::2, ::8, ::8].flatten(), view.importance)
    # Keep ratios share one measure, so one row.
    assert len(make_figure_rows(views_of("redundancy-robust", "redundancy-robust"))) == 4


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Receives the figures that are sampled."""
    sampled: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda f, *args, **kw: (sampled.append(f), savefig(f, *args, **kw))
    )
    return sampled


SEVERAL = ("redundancy-robust", "tube", "running-cell")


@pytest.mark.parametrize("size", [(48, 64), (96, 32), (32, 128)])
@pytest.mark.parametrize(
    ("frames", "strategies"),
    [
        *((4, SEVERAL[:1]), (32, SEVERAL)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((4, SEVERAL), (32, SEVERAL[:1]))),
    ],
)
def test_words_do_not_overlap_and_name_the_frames(figure, tmp_path, size, frames, strategies):
    views, numbers = views_of(*strategies, size=size, frames=frames), range(100, 100 + 3 * frames, 3)
    title = "a name of a video that is rather long, as many are.mp4\npredicted tokens are orange"
    length = views[0].grid.t
    draw_rows(
        tmp_path / "figure.png",
        make_figure_rows(views),
        num_time_indices=length,
        title=title,
        numbers=numbers,
    )
    (sampled,) = figure
    FigureCanvasAgg(sampled).draw()
    texts = [text for text in sampled.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = [text.get_window_extent() for text in texts]
    boxes += [panel.get_window_extent() for panel in sampled.axes if panel.images]
    overlaps = [
        (one, other)
        for one, other in combinations(boxes, 2)
        if min(one.x1, other.x1) - max(one.x0, other.x0) > 1
        and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
    ]
    assert overlaps == []
    titles = [panel.get_title() for panel in sampled.axes if panel.get_title()]
    second = 100 + 3 * frames // len(titles)
    assert titles[:2] == ["frames 100, 103", f"frames {second}, {second + 3}"]
    assert len(titles) == min(frames // 2, ROW_LENGTH)


@pytest.mark.slow
def test_the_demo_shows_what_pretraining_is_worth(tmp_path: Path):
    shown = run("demo -q", "-o", tmp_path / "demo")
    lines = [line.split("|") for line in shown.splitlines() if line.endswith("% |")]
    pretrained, scratch, chance = (float(line[2].split()[0]) for line in lines)
    assert chance == 100 / len(CLASSES)
    assert pretrained > 3 * chance
    assert pretrained > scratch + 15
    assert (tmp_path / "demo" / "reconstruction.png").is_file()


def test_tokens_of_gray_clips_are_selected_and_other_dimensions_are_refused():
    clip = torch.rand(1, 1, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    assert everest.select_tokens(clip, keep=0.5).visible.shape == (1, 8)
    with pytest.raises(ValueError, match="expected clips"):
        everest.select_tokens(clip[0])


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


@pytest.mark.parametrize("videos", [1, pytest.param(MAX_PANELS + 2, marks=pytest.mark.slow)])
def test_each_recording_has_a_panel_and_no_label_is_cut(tmp_path: Path, videos: int):
    names = tuple(f"$class_{i}" for i in range(25))
    sampled = timelines(Head(outputs=25), seconds=400, names=names, videos=videos)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, if there is no place for the bars
        figure = draw_timelines(tmp_path / "t.png", sampled, sampled.bouts(), {})
    with Image.open(tmp_path / "t.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels[[0, -1]].min() == pixels[:, [0, -1]].min() == 255
    assert len(figure.axes) == min(videos, MAX_PANELS)
    assert ("2 other panels not shown" in figure.get_supxlabel()) == (videos > MAX_PANELS)
    for panel in figure.axes:
        assert len(panel.get_yticklabels()) == MAX_LANES
        assert "5 other classes not shown" in panel.get_title(loc="left")


def test_lanes_have_the_order_of_the_classes_in_all_figures_of_a_model(tmp_path: Path):
    sampled = timelines(Head(outputs=3), seconds=10, names=("background", "run", "sit"))
    spans = {"background": (0, 5), "run": (5, 9), "sit": (9, 10)}
    bouts = [predicted(name, start, end) for name, (start, end) in spans.items()]
    truth = [Bout(video="a", start=6, end=10, label="run"), Bout(video="a", start=0, end=1, label="unscored")]
    figure = draw_timelines(tmp_path / "t.png", sampled, [{"": bouts}], {"$0.mp4": truth})
    (panel,) = figure.axes
    labels = [label.get_text() for label in panel.get_yticklabels()]
    assert labels == ["run", "sit", "background"]
    FigureCanvasAgg(figure).draw()
    tops = [tick.get_window_extent().y1 for tick in panel.get_yticklabels()]
    assert all(above > below for above, below in pairwise(tops))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (panel,) = draw_timelines(tmp_path / "none.png", sampled, [{"": []}], {}).axes  # without a bout
    assert [text.get_text() for text in panel.texts] == ["no class is present"]
    sampled = timelines(Head(outputs=2), seconds=0, names=("run", "sit"))
    with pytest.raises(DataError, match=r"^no recording has a window"):
        draw_timelines(tmp_path / "windows.png", sampled, [{"": []}], {})


def test_twenty_classes_have_their_own_color_which_is_that_of_every_recording(tmp_path: Path):
    names = ("background", *(f"class {number}" for number in range(20)))
    sampled = timelines(Head(outputs=21), seconds=21, names=names, videos=2)
    rows = [predicted(name, second, second + 1) for second, name in enumerate(names)]
    truth = [Bout(video="a", start=0, end=1, label="class 3")]
    bouts = [{"": rows[1:]}, {"": rows[::-1]}]
    figure = draw_timelines(tmp_path / "t.png", sampled, bouts, {"$0.mp4": truth})
    colors = []
    for panel in figure.axes:
        lanes = [label.get_text() for label in panel.get_yticklabels()]
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
    sampled = timelines(*heads, seconds=5, names=("a", "b", "c"))
    figure = draw_timelines(tmp_path / "t.png", sampled, sampled.bouts(), {})
    assert [panel.get_title(loc="left") for panel in figure.axes] == [
        *(rf"\$0.mp4, {name}" for name in ("verb", "tags", r"_\$"))
    ]
    (curve,) = figure.axes[2].lines
    assert np.array_equal(curve.get_ydata(), sampled.videos[0].outputs[:, 5])


def test_a_budget_has_a_panel_for_each_class_with_a_point_and_an_interval_for_each_group(tmp_path: Path):
    rows = [
        {"group": group, "class": name, "footage": footage, "seconds": middle, "interval": [low, high]}
        for group, footage, *amounts in (
            ("", 200.0, (50, 40, 60), (10, 0, 30)),
            ("m1", 50.0, (20, 10, 25), (5, 0, 10)),
            ("m2", 150.0, (30, 15, 60), (0, 0, 15)),
        )
        for name, (middle, low, high) in zip("ab", amounts, strict=True)
    ]
    panels = draw_budget(tmp_path / "shares.png", {"rows": rows}).axes
    assert [panel.get_title(loc="left") for panel in panels] == ["a", "b"]
    fractions = [
        [line.get_xdata()[0] for line in panel.lines if line.get_marker() == "o"] for panel in panels
    ]
    assert fractions == [[25, 40, 20], [5, 10, 0]]
    names = [label.get_text() for label in panels[0].get_yticklabels()]
    assert names == ["all recordings", "m1", "m2"]
    first = next(line for line in panels[0].collections if isinstance(line, LineCollection))
    assert first.get_segments()[0][:, 0].tolist() == [20, 30]
