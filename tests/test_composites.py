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
