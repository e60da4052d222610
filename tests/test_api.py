"""The names of `import everest`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import everest
from everest.data.samples import Sample
from everest.data.views import ValidationViews
from everest.errors import RecipeError
from everest.methods.grid import patchify
from everest.methods.strategies import RedundancyRobust
from everest.models.classifier import VideoClassifier


def test_every_name_is_there():
    for name in everest.__all__:
        assert getattr(everest, name) is not None
    assert everest.normalize is everest.normalise
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        everest.nothing  # noqa: B018


def test_a_clip_of_a_file_goes_through_a_model(clip_files: Path):
    clip = everest.read_clip(clip_files / "clip0.mp4", frames=8, stride=2, size=32)
    assert (clip.dtype, clip.shape) == (torch.uint8, (3, 8, 32, 32))
    x = everest.normalise(clip)[None]
    model = everest.create_model("vit_tiny", kind="pretrain", frames=8, size=32, tubelet=(2, 8, 8))
    out = model(x)
    assert out.selection.visible.shape == (1, 6)
    chosen = everest.TokenSelection(visible=out.selection.visible, target=out.selection.target)
    assert torch.equal(model(x, selection=chosen).loss, out.loss)


def test_tokens_can_be_selected_without_a_model(clip_files: Path):
    x = everest.normalise(everest.read_clip(clip_files / "clip0.mp4", frames=8, stride=2, size=32))[None]
    kept = everest.select_tokens(x, keep=0.25, tubelet=(2, 8, 8))
    assert kept.visible.shape == (1, 16)
    tube = everest.select_tokens(x, strategy="tube", tubelet=(2, 8, 8), mask_ratio=0.75)
    assert tube.visible.shape == (1, 16)
    with pytest.raises(RecipeError, match="did you mean 'tube'"):
        everest.select_tokens(x, strategy="tub")


def test_normalise_refuses_what_is_normalised_already():
    with pytest.raises(ValueError, match="expected uint8"):
        everest.normalise(torch.zeros(3, 2, 8, 8))


def test_a_classifier_needs_its_number_of_classes():
    with pytest.raises(ValueError, match="num_classes"):
        everest.create_model("vit-tiny", kind="classifier")


@pytest.mark.parametrize("strategy", ["random", "tube", "redundancy_robust", "all"])
def test_keep_is_the_share_that_is_visible(strategy):
    x = torch.rand(1, 3, 4, 40, 80)  # 2 slices of 5 x 10 places
    for keep, visible in ((0.1, 10), (0.7, 70), (1, 100)):
        chosen = everest.select_tokens(x, strategy=strategy, keep=keep, tubelet=(2, 8, 8))
        assert chosen.visible.size(1) == visible


def test_without_keep_a_strategy_chooses_as_in_a_recipe():
    x = torch.rand(1, 3, 4, 40, 80)
    assert everest.select_tokens(x, strategy="tube", tubelet=(2, 8, 8)).visible.size(1) == 10
    chosen = everest.select_tokens(x, tubelet=(2, 8, 8))
    assert (chosen.visible.size(1), chosen.target.size(1)) == (10, 20)


def test_settings_by_name_win_over_keep():
    x = torch.rand(1, 3, 4, 40, 80)
    chosen = everest.select_tokens(x, keep=0.5, visible_ratio=0.2, tubelet=(2, 8, 8))
    assert (chosen.visible.size(1), chosen.target.size(1)) == (20, 30)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "tube", "mask_ratoi": 0.5}, "mask_ratoi: unknown key; did you mean 'mask_ratio'"),
        ({"distance": "l3"}, "distance: unknown value 'l3'"),
        ({"strategy": "tube", "mask_ratio": 1.5}, "mask_ratio: must be more than 0 and at most 1"),
        ({"keep": 0.1, "visible_ratio": 0.2}, r"visible_ratio: 0\.2 is more than keep_ratio"),
    ],
)
def test_wrong_settings_of_a_strategy_are_named(settings, message):
    with pytest.raises(RecipeError, match=message):
        everest.select_tokens(torch.rand(1, 3, 4, 32, 32), tubelet=(2, 8, 8), **settings)


@pytest.mark.parametrize("strategy", ["random", "tube", "redundancy-robust", "all"])
@pytest.mark.parametrize("keep", [0, -0.5, 1.01])
def test_keep_must_be_a_share(strategy, keep):
    with pytest.raises(ValueError, match="more than 0 and at most 1"):
        everest.select_tokens(torch.rand(1, 3, 4, 32, 32), strategy=strategy, keep=keep, tubelet=(2, 8, 8))


def test_keep_that_leaves_no_token_is_refused():
    with pytest.raises(ValueError, match="leaves none of 32 tokens"):
        everest.select_tokens(torch.rand(1, 3, 4, 32, 32), keep=0.01, tubelet=(2, 8, 8))


def test_a_strategy_measures_by_its_own_settings():
    x = torch.rand(1, 3, 6, 32, 32)
    chosen = everest.select_tokens(x, keep=0.25, distance="l1", first_slice="zero", tubelet=(2, 8, 8))
    patches = patchify(x, (2, 8, 8)).flatten(2)
    change = (patches[:, 16:] - patches[:, :-16]).abs().sum(-1)  # (1, N - 16)
    best = change.topk(12).indices.sort().values + 16  # of 48; nothing of the first slice
    assert torch.equal(chosen.visible, best)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vit-bb"}, "backbone: unknown value 'vit-bb'; did you mean 'vit-b'"),
        ({"widht": 24}, "widht: unknown key; did you mean 'width'"),
        ({"decoder_depth": 0}, "decoder_depth: must be at least 1"),
        ({"heads": 7}, "7 heads do not divide"),
        ({"size": 100}, "100 is no multiple"),
        ({"frames": 0}, "frames: must be at least 1"),
        ({"kind": "pretrian"}, "kind: unknown name 'pretrian'; did you mean 'pretrain'"),
        ({"selection": RedundancyRobust(keep_ratio=0.05)}, "is more than keep_ratio"),
    ],
)
def test_models_that_cannot_be_meant_are_recipe_errors(options, message):
    with pytest.raises(RecipeError, match=message):
        everest.create_model(**{"backbone": "vit-tiny", "kind": "pretrain"} | options)


@pytest.mark.parametrize("num_classes", [{}, {"verb": 1}, None, 0, 1])
def test_a_classifier_needs_two_classes(num_classes):
    with pytest.raises(ValueError, match="num_classes of at least 2"):
        everest.create_model("vit-tiny", kind="classifier", num_classes=num_classes)


@pytest.mark.parametrize("name", ["frames", "stride", "size"])
def test_read_clip_refuses_numbers_below_one(name, clip_files: Path):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        everest.read_clip(clip_files / "clip0.mp4", **{name: 0})


def test_read_clip_is_the_view_of_validation(clip_files: Path):
    path = str(clip_files / "clip0.mp4")
    views = ValidationViews(frames=8, stride=2, size=(24, 32), sampling="dense")
    expected = views(Sample(path=path), np.random.default_rng(1), "auto").frames[0]
    assert torch.equal(everest.read_clip(path, frames=8, stride=2, size=(24, 32)), expected)


def test_normalise_wants_a_tensor():
    with pytest.raises(TypeError, match=r"torch tensor, got ndarray; torch\.from_numpy"):
        everest.normalise(np.zeros((3, 2, 8, 8), np.uint8))


def test_a_mapping_of_classes_gives_a_head_for_each():
    model = everest.create_model(
        "vit-tiny", kind="classifier", num_classes={"verb": 3, "noun": 4}, frames=4, size=32
    )
    assert isinstance(model, VideoClassifier)
    assert (model.heads, model.num_classes) == ({"verb": 3, "noun": 4}, 7)
