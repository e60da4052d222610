from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import everest
from everest.config.heads import named_heads
from everest.errors import RecipeError
from everest.methods.grid import patchify
from everest.methods.strategies import RedundancyRobust

WIDE = torch.rand(1, 3, 4, 40, 80)  # 2 time indices of 5 x 10 positions


def test_every_name_is_there():
    for module in ("evaluation.evaluation", "finetuning", "pretraining"):  # which replace no function
        import_module(f"everest.{module}")
    assert all(callable(getattr(everest, name)) for name in ("pretrain", "finetune", "evaluate"))
    for name in everest.__all__:
        assert getattr(everest, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        everest.nothing  # noqa: B018
    for name in ("augment", "crops", "strategies", "targets"):
        assert name in everest.__all__
        assert name in dir(everest)
        module = getattr(everest, name)
        assert all(getattr(module, offered).__doc__ for offered in module.__all__), name


def test_every_strategy_has_a_public_name():
    named = [getattr(everest.strategies, name) for name in everest.strategies.__all__]
    assert all(strategy in named for strategy in everest.strategies.STRATEGIES.values())
    tube = everest.strategies.Tube(mask_ratio=0.75)
    model = everest.create_model("vit-tiny", kind="pretrain", depth=1, frames=4, size=32, selection=tube)
    assert model.strategy == tube


def test_a_clip_of_a_file_goes_through_a_model(clip_files: Path):
    clip = everest.read_clip(clip_files / "clip0.mp4", frames=8, stride=2, size=32)
    assert (clip.dtype, clip.shape) == (torch.uint8, (3, 8, 32, 32))
    x = everest.normalize(clip)[None]
    model = everest.create_model("vit_tiny", kind="pretrain", frames=8, size=32, tubelet=(2, 8, 8))
    out = model(x)
    assert out.selection.visible.shape == (1, 6)
    chosen = everest.TokenSelection(visible=out.selection.visible, predicted=out.selection.predicted)
    assert torch.equal(model(x, selection=chosen).loss, out.loss)


def test_normalize_takes_a_tensor_of_bytes():
    with pytest.raises(ValueError, match="expected uint8"):
        everest.normalize(torch.zeros(3, 2, 8, 8))
    with pytest.raises(TypeError, match=r"torch tensor, got ndarray; torch\.from_numpy"):
        everest.normalize(np.zeros((3, 2, 8, 8), np.uint8))


@pytest.mark.parametrize("strategy", ["random", "tube", "redundancy_robust", "all"])
@pytest.mark.parametrize(("keep", "visible"), [(0.1, 10), (0.7, 70), (1, 100)])
def test_keep_is_the_fraction_that_is_visible(strategy, keep, visible):
    chosen = everest.select_tokens(WIDE, strategy=strategy, keep=keep, tubelet=(2, 8, 8))
    assert chosen.visible.size(1) == visible


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({}, (10, 20)),  # as in a recipe
        ({"strategy": "tube"}, (10, 90)),
        ({"keep": 0.5, "visible_ratio": 0.2}, (20, 30)),  # a setting by its name wins over `keep`
    ],
)
def test_a_strategy_chooses_by_its_settings(options, counts):
    chosen = everest.select_tokens(WIDE, tubelet=(2, 8, 8), **options)
    assert (chosen.visible.size(1), chosen.predicted.size(1)) == counts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "tub"}, "did you mean 'tube'"),
        ({"strategy": "tube", "mask_ratoi": 0.5}, "mask_ratoi: unknown key; did you mean 'mask_ratio'"),
        ({"distance": "l3"}, "distance: unknown value 'l3'"),
        ({"strategy": "tube", "mask_ratio": 1.5}, "mask_ratio: must be at most 1"),
        ({"keep": 0.1, "visible_ratio": 0.2}, r"visible_ratio: 0\.2 is more than keep_ratio"),
    ],
)
def test_wrong_settings_of_a_strategy_are_named(settings, message):
    with pytest.raises(RecipeError, match=message):
        everest.select_tokens(torch.rand(1, 3, 4, 32, 32), tubelet=(2, 8, 8), **settings)


@pytest.mark.parametrize("strategy", ["random", "tube", "redundancy-robust", "all"])
def test_keep_must_be_a_fraction_that_leaves_a_token(strategy):
    for keep in (0, -0.5, 1.01):
        with pytest.raises(ValueError, match="more than 0 and at most 1"):
            everest.select_tokens(WIDE, strategy=strategy, keep=keep, tubelet=(2, 8, 8))
    with pytest.raises(ValueError, match="leaves none of 32 tokens"):
        everest.select_tokens(WIDE[..., :32, :32], keep=0.01, tubelet=(2, 8, 8))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep": "0.5"}, ValueError, "is more than 0 and at most 1, not '0.5'"),
        ({"keep": True}, ValueError, "is more than 0 and at most 1, not True"),
        ({"tubelet": (0, 8, 8)}, RecipeError, r"tubelet \(0, 8, 8\): must be three whole numbers from 1"),
        ({"tubelet": (2, 8)}, RecipeError, r"tubelet \(2, 8\): must be three whole numbers from 1"),
        ({"tubelet": 8}, RecipeError, "tubelet 8: must be three whole numbers from 1"),
        ({"tubelet": (2, 8.5, 8)}, RecipeError, r"tubelet \(2, 8.5, 8\): must be three whole"),
    ],
)
def test_wrong_arguments_of_a_selection_are_named(options, error, message):
    with pytest.raises(error, match=message):
        everest.select_tokens(WIDE, **options)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_clips_of_other_channels_than_the_model_are_named(channels, dtype):
    model = everest.create_model("vit-tiny", kind="encoder", frames=4, size=32, tubelet=(2, 8, 8))
    clips = torch.zeros(1, channels, 4, 32, 32, dtype=dtype)
    calls = [model, model.features, lambda x: everest.select_tokens(x, model=model)]
    calls += [] if channels == 1 else [everest.select_tokens]
    for call in calls:
        with pytest.raises(ValueError, match=rf"expected clips of .*3.*got .*\(1, {channels}, 4, 32, 32\)"):
            call(clips)


