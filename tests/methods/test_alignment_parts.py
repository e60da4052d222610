"""Frames that are moved a clip at a time: the same as by the definition, and only where the camera moves."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import everest
from everest.methods import alignment
from everest.methods.alignment import PreviousFrames, previous_frames
from everest.methods.camera import Plane, gray_images, moved
from everest.methods.grid import TokenGrid, patchify
from everest.methods.importance import RawPixels, change_importance
from everest.methods.ranked import RedundancyRobust
from everest.models.embedding import TubeletEmbedding
from everest.system import compute as parts
from everest.video.pixels import IMAGENET, normalize

SIDE = 64
LAG = 2
TUBELET = (2, 16, 16)


def clip_of(speed: float, seed: int = 0) -> Tensor:
    """(1, 3, 8, SIDE, SIDE) uint8: a texture that moves by `speed` pixels a frame."""
    noise = torch.rand(1, 3, 12, 24, generator=torch.Generator().manual_seed(seed)) * 255
    texture = F.interpolate(noise, size=(SIDE, 2 * SIDE), mode="bicubic", align_corners=False).clamp(0, 255)
    frames = []
    for time in range(8):
        start = int(speed * time)
        rest = speed * time - start
        here, there = (texture[..., start + i : start + i + SIDE] for i in (0, 1))
        frames.append((1 - rest) * here + rest * there)
    return torch.stack(frames, dim=2).round().byte()


@pytest.fixture
def clips() -> Tensor:
    """(3, 3, 8, SIDE, SIDE): cameras that move, rest, and move by half as much."""
    return torch.cat([clip_of(3), clip_of(0, seed=1), clip_of(1.5, seed=2)])


def by_definition(clips: Tensor, motion: Tensor) -> Tensor:
    """`PreviousFrames.frames` of bytes, pair by pair and place by place: (B, C, P, H, W)."""
    plane = Plane.of(SIDE, SIDE)
    x, y = plane.places(SIDE, SIDE, clips.device)
    places = torch.stack(
        [x.expand(SIDE, -1), y[:, None].expand(-1, SIDE), torch.ones(SIDE, SIDE)]
    )  # (3, H, W)
    shown = clips[:, :, LAG:].clone()
    for clip, pair in torch.cartesian_prod(torch.arange(len(clips)), torch.arange(motion.size(1))).tolist():
        # Of a square frame, a place is what grid_sample takes, from -1 to 1.
        grid = torch.einsum("ij,jhw->hwi", motion[clip, pair], places)
        earlier = clips[clip, :, pair].float()
        sampled = F.grid_sample(earlier[None], grid[None], padding_mode="border", align_corners=False)[0]
        inside = (grid.abs() <= 1 - 1 / SIDE + 1e-4).all(dim=2)  # (H, W)
        shown[clip, :, pair] = torch.where(inside, sampled.round().byte(), shown[clip, :, pair])
    return shown


def aligned(frames: Tensor, align: Literal["shift", "affine"]) -> PreviousFrames:
    return previous_frames(frames, lag=LAG, align=align, pixels=IMAGENET)


@pytest.mark.parametrize("align", ["shift", "affine"])
def test_bytes_are_moved_as_the_definition_says(clips: Tensor, align, monkeypatch):
    monkeypatch.setattr(parts, "PART", 1)  # each clip is a part
    found = aligned(clips, align)
    assert found.moves.all(dim=1).tolist() == [True, False, True]
    difference = (found.frames.int() - by_definition(clips, found.motion).int()).abs()
    assert difference.max() <= 1  # places are rounded in another order
    assert (difference > 0).float().mean() < 1e-3
    assert torch.equal(found.frames[1], clips[1, :, :-LAG])


@pytest.mark.parametrize("align", ["shift", "affine"])
@pytest.mark.parametrize("is_normalized", [False, True])
def test_a_clip_at_a_time_is_the_same_to_the_bit(clips: Tensor, align, is_normalized: bool, monkeypatch):
    frames = normalize(clips) if is_normalized else clips
    whole = aligned(frames, align)
    monkeypatch.setattr(parts, "PART", 1)
    alone = aligned(frames, align)
    for name in ("frames", "motion", "change", "changed"):
        assert torch.equal(getattr(alone, name), getattr(whole, name)), name


@torch.no_grad()
def test_the_importance_is_the_same_a_clip_at_a_time(clips: Tensor, monkeypatch):
    embed = TubeletEmbedding(24, TUBELET)
    for align in ("none", "affine"):
        monkeypatch.setattr(parts, "PART", 2**30)
        whole = change_importance(clips, embed, align=align)
        monkeypatch.setattr(parts, "PART", 1)
        torch.testing.assert_close(change_importance(clips, embed, align=align), whole)


def test_only_clips_of_a_camera_that_moves_are_resampled(clips: Tensor, monkeypatch):
    resampled = []

    def counted(images: Tensor, motion: Tensor, plane: Plane | None = None) -> tuple[Tensor, Tensor]:
        if images.size(1) == 3:  # not a small gray image
            resampled.append(len(images))
        return moved(images, motion, plane)

    monkeypatch.setattr(alignment, "moved", counted)
    monkeypatch.setattr(parts, "PART", 1)
    aligned(clips, "affine")
    assert resampled == [6, 6]  # pairs of the first and of the last clip
    aligned(clips[1:2], "affine")
    assert resampled == [6, 6]


def test_gray_images_of_a_clip_at_a_time_are_the_same_to_the_bit(clips: Tensor):
    alone = torch.cat([gray_images(clip[None], 4, at_once=False) for clip in clips])
    assert torch.equal(alone, gray_images(clips, 4, at_once=False))


@pytest.mark.parametrize("name", ["pan_left/fi121.mp4", "pan_up/fi121.mp4", "zoom_in/fi121.mp4"])
def test_real_clips_keep_the_tokens_of_the_definition(name: str, shared: Path):
    clip = everest.read_clip(shared / "videos" / "actions" / "cameramotion" / name, size=SIDE)[None]
    grid = TokenGrid.of_clip(frames=clip.size(2), size=(SIDE, SIDE), tubelet=TUBELET)
    found = aligned(clip, "affine")
    assert found.moves.any()
    embed, selector = RawPixels(TUBELET), RedundancyRobust(align="affine")
    change = clip[:, :, LAG:].float() - by_definition(clip, found.motion).float()  # (1, C, P, H, W)
    later = embed.of_byte_changes(patchify(change, TUBELET)).norm(dim=2)  # (1, N - h*w)
    expected = selector.kept(grid, torch.cat([later[:, : grid.per_slice], later], dim=1))[0]
    kept = selector.kept(grid, selector.importance(clip, embed))[0]
    assert set(kept.tolist()) == set(expected.tolist())
