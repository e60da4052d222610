import json

import numpy as np
import pytest
from draws import NumpyDraws
from hypothesis import given
from hypothesis import strategies as st

from everest.data.frames import (
    SAMPLINGS,
    finetune_window,
    pretrain_window,
    sampling,
    segment_frames,
    segment_views,
    view_windows,
)
from everest.errors import RecipeError

lengths = st.integers(1, 400)
clip_lengths = st.integers(1, 40)
strides = st.integers(1, 9)


@pytest.fixture(scope="module")
def recorded(golden):
    return json.loads(golden("augment.json").read_text())


@pytest.fixture(scope="module")
def recorded_segments(golden):
    return json.loads(golden("ssv2_sampling.json").read_text())


def test_pretraining_windows_are_those_of_the_released_program(recorded):
    cases = recorded["pretrain_sampling"]
    assert len(cases) == 72
    for case in cases:
        rng = NumpyDraws(case["numpy_seed"])
        ids = pretrain_window(case["num_frames_in_video"], case["clip_frames"], case["stride"], rng)
        assert ids.tolist() == case["frame_ids"], case


def test_finetuning_windows_are_those_of_the_released_program(recorded):
    cases = recorded["finetune_sampling_dense"]
    assert len(cases) == 72
    for case in cases:
        rng = NumpyDraws(case["numpy_seed"])
        ids = finetune_window(case["num_frames_in_video"], case["clip_frames"], case["stride"], rng)
        assert ids.tolist() == case["frame_ids"], case


def test_evaluation_windows_are_those_of_the_released_program(recorded):
    for case in recorded["multi_view_test"]:
        windows = view_windows(
            case["num_frames_in_video"], case["clip_frames"], case["stride"], case["test_num_segment"]
        )
        assert len(windows) * case["test_num_crop"] == len(case["views"])
        for view in case["views"]:
            assert windows[view["chunk"]].tolist() == view["frame_ids"]


def test_segment_frames_are_those_of_the_released_program(recorded_segments):
    for case in recorded_segments["train_validation"]:
        ids = segment_frames(
            case["num_frames_in_video"], case["num_segments"], NumpyDraws(case["numpy_seed"])
        )
        assert ids.tolist() == case["frame_ids"], case


def test_two_segment_views_are_those_of_the_released_program(recorded_segments):
    for case in recorded_segments["test"]:
        views = segment_views(case["num_frames_in_video"], case["num_segments"], case["test_num_segment"])
        for view in case["views"]:
            assert views[view["chunk"]].tolist() == view["frame_ids"]


@given(lengths, clip_lengths, strides, st.integers(1, 12), st.integers(0, 2**32))
def test_every_sampling_gives_the_requested_number_of_frames_inside_the_video_in_order(
    length, frames, stride, clips, seed
):
    for way in SAMPLINGS.values():
        rng = np.random.default_rng(seed)
        chosen = [
            way.pretrain(length, frames, stride, rng),
            way.finetune(length, frames, stride, rng),
            way.center(length, frames, stride),
            *way.views(length, frames, stride, clips),
        ]
        assert len(chosen) == 3 + clips
        for ids in chosen:
            assert ids.shape == (frames,)
            assert ids.dtype == np.int64
            assert ids.min() >= 0
            assert ids.max() < length
            assert (np.diff(ids) >= 0).all()


def test_pretraining_windows_start_anywhere_up_to_the_last_place_that_fits():
    rng = np.random.default_rng(0)
    starts = {int(pretrain_window(70, 16, 4, rng)[0]) for _ in range(300)}
    assert starts == set(range(7))


def test_single_evaluation_window_is_in_the_middle():
    assert view_windows(100, 4, 5, clips=1)[0].tolist() == [40, 45, 50, 55]
    assert view_windows(3, 4, 5, clips=1)[0].tolist() == [0, 0, 0, 0]


def test_single_segment_view_takes_the_middles():
    assert segment_views(40, 4, clips=1)[0].tolist() == [5, 15, 25, 35]


def test_center_window_has_as_much_video_before_as_behind():
    ids = sampling("dense").center(100, 16, 4)
    assert ids[0] == 18
    assert ids[-1] == 81


def test_frames_of_a_one_frame_video_are_all_that_frame():
    rng = np.random.default_rng(0)
    for way in SAMPLINGS.values():
        assert way.pretrain(1, 16, 4, rng).tolist() == [0] * 16
        assert way.finetune(1, 16, 4, rng).tolist() == [0] * 16


def test_unknown_sampling_is_named_with_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'dense'"):
        sampling("dence")
