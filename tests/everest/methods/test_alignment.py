"""The motion of the camera and cuts: what is found in clips whose camera is known, and what is changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small_runs import onnx_session
from torch import Tensor, nn

from everest.methods.alignment import PreviousFrames, previous_frames
from everest.methods.camera import Plane, no_motion
from everest.methods.grid import TokenGrid
from everest.methods.importance import RawPixels, embedding_change
from everest.methods.selection import FrameDifference, RedundancyRobust, kept_per_slice
from everest.models.vit import TubeletEmbedding
from everest.system import compute
from everest.video.pixels import IMAGENET, normalize

TUBELET = (2, 8, 8)
SIDE = 96


def world(seed: int = 0, side: int = 2 * SIDE) -> Tensor:
    """(3, side, side) float: smooth random textures of several sizes, like a real scene."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, side, side)
    for cells, strength in ((6, 60.0), (24, 40.0), (96, 20.0)):
        noise = torch.randn(1, 3, cells, cells, generator=generator)
        image += strength * F.interpolate(noise, size=(side, side), mode="bicubic", align_corners=False)
    return (image[0] + 128).clamp(0, 255)


def seen_by(cameras: Tensor, *, seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> Tensor:
    """(1, 3, T, h, w) uint8: a world through cameras (T, 2, 3), which map places of a frame to the world."""
    image = world(seed).expand(len(cameras), -1, -1, -1)
    height, width = size
    x, y = Plane.of(height, width).places(height, width, cameras.device)
    places = torch.stack(
        [x.expand(height, width), y[:, None].expand(height, width), torch.ones(size)], dim=-1
    )
    half = max(size) / 2
    grid = torch.einsum("tij,hwj->thwi", cameras.float(), places) * (half / SIDE)
    return F.grid_sample(image, grid, align_corners=False).round().byte().transpose(0, 1)[None]


def pan(pixels: float, frames: int = 8) -> Tensor:
    """A camera (T, 2, 3) that moves to the right, in pixels a frame."""
    cameras = torch.eye(2, 3).repeat(frames, 1, 1)
    cameras[:, 0, 2] = (torch.arange(frames) - frames / 2) * pixels / (SIDE / 2)
    return cameras


def zoom(percent: float, degrees: float = 0.0, frames: int = 8) -> Tensor:
    """A camera (T, 2, 3) that goes away by this share a frame, and turns."""
    time = torch.arange(frames) - frames / 2
    scale, angle = (1 + percent / 100) ** time, torch.deg2rad(torch.tensor(degrees)) * time
    linear = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    return torch.cat([linear * scale[:, None, None], torch.zeros(frames, 2, 1)], dim=2)


def between(cameras: Tensor, lag: int) -> Tensor:
    """The true motions (P, 2, 3): a place in a frame to that in the one `lag` earlier."""
    square = torch.cat([cameras, torch.tensor([[[0.0, 0.0, 1.0]]]).expand(len(cameras), -1, -1)], dim=1)
    return (square[:-lag].inverse() @ square[lag:])[:, :2]


def aligned(frames: Tensor, align: Literal["none", "shift", "affine"], lag: int = 2) -> PreviousFrames:
    return previous_frames(frames, lag=lag, align=align, pixels=IMAGENET)


def change_of(frames: Tensor, align: Literal["shift", "affine"]) -> Tensor:
    """The importance (B, N) of tokens by the change of their pixels."""
    return embedding_change(frames, RawPixels(TUBELET), align=align)


@pytest.mark.parametrize("pixels", [-8, -4.3, -1, -0.5, 0.5, 1, 2.7, 6, 8])
@pytest.mark.parametrize("align", ["shift", "affine"])
def test_the_shift_of_a_pan_is_found_to_a_tenth_of_a_pixel(pixels: float, align):
    cameras = pan(pixels)
    found = aligned(seen_by(cameras), align)
    error = (found.motion[0] - between(cameras, 2))[:, :, 2] * (SIDE / 2)
    assert found.moves.all()
    assert error.abs().max() < 0.1


@pytest.mark.parametrize(("percent", "degrees"), [(1, 0), (4, 0), (-4, 0), (0, 1), (0, 3), (2, -2)])
def test_zoom_and_rotation_are_found_to_a_fifth_of_a_pixel_at_the_corners(percent: float, degrees: float):
    cameras = zoom(percent, degrees)
    found = aligned(seen_by(cameras), "affine")
    corners = torch.tensor([[-1.0, 1, -1, 1], [-1, -1, 1, 1], [1, 1, 1, 1]])
    error = (found.motion[0] - between(cameras, 2)) @ corners * (SIDE / 2)
    assert found.moves.all()
    assert error.abs().max() < 0.2


@pytest.mark.parametrize("align", ["shift", "affine"])
@given(seed=st.integers(0, 2**16), noise=st.sampled_from([0, 2, 6]))
def test_a_camera_at_rest_has_exactly_no_motion(align, seed: int, noise: int):
    generator = torch.Generator().manual_seed(seed)
    frames = seen_by(pan(0), seed=seed).float()
    frames = frames + noise * torch.randn(frames.shape, generator=generator)  # of a sensor
    y, x = generator.initial_seed() % 60, generator.initial_seed() // 60 % 60
    for time in range(8):  # an object that moves
        frames[0, :, time, y : y + 20, x + 2 * time : x + 2 * time + 20] = 200
    clip = frames.round().clamp(0, 255).byte()
    found = aligned(clip, align)
    assert torch.equal(found.motion, no_motion(6, torch.device("cpu"))[None])
    assert torch.equal(found.frames, clip[:, :, :-2])
    assert not found.moves.any()


SIDES = torch.linspace(-1, 1, SIDE)
SMOOTH = {
    "gradient": (30 * SIDES + 60).expand(SIDE, -1),
    "vignette": 50 - 20 * (SIDES.square() + SIDES[:, None].square()),
    "spot": 60 * (-6 * (SIDES.square() + SIDES[:, None].square())).exp() + 8,
}


@pytest.mark.parametrize("align", ["shift", "affine"])
@pytest.mark.parametrize("scene", SMOOTH)
@given(seed=st.integers(0, 2**16), noise=st.sampled_from([2, 4, 8]))
def test_noise_on_a_smooth_scene_is_no_motion(align, scene: str, seed: int, noise: int):
    """Interpolation removes noise, so that a motion by half a pixel fits better than none.

    With noise of 16 gray levels, 3 of 4,000 clips of the gradient are taken for a motion.
    """
    frames = SMOOTH[scene].expand(1, 3, 8, -1, -1)
    frames = frames + noise * torch.randn(frames.shape, generator=torch.Generator().manual_seed(seed))
    assert not aligned(frames.round().clamp(0, 255).byte(), align).moves.any()


def with_object(cameras: Tensor) -> tuple[Tensor, Tensor]:
    """A clip (1, 3, T, h, w) with a textured object that moves in the world, and its tokens (N,)."""
    frames = seen_by(cameras)
    patch = world(7)[:, :24, :24].round().byte()
    covered = torch.zeros(1, 1, frames.size(2), SIDE, SIDE)
    for time, camera in enumerate(cameras):
        there = torch.tensor([0.1 + 0.03 * time, 0.05])  # in the world
        here = torch.linalg.solve(camera[:, :2], there - camera[:, 2]) * (SIDE / 2) + SIDE / 2
        x, y = (int(value) for value in here.round() - 12)
        frames[0, :, time, y : y + 24, x : x + 24] = patch
        covered[:, :, time, y : y + 24, x : x + 24] = 1
    tokens = F.max_pool3d(covered, TUBELET)[0, 0]  # (t, rows, columns)
    before = torch.cat([tokens[:1], tokens[:-1]])
    return frames, ((tokens + before) > 0).flatten()


@pytest.mark.parametrize(
    "cameras", [pan(3), pan(6), zoom(3), zoom(0, 2)], ids=["pan", "fast pan", "zoom", "turn"]
)
@pytest.mark.parametrize("strategy", [RedundancyRobust(), FrameDifference()], ids=lambda s: s.strategy)
def test_kept_tokens_are_on_the_object_and_not_on_the_edges_of_the_world(cameras: Tensor, strategy):
    frames, on_object = with_object(cameras)
    grid = TokenGrid.of_clip(frames=8, size=(SIDE, SIDE), tubelet=TUBELET)

    def precision(strategy) -> float:
        importance = strategy.importance(frames, RawPixels(TUBELET))
        kept = strategy.kept_ids(grid, importance)[0, : int(on_object.sum()) // 2]
        return on_object[kept].float().mean().item()

    assert precision(replace(strategy, align="affine")) > max(0.8, precision(strategy) + 0.2)


def test_what_enters_the_frame_counts_as_no_change():
    noise = torch.randint(-2, 3, (1, 3, 8, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    frames = (seen_by(pan(8)).int() + noise).clamp(0, 255).byte()
    found = aligned(frames, "shift")
    new = 2 * 8  # columns at the right side, which the frame before does not show
    assert torch.equal(found.frames[..., -new + 1 :], frames[:, :, 2:, :, -new + 1 :])
    importance = change_of(frames, "shift").view(4, 12, 12)
    assert (importance[:, :, -1] == 0).all()
    assert (importance[:, :, 0] > 0).any()


@pytest.mark.parametrize("size", [(96, 96), (70, 130), (224, 224), (33, 47)])
def test_frames_of_every_size_are_moved_by_whole_pixels(size: tuple[int, int]):
    """Sides that the small images do not divide do not displace a frame."""
    height, width = size
    plain = seen_by(torch.eye(2, 3)[None], size=size)[0, :, 0]  # (3, H, W)
    padded = F.pad(plain.float()[None], (6, 6, 0, 0), mode="reflect")[0].byte()
    frames = torch.stack([padded[:, :, 3 * t : 3 * t + width] for t in range(4)], dim=1)[None]
    found = aligned(frames, "shift", lag=1)
    assert found.moves.all()
    inner = (slice(None), slice(None), slice(None), slice(2, height - 2), slice(2, width - 6))
    error = (found.frames.float() - frames[:, :, 1:].float())[inner].abs()
    assert error.mean() < 2


def noisy(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


WITHOUT_MOTION = {
    **{
        f"{height} x {width}": noisy(2, 3, 6, height, width)
        for height, width in ((2, 2), (4, 6), (7, 40), (16, 16))
    },
    "no texture": torch.full((1, 3, 8, 64, 64), 90, dtype=torch.uint8),
    # Other noise in every frame: an object that fills the frame is not taken for the camera.
    "noise": torch.cat([seen_by(pan(0))[..., :20], noisy(1, 3, 8, SIDE, SIDE - 20)], dim=4),
}


@pytest.mark.parametrize("clips", WITHOUT_MOTION.values(), ids=WITHOUT_MOTION)
def test_what_no_motion_explains_has_none(clips: Tensor):
    found = aligned(clips, "affine")
    assert not found.moves.any()
    assert not found.begins_scene.any()
    assert found.change.isfinite().all()
    assert torch.equal(found.frames, clips[:, :, :-2])


def frames_of(begins: Tensor) -> list[int]:
    return begins[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("align", ["none", "shift", "affine"])
@pytest.mark.parametrize("lag", [1, 2, 4])
def test_a_cut_is_found_where_it_is(align, lag: int):
    first, second = seen_by(pan(1, frames=16), seed=1), seen_by(pan(1, frames=16), seed=2)
    for cut in range(lag, 17 - lag):
        frames = torch.cat([first[:, :, :cut], second[:, :, cut:]], dim=2)
        found = aligned(frames, align, lag)
        assert frames_of(found.begins_scene) == [cut]
        assert not found.moves[0, cut - lag : cut].any()
    assert not aligned(first, align).begins_scene.any()


def test_several_cuts_and_cuts_in_short_clips_are_found():
    scenes = [seen_by(pan(0, frames=16), seed=seed) for seed in range(5)]
    frames = torch.cat([scene[:, :, :3] for scene in scenes], dim=2)
    assert frames_of(aligned(frames, "shift").begins_scene) == [3, 6, 9, 12]
    short = torch.cat([scenes[0][:, :, :3], scenes[1][:, :, 3:6]], dim=2)
    assert frames_of(aligned(short, "affine").begins_scene) == [3]


def test_objects_repeated_frames_flashes_and_chaos_are_no_cuts():
    still = seen_by(pan(0, frames=16))
    large = still.clone()
    large[:, :, 8:, :60, :60] = 250 - large[:, :, 8:, :60, :60] // 4  # 40 % of the frame appear
    flash = still.clone()
    flash[:, :, 7] = 255
    turning = seen_by(zoom(0, 24, frames=6))  # degrees a frame, of a short video
    turning = torch.cat([turning, turning[:, :, -1:].expand(-1, -1, 10, -1, -1)], dim=2)
    repeated = large[:, :, [*range(8), *[7] * 8]]
    chaos = noisy(*still.shape)
    dark = torch.zeros_like(still)
    dark[:, :, 8:] = 1
    for clip in (large, flash, repeated, chaos, dark, turning):
        for lag in (1, 2):
            assert frames_of(aligned(clip, "affine", lag).begins_scene) == []


@pytest.mark.parametrize("distance", ["l2", "neg-cosine"])
def test_a_cut_takes_no_more_tokens_than_another_slice(distance):
    first, _ = with_object(pan(0, frames=16))
    second, _ = with_object(pan(0, frames=16))
    second = second.flip(-1).flip(1)
    frames = torch.cat([first[:, :, :8], second[:, :, 8:]], dim=2)
    grid = TokenGrid.of_clip(frames=16, size=(SIDE, SIDE), tubelet=TUBELET)
    share = {}
    for cuts in ("ignore", "detect"):
        strategy = RedundancyRobust(keep_ratio=0.1, distance=distance, cuts=cuts)
        counts = kept_per_slice(strategy, strategy.importance(frames, RawPixels(TUBELET)), grid)[0]
        share[cuts] = (counts[4] / counts.sum()).item()
    assert share["ignore"] > 0.4
    assert share["detect"] <= 1.3 / 8


@pytest.mark.parametrize("strategy", [RedundancyRobust(), FrameDifference()], ids=lambda s: s.strategy)
@pytest.mark.parametrize("align", ["shift", "affine"])
@torch.no_grad()
def test_bytes_and_normalized_frames_keep_the_same_tokens(strategy, align):
    frames, _ = with_object(pan(2.4))
    aligning = replace(strategy, align=align, cuts="detect")
    of_bytes, of_floats = (aligning.importance(x, RawPixels(TUBELET)) for x in (frames, normalize(frames)))
    torch.testing.assert_close(of_bytes, of_floats, rtol=1e-5, atol=1e-5)


def test_every_clip_of_a_batch_is_measured_on_its_own():
    clips = [with_object(cameras)[0] for cameras in (pan(3), pan(0), zoom(3))]
    alone = torch.cat([change_of(clip, "affine") for clip in clips])
    torch.testing.assert_close(change_of(torch.cat(clips), "affine"), alone)


def test_the_estimate_ignores_autocast_and_is_repeatable():
    frames, _ = with_object(pan(3))
    plain = change_of(frames, "affine")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(change_of(frames, "affine"), plain)


class Importance(nn.Module):
    """For a graph."""

    def __init__(self, align: Literal["none", "shift", "affine"]) -> None:
        super().__init__()
        self.align: Literal["none", "shift", "affine"] = align
        self.embed = TubeletEmbedding(24, TUBELET)

    def forward(self, frames: Tensor) -> Tensor:
        return embedding_change(frames, self.embed, align=self.align, cuts="detect")


@pytest.mark.slow
@pytest.mark.parametrize("align", ["shift", "affine"])
@pytest.mark.parametrize("optimize", [False, True])
def test_the_graph_of_an_export_measures_the_same(align, optimize, tmp_path: Path):
    pytest.importorskip("onnx")
    clips = torch.cat([normalize(with_object(cameras)[0]) for cameras in (pan(3), pan(0), zoom(3))])
    path, module = tmp_path / "importance.onnx", Importance(align).eval()
    torch.onnx.export(
        module,
        (clips[:2],),
        str(path),
        dynamo=True,
        dynamic_shapes={"frames": {0: torch.export.Dim("batch")}},
        optimize=optimize,  # which takes most of the time
        verbose=False,
    )
    session = onnx_session(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: clips.numpy()})
    np.testing.assert_allclose(found, module(clips).detach().numpy(), rtol=1e-2, atol=1e-2)


def test_two_layers_that_move_differently_leave_a_change():
    """Parallax: the smaller layer does not follow the motion of the larger one."""
    far, near = seen_by(pan(2)), seen_by(pan(4), seed=3)
    frames = far.clone()
    frames[:, :, :, 70:] = near[:, :, :, 70:]
    found = aligned(frames, "shift")
    error = (found.motion[0] - between(pan(2), 2))[:, :, 2] * (SIDE / 2)
    assert error.abs().max() < 0.3
    change = change_of(frames, "shift").view(4, 12, 12)
    assert change[:, 9:].mean() > 4 * change[:, :8].mean()


# --- frames that are moved a clip at a time -----------------------------------------------------------------


@pytest.fixture
def clips() -> Tensor:
    """(3, 3, 8, SIDE, SIDE): cameras that move, rest, and move by half as much."""
    return torch.cat([seen_by(pan(3)), seen_by(pan(0), seed=1), seen_by(pan(1.5), seed=2)])


def by_definition(clips: Tensor, motion: Tensor) -> Tensor:
    """`PreviousFrames.frames` of bytes, pair by pair and place by place: (B, C, P, H, W)."""
    plane = Plane.of(SIDE, SIDE)
    x, y = plane.places(SIDE, SIDE, clips.device)
    places = torch.stack(
        [x.expand(SIDE, -1), y[:, None].expand(-1, SIDE), torch.ones(SIDE, SIDE)]
    )  # (3, H, W)
    shown = clips[:, :, 2:].clone()
    for clip, pair in torch.cartesian_prod(torch.arange(len(clips)), torch.arange(motion.size(1))).tolist():
        # Of a square frame, a place is what grid_sample takes, from -1 to 1.
        grid = torch.einsum("ij,jhw->hwi", motion[clip, pair], places)
        earlier = clips[clip, :, pair].float()
        sampled = F.grid_sample(earlier[None], grid[None], padding_mode="border", align_corners=False)[0]
        inside = (grid.abs() <= 1 - 1 / SIDE + 1e-4).all(dim=2)  # (H, W)
        shown[clip, :, pair] = torch.where(inside, sampled.round().byte(), shown[clip, :, pair])
    return shown


@pytest.mark.parametrize("align", ["shift", "affine"])
def test_bytes_are_moved_as_the_definition_says(clips: Tensor, align, monkeypatch):
    monkeypatch.setattr(compute, "PART_VALUES", 1)  # each clip is a part
    found = aligned(clips, align)
    assert found.moves.all(dim=1).tolist() == [True, False, True]
    difference = (found.frames.int() - by_definition(clips, found.motion).int()).abs()
    assert difference.max() <= 1  # places are rounded in another order
    assert (difference > 0).float().mean() < 1e-3
    assert torch.equal(found.frames[1], clips[1, :, :-2])


@pytest.mark.parametrize("align", ["shift", "affine"])
@pytest.mark.parametrize("is_normalized", [False, True])
def test_a_clip_at_a_time_is_the_same_to_the_bit(clips: Tensor, align, is_normalized: bool, monkeypatch):
    frames = normalize(clips) if is_normalized else clips
    whole = aligned(frames, align)
    monkeypatch.setattr(compute, "PART_VALUES", 1)
    alone = aligned(frames, align)
    for name in ("frames", "motion", "change", "changed"):
        assert torch.equal(getattr(alone, name), getattr(whole, name)), name