def test_a_strategy_measures_by_its_own_settings():
    x = torch.rand(1, 3, 6, 32, 32)
    chosen = everest.select_tokens(x, keep=0.25, distance="l1", first_slice="zero", tubelet=(2, 8, 8))
    patches = patchify(x, (2, 8, 8)).flatten(2)
    change = (patches[:, 16:] - patches[:, :-16]).abs().sum(-1)  # (1, N - 16)
    best = change.topk(12).indices.sort().values + 16  # of 48; nothing of the first time index
    assert torch.equal(chosen.visible, best)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vit-bb"}, "backbone: unknown value 'vit-bb'; did you mean 'vit-b'"),
        ({"widht": 24}, "widht: unknown key; did you mean 'width'"),
        ({"heads": 7}, "7 heads do not divide"),
        ({"frames": 0}, "frames: must be at least 1"),
        ({"kind": "pretrian"}, "kind: unknown name 'pretrian'; did you mean 'pretrain'"),
        ({"selection": RedundancyRobust(keep_ratio=0.05)}, "is more than keep_ratio"),
    ],
)
def test_models_that_cannot_be_meant_are_recipe_errors(options, message):
    with pytest.raises(RecipeError, match=message):
        everest.create_model(**{"backbone": "vit-tiny", "kind": "pretrain"} | options)


def test_a_classifier_needs_two_classes_or_a_mapping_of_heads():
    for num_classes in ({}, {"verb": 1}, None, 0, 1):
        with pytest.raises(ValueError, match="num_classes of at least 2"):
            everest.create_model("vit-tiny", kind="classifier", num_classes=num_classes)
    heads = {"verb": 3, "noun": 4}
    model = everest.create_model("vit-tiny", kind="classifier", num_classes=heads, frames=4, size=32)
    assert (model.heads, model.num_classes) == (named_heads(heads), 7)


def test_drop_path_is_a_probability_below_one_of_a_classifier():
    for drop_path in (1, 1.0, -0.1, float("nan"), "much", None):
        with pytest.raises(RecipeError, match=r"^finetune\.drop_path: must be|valid number"):
            everest.create_model("vit-tiny", kind="classifier", num_classes=2, drop_path=drop_path)
    with pytest.raises(ValueError, match=r"drop_path=0\.1: only a classifier has stochastic depth"):
        everest.create_model("vit-tiny", kind="pretrain", drop_path=0.1)
    everest.create_model("vit-tiny", kind="pretrain", depth=1, drop_path=0.0)


@pytest.mark.parametrize("kind", ["pretrain", "encoder"])
@pytest.mark.parametrize("options", [{"num_classes": 7}, {"task": "regression"}])
def test_labels_are_refused_for_a_model_without_a_head(kind, options):
    with pytest.raises(ValueError, match="only a classifier predicts labels"):
        everest.create_model("vit-tiny", kind=kind, **options)


def given(ids: list[list[int]]) -> everest.TokenSelection:
    visible = torch.tensor(ids)
    return everest.TokenSelection(visible=visible, predicted=visible[:, :0])


@pytest.mark.parametrize("pooling", ["mean", "first", "class-attention", "mean-change"])
def test_a_classifier_takes_given_tokens(pooling):
    model = everest.create_model(
        "vit-tiny", kind="classifier", num_classes=3, frames=4, size=32, tubelet=(2, 8, 8), pooling=pooling
    ).eval()
    x = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        torch.nn.init.normal_(model.head.weight)
        assert torch.equal(model(x, selection=given([list(range(32))] * 2)), model(x, keep=1.0))
        kept = model.encode_kept(x, 0.25)[0]  # (2, 8)
        chosen = everest.TokenSelection(visible=kept, predicted=kept[:, :0])
        assert torch.equal(model(x, selection=chosen), model(x, keep=0.25))
        few = given([[0, 5, 31], [1, 2, 3]])
        pooled = model.pooled(model.encoder(x, few.visible), few.visible)
        assert torch.equal(model(x, selection=few), model.head(pooled))
        # what the decoder would predict has no effect
        with_target = everest.TokenSelection(visible=few.visible, predicted=few.visible + 0)
        assert torch.equal(model(x, selection=with_target), model(x, selection=few))


@pytest.mark.parametrize(("kind", "classes"), [("classifier", 3), ("pretrain", None)])
def test_a_model_checks_given_tokens(kind, classes):
    options = {"frames": 4, "size": 32, "tubelet": (2, 8, 8), "depth": 1}
    model = everest.create_model("vit-tiny", kind=kind, num_classes=classes, **options)
    with pytest.raises(ValueError, match="visible: ids from 2 to 32; a clip has the tokens 0 to 31"):
        model(WIDE[..., :32, :32], selection=given([[2, 32]]))
    with pytest.raises(ValueError, match="expected clips of shape"):
        model(torch.randn(1, 3, 8, 32, 32), selection=given([[0]]))
