"""Frame differences as the input of a model: their values, and that every method of a model uses them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tiny_models import tiny
from torch import Tensor

import everest
from everest.inference.opened_model import encode_clips
from everest.models.vit import frame_differences
from everest.video.pixels import IMAGENET

changes_of = partial(frame_differences, pixels=IMAGENET)
KEPT = everest.strategies.RedundancyRobust(keep_ratio=0.3, visible_ratio=0.1)


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))


def test_each_frame_is_twice_its_change_and_the_first_is_like_the_second(clips: Tensor):
    changes = changes_of(clips)
    for t in range(1, 8):
        assert torch.equal(changes[:, :, t], 2 * (clips[:, :, t] - clips[:, :, t - 1]))
    assert torch.equal(changes[:, :, 0], changes[:, :, 1])
    with pytest.raises(ValueError, match="two frames"):
        changes_of(clips[:, :, :1])


def test_a_classifier_computes_on_the_differences(clips: Tensor):
    plain = tiny("classifier", num_classes=3, selection=KEPT.keeping(0.3)).eval()
    moving = tiny("classifier", num_classes=3, selection=KEPT.keeping(0.3), input="differences").eval()
    moving.load_state_dict(plain.state_dict())
    changes = changes_of(clips)
    assert torch.equal(moving.encode_kept(clips)[0], plain.encode_kept(changes)[0])
    assert torch.equal(moving(clips), plain(changes))
    features = encode_clips(moving, clips, None), encode_clips(plain, changes, None)
    for of_moving, of_plain in zip(*features, strict=True):
        assert torch.equal(of_moving, of_plain)
    chosen = everest.select_tokens(clips, keep=0.3, model=moving)
    assert torch.equal(chosen.visible, everest.select_tokens(changes, keep=0.3, model=plain).visible)


def test_an_autoencoder_ranks_encodes_and_predicts_the_differences(clips: Tensor):
    plain = tiny("pretrain", selection=KEPT)
    moving = tiny("pretrain", selection=KEPT, input="differences")
    moving.load_state_dict(plain.state_dict())
    noise = torch.rand(2, plain.encoder.grid.num_tokens)
    expected, out = plain(changes_of(clips), noise=noise), moving(clips, noise=noise)
    assert torch.equal(out.selection.visible, expected.selection.visible)
    assert torch.equal(out.target_values, expected.target_values)
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(out.frames, clips)
    features = (encode_clips(moving, clips, 0.5), encode_clips(plain, changes_of(clips), 0.5))
    assert all(torch.equal(of_moving, of_plain) for of_moving, of_plain in zip(*features, strict=True))
