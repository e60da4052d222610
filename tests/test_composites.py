"""The composites of benchmarks/importance.py: their mask is where the object is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from composites import FRAMES, SIZE, Composite, make_composite


@pytest.fixture
def clips(shared: Path) -> list[Path]:
    return sorted((shared / "videos" / "actions" / "tennis").rglob("*.mp4"))[:3]


def composite(camera: str, clips: list[Path]) -> Composite:
    return make_composite(camera, clips, clips, np.random.default_rng(0))


def test_a_still_camera_changes_only_the_pixels_of_the_object(clips: list[Path]):
    clip = composite("still", clips)
    assert clip.frames.shape == (FRAMES, SIZE, SIZE, 3)
    assert clip.frames.dtype == torch.uint8
    never = ~clip.mask.any(dim=0)  # (H, W)
    assert never.any()
    assert clip.mask.any()
    assert (clip.frames[:, never] == clip.frames[0, never]).all()


def test_a_pan_moves_the_image_by_its_pixels(clips: list[Path]):
    clip = composite("pan 4", clips)
    before, now = clip.frames[5].int(), clip.frames[6].int()
    free = ~(clip.mask[5] | clip.mask[6])
    errors = {}
    for shift in (-4, 4):
        moved, both = before.roll(shift, dims=1), free & free.roll(shift, dims=1)
        errors[shift] = (moved - now).abs()[8:-8, 8:-8][both[8:-8, 8:-8]].float().mean().item()
    assert min(errors.values()) < 1 < max(errors.values())


def test_a_cut_joins_two_scenes(clips: list[Path]):
    clip = composite("cut", clips)
    change = (clip.frames[1:].int() - clip.frames[:-1].int()).abs().float().mean(dim=(1, 2, 3))
    assert change.argmax().item() == FRAMES // 2 - 1
