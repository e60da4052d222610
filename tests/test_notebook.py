"""The names of `import everest`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import everest
from everest.errors import RecipeError


def test_every_name_is_there():
    for name in everest.__all__:
        assert getattr(everest, name) is not None
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
