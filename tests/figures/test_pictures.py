from pathlib import Path

import pytest
import torch
from small_runs import refused, run

import everest
from everest.config.recipe import load_recipe
from everest.figures.masks import GRAY, view_masks, view_model
from everest.figures.pictures import FigureRow, rows_of
from everest.methods.grid import patchify
from everest.methods.importance import NO_CHANGE, DistanceName
from everest.methods.masks import Tube
from everest.methods.strategies import FrameDifference, RedundancyRobust
from everest.models.of_recipe import pretrain_spec
from everest_demo.motions import CLASSES


@pytest.fixture(scope="module")
def rows(clip_files: Path):
    clip = everest.read_clip(clip_files / "clip0.mp4", frames=8, stride=2, size=32)
    torch.manual_seed(0)
    model = everest.create_model("vit-tiny", kind="pretrain", frames=8, size=32, tubelet=(2, 8, 8), depth=1)
    noise = torch.rand(64)
    chosen = model.select(everest.normalize(clip)[None], noise[None])
    return clip, chosen, view_model(model, clip, noise=noise)


def patches_of(frames: torch.Tensor) -> torch.Tensor:
    """(T, H, W, 3) frames as (N, values)."""
    return patchify(frames.movedim(-1, 0)[None], (2, 8, 8))[0].flatten(1)


def test_rows_show_the_tokens_they_are_named_after(rows):
    clip, chosen, shown = rows
    true = patches_of(clip.movedim(0, -1) / 255)
    visible, target = chosen.visible[0], chosen.target[0]
    left_out = torch.ones(64, dtype=torch.bool)
    left_out[torch.cat([visible, target])] = False
    torch.testing.assert_close(patches_of(shown.frames), true, atol=1e-6, rtol=0)
    kept, seen = (shown.pixels_of(tokens) for tokens in (shown.kept, shown.visible))
    torch.testing.assert_close(patches_of(kept)[~left_out], true[~left_out], atol=1e-6, rtol=0)
    torch.testing.assert_close(patches_of(seen)[visible], true[visible], atol=1e-6, rtol=0)
    for row in (kept, seen, shown.predicted):
        assert (patches_of(row)[left_out] == GRAY).all()
    assert (patches_of(seen)[target] == GRAY).all()
    assert (patches_of(shown.predicted)[target] != GRAY).any(dim=1).all()


def test_heat_is_the_importance_of_each_pixels_token(rows):
    _, _, shown = rows
    heat = shown.heat()
    assert heat.shape == (8, 32, 32)
    assert torch.equal(heat[::2, ::8, ::8].flatten(), shown.importance)
    blocks = heat[0].unfold(0, 8, 8).unfold(1, 8, 8).flatten(0, 1)
    assert all((block == block[0, 0]).all() for block in blocks)


def test_without_a_model_pixels_measure_and_nothing_is_predicted(rows):
    clip, _, _ = rows
    selector = RedundancyRobust(keep_ratio=0.5)
    (view,) = view_masks(clip, [("", selector)], model=None, tubelet=(2, 8, 8), seed=0)
    before, now = (everest.normalize(clip)[:, i : i + 2].unfold(2, 8, 8).unfold(3, 8, 8) for i in (0, 2))
    change = (now - before).square().sum(dim=(0, 1, 4, 5)).sqrt().flatten()  # of slice 1
    torch.testing.assert_close(view.importance[16:32], change)
    assert view.predicted is None


@pytest.mark.parametrize(("normalize", "label"), [(True, "predicted*"), (False, "predicted")])
def test_only_normalised_predictions_are_marked(rows, normalize, label):
    """The true mean and std are added back to normalized predictions only."""
    clip, _, _ = rows
    recipe = ["data.frames=8", "data.size=32", "model.backbone=vit-tiny", "model.tubelet=[2, 8, 8]"]
    settings = load_recipe("custom", overrides=[*recipe, f"pretrain.target.normalize={normalize}"])
    model = pretrain_spec(settings, tokenizer=None).build()
    view = view_model(model, clip, noise=torch.rand(64))
    assert label in [row.label for row in rows_of([view])]


def test_several_strategies_have_a_row_for_each_importance(rows):
    robust, ascending = RedundancyRobust(), RedundancyRobust(order="ascending")
    both = [("robust", robust), ("robust", ascending)]  # one measure, so one row
    views = view_masks(rows[0], [*both, ("tube", Tube())], model=None, tubelet=(2, 8, 8), seed=0)
    labels = [row.label for row in rows_of(views)]
    assert labels == ["original", *(view.title for view in views), "importance"]
    views += view_masks(rows[0], [("difference", FrameDifference())], model=None, tubelet=(2, 8, 8), seed=0)
    *_, first, second = rows_of(views)
    assert [first.label, second.label] == ["importance", "importance"]
    assert [row.note.split(":")[0] for row in (first, second)] == ["robust", "difference"]
    assert torch.equal(first.frames, views[0].heat())
    assert torch.equal(second.frames, views[-1].heat())


@pytest.mark.parametrize("distance", ["l2", "neg-cosine", "neg-cka"])
def test_the_scale_of_importance_begins_at_no_change(rows, distance: DistanceName):
    def importance_of(clip: torch.Tensor) -> FigureRow:
        selector = RedundancyRobust(distance=distance)
        (*_, row) = rows_of(view_masks(clip, [("", selector)], model=None, tubelet=(2, 8, 8), seed=0))
        return row

    moving, still = importance_of(rows[0]), importance_of(rows[0][:, :1].expand(-1, 8, -1, -1))
    scale = moving.scale
    assert (scale.vmin, scale.vmax) == (NO_CHANGE[distance], moving.frames.max())
    assert 0 < scale(float(moving.frames.median())) < 1
    assert moving.note == "change since the previous time slice"
    assert still.note.endswith("(there is none)")
    assert still.scale(NO_CHANGE[distance]) == 0


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
