"""Clips of bytes: normalized where they are used, and compared as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny
from torch import Tensor, nn

from everest.data.views import PretrainViews
from everest.lists.sample import Sample
from everest.methods.grid import TokenGrid
from everest.methods.importance import RawPixels, embedding_change
from everest.methods.selection import FrameDifference, RedundancyRobust
from everest.methods.strategies import LearnedImportance, Tube
from everest.models.vit import TubeletEmbedding, split_bfloat16
from everest.video.pixels import IMAGENET, normalize

TUBELET = (2, 8, 8)
REAL_CLIPS = 500


def clips(seed: int = 0) -> Tensor:
    """(2, 3, 8, 32, 48) uint8, of which the first rows of tokens never change."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (2, 3, 8, 32, 48), dtype=torch.uint8, generator=generator)
    frames[:, :, :, :8] = frames[:, :, :1, :8]
    return frames


@pytest.mark.parametrize(
    "embed", [RawPixels(TUBELET), TubeletEmbedding(24, TUBELET), TubeletEmbedding(24, TUBELET, layers=2)]
)
@pytest.mark.parametrize("distance", ["l2", "l1", "neg-cosine", "neg-cka"])
@torch.no_grad()
def test_change_of_bytes_is_that_of_normalized_frames(embed, distance):
    frames = clips()
    of_bytes, of_floats = (embedding_change(x, embed, distance=distance) for x in (frames, normalize(frames)))
    torch.testing.assert_close(of_bytes, of_floats, rtol=1e-5, atol=1e-6)
    still = of_bytes.view(2, 4, 4, 6)[:, :, 0]
    assert torch.equal(still, torch.full_like(still, {"l2": 0.0, "l1": 0.0}.get(distance, -1.0)))


@pytest.mark.parametrize("input_kind", ["frames", "differences"])
@pytest.mark.parametrize(
    "selection",
    [RedundancyRobust(), Tube(), FrameDifference(), LearnedImportance(score="frame-difference")],
    ids=lambda selection: selection.strategy,
)
def test_a_model_computes_the_same_from_bytes(selection, input_kind):
    torch.manual_seed(0)
    model = tiny("pretrain", size=(32, 48), selection=selection, input=input_kind)
    frames, noise = clips(), torch.rand(2, 96)
    of_bytes, of_floats = model(frames, noise=noise), model(normalize(frames), noise=noise)
    assert torch.equal(of_bytes.selection.visible, of_floats.selection.visible)
    assert torch.equal(of_bytes.selection.predicted, of_floats.selection.predicted)
    assert torch.equal(of_bytes.prediction, of_floats.prediction)
    torch.testing.assert_close(of_bytes.loss, of_floats.loss, rtol=1e-5, atol=1e-6)


def real_clips(folder: Path) -> Iterator[Tensor]:
    """Clips of 16 frames of 224 x 224 pixels, (3, 16, 224, 224) uint8."""
    options = {"flip": False, "sampling": "dense", "views_per_decode": 1}
    make = PretrainViews(frames=16, stride=4, size=(224, 224), **options)
    videos = sorted(folder.rglob("*.mp4")) + sorted(folder.rglob("*.avi"))
    for number in np.linspace(0, len(videos) - 1, REAL_CLIPS).astype(int):
        rng = np.random.default_rng(int(number))
        yield make(Sample(path=str(videos[number])), rng, "auto").frames[0]


@pytest.mark.slow
@torch.no_grad()
def test_tokens_kept_in_real_clips_are_those_of_float32(shared: Path):
    """The product of a GPU is computed here with its weight of two parts."""
    torch.manual_seed(0)
    grid, embed = TokenGrid(t=8, h=14, w=14), TubeletEmbedding(768, (2, 16, 16))
    nn.init.xavier_uniform_(embed.proj.weight.view(768, -1))  # pyright: ignore
    strategy, noise = RedundancyRobust(visible_ratio=None), torch.rand(1, grid.num_tokens)
    high, low = split_bfloat16(IMAGENET.byte_changes_weight(embed.proj.weight).flatten(1))  # pyright: ignore

    def kept(importance: Tensor | None) -> Tensor:
        return strategy(grid, importance=importance, noise=noise).visible

    class OnGpu:
        tubelet = (2, 16, 16)

        def of_byte_changes(self, change: Tensor) -> Tensor:
            rows = change.flatten(2).float()
            return rows @ high.float().T + rows @ low.float().T

    others = {"on the host": 0, "on a GPU": 0}
    for clip in real_clips(shared / "videos" / "actions"):
        wanted = kept(strategy.importance(normalize(clip)[None], embed))
        found = {
            "on the host": kept(strategy.importance(clip[None], embed)),
            "on a GPU": kept(strategy.importance(clip[None], OnGpu())),
        }  # type: ignore[arg-type]
        for name, ids in found.items():
            others[name] += int((~torch.isin(ids, wanted)).sum())
    assert others == {"on the host": 0, "on a GPU": 0}
