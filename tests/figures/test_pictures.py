from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from small_runs import json_of, refused, run

import everest
from everest.config.recipe import make_strategy
from everest.errors import RecipeError
from everest.figures.masks import apply_model, apply_strategies
from everest.figures.rows import COLUMNS, GRAY, ClipMask, draw_rows, mask_title, rows_of
from everest.methods.grid import patchify
from everest.methods.importance import RawPixels
from everest.methods.strategies import RedundancyRobust
from everest.video.writer import write_video
from everest_demo.motions import CLASSES


@pytest.fixture(scope="module")
def rows(clip_files: Path):
    clip = everest.read_clip(clip_files / "clip0.mp4", frames=8, stride=2, size=32)
    torch.manual_seed(0)
    model = everest.create_model("vit-tiny", kind="pretrain", frames=8, size=32, tubelet=(2, 8, 8), depth=1)
    noise = torch.rand(64)
    chosen = model.select(everest.normalize(clip)[None], noise[None])
    return clip, chosen, apply_model(model, clip, noise=noise)


def patches_of(frames: torch.Tensor) -> torch.Tensor:
    """(T, H, W, 3) frames as (N, values)."""
    return patchify(frames.movedim(-1, 0)[None], (2, 8, 8))[0].flatten(1)


def test_rows_show_the_tokens_they_are_named_after(rows):
    clip, chosen, shown = rows
    true = patches_of(clip.movedim(0, -1) / 255)
    visible, target = chosen.visible[0], chosen.target[0]
    left_out = torch.ones(64, dtype=torch.bool)
    left_out[torch.cat([visible, target])] = False
    original, kept, seen, predicted, importance = rows_of([shown])
    assert [row.label for row in (kept, seen, predicted)] == ["kept tokens", "visible tokens", "predicted"]
    torch.testing.assert_close(patches_of(original.frames), true, atol=1e-6, rtol=0)
    torch.testing.assert_close(patches_of(kept.frames)[~left_out], true[~left_out], atol=1e-6, rtol=0)
    torch.testing.assert_close(patches_of(seen.frames)[visible], true[visible], atol=1e-6, rtol=0)
    for row in (kept, seen, predicted):
        assert (patches_of(row.frames)[left_out] == GRAY).all()
    assert (patches_of(seen.frames)[target] == GRAY).all()
    assert (patches_of(predicted.frames)[target] != GRAY).any(dim=1).all()
    heat = importance.frames  # of each pixel's token
    assert heat.shape == (8, 32, 32)
    assert torch.equal(heat[::2, ::8, ::8].flatten(), shown.importance)
    blocks = heat[0].unfold(0, 8, 8).unfold(1, 8, 8).flatten(0, 1)
    assert all((block == block[0, 0]).all() for block in blocks)


def test_without_a_model_pixels_measure_and_nothing_is_predicted(rows, monkeypatch):
    clip, _, _ = rows
    strategy = RedundancyRobust(keep_ratio=0.5)
    (view,) = apply_strategies(clip, [("", strategy)], model=None, embed=RawPixels((2, 8, 8)), seed=0)
    before, now = (everest.normalize(clip)[:, i : i + 2].unfold(2, 8, 8).unfold(3, 8, 8) for i in (0, 2))
    change = (now - before).square().sum(dim=(0, 1, 4, 5)).sqrt().flatten()  # of slice 1
    torch.testing.assert_close(view.importance[16:32], change)
    assert view.predicted is None
    monkeypatch.setattr(RedundancyRobust, "importance", lambda *_: torch.zeros(1, 7))
    with pytest.raises(RecipeError, match="one number for each token"):
        views_of("redundancy-robust")


def views_of(*strategies: str, size: tuple[int, int] = (48, 64), frames: int = 8) -> list[ClipMask]:
    generator = torch.Generator().manual_seed(0)
    clip = torch.randint(0, 256, (3, frames, *size), generator=generator).to(torch.uint8)
    strategies = [(name, make_strategy(name, {})) for name in strategies]
    return apply_strategies(clip, strategies, model=None, embed=RawPixels((2, 8, 8)), seed=0)


