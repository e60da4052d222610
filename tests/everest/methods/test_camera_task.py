"""A camera's motion that is put on a still frame."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from everest.methods.camera import LARGEST_MOTION, MOTIONS, NUM_RANDOM, SHOWN_FRACTION, moving_clips

HALF = 0.5  # of a random number: no motion


def ramp(*, of_rows: bool = False) -> Tensor:
    """A clip (1, 1, 9, 40, 60) uint8, each frame of which is as bright as its column or row."""
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(60), indexing="ij")
    frame = 4 * (rows if of_rows else columns)
    return frame.to(torch.uint8).expand(1, 1, 9, -1, -1)


def made(frames: Tensor, *motions: float) -> tuple[Tensor, Tensor]:
    numbers = torch.tensor([[0.0, *motions]])
    return moving_clips(frames, numbers)


def test_without_a_motion_all_frames_are_the_middle_of_one():
    frames = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    numbers = torch.full((2, NUM_RANDOM), HALF)
    numbers[:, 0] = torch.tensor([0.0, 0.999])  # the first frame of a clip, and the last one of the other
    clips, motions = moving_clips(frames, numbers)
    assert clips.shape == frames.shape
    assert clips.dtype == torch.uint8
    assert not motions.any()
    assert (clips == clips[:, :, :1]).all()
    of_frames = torch.stack([frames[0, :, 0], frames[1, :, -1]])  # (B, C, H, W)
    same = torch.stack([of_frames] * 4, dim=2)
    normalized = same.float() / 100 - 1
    as_floats, _ = moving_clips(normalized, numbers)
    assert (100 * (as_floats + 1) - clips).abs().max() <= 0.51  # bytes are rounded
    assert (moving_clips(same, numbers)[0] == clips).all()  # other frames have no part in it


@pytest.mark.parametrize("axis", [0, 1])
def test_a_pan_shifts_the_picture_by_equal_steps(axis: int):
    motion = [HALF] * MOTIONS
    motion[axis] = 0.75  # half of the largest to the right, or down
    clips, motions = made(ramp(of_rows=axis == 1), *motion)
    middle = clips[0, 0, :, 20, 30].double()  # (T,)
    side = (60, 40)[axis]
    moved = 4 * (side / 2) * LARGEST_MOTION * 0.5  # in gray levels
    assert middle[-1] - middle[0] == pytest.approx(moved, abs=2)
    assert middle.diff().numpy() == pytest.approx(moved / 8, abs=1.01)
    assert motions[0].tolist() == pytest.approx([0.5 * 3**0.5 * (each == axis) for each in range(MOTIONS)])


def test_a_zoom_changes_the_scale_and_a_rotation_turns_without_shear():
    zoomed, _ = made(ramp(), HALF, HALF, 1.0, HALF)
    widths = zoomed[0, 0, :, 20, 50].double() - zoomed[0, 0, :, 20, 10].double()  # (T,): levels on 40 columns
    factor = torch.tensor(LARGEST_MOTION).exp().item()
    assert widths[-1] / widths[0] == pytest.approx(factor, rel=0.05)
    assert widths[4] == pytest.approx(4 * 40 * SHOWN_FRACTION, abs=2)
    rotated, _ = made(ramp(), HALF, HALF, HALF, 1.0)
    last = rotated[0, 0, -1].double()
    across, down = last[20, 40] - last[20, 20], last[30, 30] - last[10, 30]  # of 20 pixels in both directions
    angle = torch.atan2(-down, across).abs().item()
    assert angle == pytest.approx(LARGEST_MOTION / 2, abs=0.04)
    assert (across**2 + down**2) ** 0.5 == pytest.approx(4 * 20 * SHOWN_FRACTION, rel=0.05)


def test_motions_have_mean_0_and_variance_1():
    numbers = torch.rand(20_000, NUM_RANDOM, generator=torch.Generator().manual_seed(0))
    _, motions = moving_clips(torch.zeros(20_000, 1, 2, 2, 2, dtype=torch.uint8), numbers)
    assert motions.mean(dim=0).abs().max() < 0.03
    assert (motions.var(dim=0) - 1).abs().max() < 0.03
