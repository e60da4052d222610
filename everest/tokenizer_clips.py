"""The clips that a tokenizer is trained and judged on: one window of frames of each video."""

from __future__ import annotations

from pathlib import Path

from everest.clips import pretrain_key, unlabelled_clips
from everest.config.settings import Recipe
from everest.data.datasets import VideoClips
from everest.data.views import PretrainViews, ValidationViews
from everest.tokenizer_spec import tokenizer_settings


def tokenizer_clips(recipe: Recipe) -> VideoClips:
    """The videos of pre-training, as windows that lie anywhere in them, with its stride, crops and flips."""
    stage = recipe.pretrain
    views = PretrainViews(
        frames=tokenizer_settings(recipe).frames,
        stride=stage.stride,
        size=recipe.data.frame_size,
        flip=recipe.data.flip if stage.flip is None else stage.flip,
        sampling="dense",
        views_per_decode=1,
    )
    return unlabelled_clips(recipe, pretrain_key(recipe.data), views, replace_bad=True)


def held_out_key(recipe: Recipe) -> str:
    """Which list a tokenizer is judged on: `data.val`, else `data.test` if it is there.

    Without either it is the one that it was trained on, so that a folder of videos is enough.
    """
    data = recipe.data
    if data.val is not None:
        return "val"
    if data.test is not None and (Path(data.root) / data.test).exists():
        return "test"
    return pretrain_key(data)


def held_out_clips(recipe: Recipe) -> VideoClips:
    """The window in the middle of each video of `held_out_key`, always the same."""
    views = ValidationViews(
        frames=tokenizer_settings(recipe).frames,
        stride=recipe.pretrain.stride,
        size=recipe.data.frame_size,
        sampling="dense",
    )
    return unlabelled_clips(recipe, held_out_key(recipe), views, replace_bad=False)