def test_the_counts_are_the_numbers_of_tokens():
    (view,) = views_of("redundancy-robust")
    assert (len(view.kept), len(view.visible), view.grid.num_tokens) == (57, 19, 192)
    kept, seen = "29.7 % = 57 of 192", "9.9 % = 19 of 192"
    assert mask_title(view) == f"redundancy-robust keeps {kept} tokens; {seen} are visible"
    assert [row.note for row in rows_of([view])[1:3]] == [kept, seen]
    assert [row.label for row in rows_of(views_of("tube"))] == ["original", "visible tokens"]
    several = views_of("redundancy-robust", "tube", "frame-difference")
    _, robust, tube, _, first, second = rows_of(several)
    assert (robust.note, tube.note) == (f"keeps {kept}", "shows 10.4 % = 20 of 192")
    for row, view in ((first, several[0]), (second, several[-1])):
        assert torch.equal(row.frames[::2, ::8, ::8].flatten(), view.importance)
    # Keep ratios share one measure, so one row.
    assert len(rows_of(views_of("redundancy-robust", "redundancy-robust"))) == 4


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Receives the figures that are drawn."""
    drawn: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *args, **kw: (drawn.append(f), savefig(f, *args, **kw)))
    return drawn


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
    title = f"a name of a video that is rather long, as many are.mp4\n{mask_title(views[0])}"
    slices = views[0].grid.t
    draw_rows(tmp_path / "figure.png", rows_of(views), slices=slices, title=title, numbers=numbers)
    (drawn,) = figure
    FigureCanvasAgg(drawn).draw()
    texts = [text for text in drawn.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = [text.get_window_extent() for text in texts]
    boxes += [panel.get_window_extent() for panel in drawn.axes if panel.images]
    overlaps = [
        (one, other)
        for one, other in combinations(boxes, 2)
        if min(one.x1, other.x1) - max(one.x0, other.x0) > 1
        and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
    ]
    assert overlaps == []
    titles = [panel.get_title() for panel in drawn.axes if panel.get_title()]
    second = 100 + 3 * frames // len(titles)
    assert titles[:2] == ["frames 100, 103", f"frames {second}, {second + 3}"]
    assert len(titles) == min(frames // 2, COLUMNS)


def test_a_demo_does_not_write_over_another(tmp_path: Path):
    (tmp_path / "demo-videos").mkdir()
    (tmp_path / "report.md").write_text("finished")
    assert "holds a demo" in refused("demo", "-o", tmp_path, code=2)


@pytest.mark.slow
def test_the_demo_shows_what_pretraining_is_worth(tmp_path: Path):
    shown = run("demo -q", "-o", tmp_path / "demo")
    lines = [line.split("|") for line in shown.splitlines() if line.endswith("% |")]
    pretrained, scratch, chance = (float(line[2].split()[0]) for line in lines)
    assert chance == 100 / len(CLASSES)
    assert pretrained > 3 * chance
    assert pretrained > scratch + 15
    assert (tmp_path / "demo" / "reconstruction.png").is_file()


SIDE = 64
OPTIONS = ["--size", "64", "--frames", "8", "--stride", "1"]


def texture(seed: int) -> np.ndarray:
    """(SIDE, 3 * SIDE, 3) uint8, smooth."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 36, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((3 * SIDE, SIDE), Image.Resampling.BICUBIC))


def pan() -> torch.Tensor:
    """(8, SIDE, SIDE, 3) uint8: the camera moves by 3 pixels a frame."""
    return torch.from_numpy(np.stack([texture(0)[:, 3 * time : 3 * time + SIDE] for time in range(8)]))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("camera") / "pan.mp4"
    still = torch.from_numpy(texture(1)[:, :SIDE].copy()).expand(8, -1, -1, -1)  # another scene
    write_video(path, torch.cat([pan(), still]), 10)
    return path


def test_a_figure_ignores_the_cut_on_request(video: Path, tmp_path: Path):
    shown = ["visualize-mask", video, *OPTIONS, "--frames", "16", "--overwrite", "-o", tmp_path]
    (plain,) = json_of(*shown)
    (aligned,) = json_of(*shown, "--align", "affine", "--cuts", "detect")
    assert plain["kept_per_slice"][4] > 2 * aligned["kept_per_slice"][4]


def test_tokens_of_gray_clips_are_selected_and_other_channels_are_refused():
    clip = torch.rand(1, 1, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    assert everest.select_tokens(clip, align="shift", keep=0.5).visible.shape == (1, 8)
    with pytest.raises(ValueError, match="expected clips"):
        everest.select_tokens(clip[0], align="shift")
    with pytest.raises(RecipeError, match="align and cuts need clips of 3 channels here; these have 4"):
        everest.select_tokens(clip.expand(-1, 4, -1, -1, -1), align="shift")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pretrain.selection.align": "zoom"}, "pretrain.selection.align: "),
        ({"model.input": "differences", "finetune.selection.align": "shift"}, "model.input: must be frames"),
        ({"model.input": "differences", "pretrain.selection.cuts": "detect"}, "model.input: must be frames"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, str], message: str):
    options = [f"--set={key}={value}" for key, value in settings.items()]
    assert message in refused("pretrain", "--recipe", "small", *options, "--print-config", code=2)


def test_stats_tell_how_often_the_camera_moves(video: Path):
    camera = json_of("prepare stats", video.parent)["camera"]
    assert 0.3 < camera["moving"] < 0.7
    assert camera["unexplained"] <= 0.2
