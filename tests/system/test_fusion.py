"""Functions that a run on a GPU compiles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from everest.methods.alignment import previous_frames
from everest.methods.importance import change_importance
from everest.models.embedding import TubeletEmbedding
from everest.system.compute import fuse_functions
from everest.video.pixels import IMAGENET


def moving_clips(device: str) -> Tensor:
    """(2, 3, 8, 64, 64) uint8: a texture that moves by 3 pixels a frame."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 3, 12, 18, generator=generator) * 255
    texture = torch.nn.functional.interpolate(noise, size=(64, 96), mode="bicubic").clamp(0, 255).byte()
    return torch.stack([texture[..., 3 * t : 3 * t + 64] for t in range(8)], dim=2).to(device)


def found(device: str) -> tuple[Tensor, Tensor]:
    previous = previous_frames(moving_clips(device), lag=2, align="affine", pixels=IMAGENET)
    assert previous.moves.all()
    return previous.frames, previous.motion


def test_on_a_cpu_nothing_is_compiled():
    before = found("cpu")
    fuse_functions()
    assert all(torch.equal(one, other) for one, other in zip(before, found("cpu"), strict=True))


@pytest.mark.gpu
def test_on_a_gpu_the_fused_importance_is_the_same():
    clips = moving_clips("cuda")
    embed = TubeletEmbedding(64, (2, 16, 16)).to("cuda")
    eager = change_importance(clips, embed, embed.tubelet)
    fuse_functions()
    assert torch.equal(change_importance(clips, embed, embed.tubelet), eager)


@pytest.mark.gpu
def test_on_a_gpu_the_fused_estimate_is_the_same():
    eager = found("cuda")
    fuse_functions()
    fused = found("cuda")
    torch.testing.assert_close(fused[1], eager[1], rtol=1e-3, atol=1e-4)
    difference = (fused[0].int() - eager[0].int()).abs()
    assert (difference <= 1).float().mean() > 0.999
