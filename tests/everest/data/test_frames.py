import json

import numpy as np
import pytest
from draws import NumpyDraws
from hypothesis import given
from hypothesis import strategies as st

from everest.data.frames import (
    SAMPLINGS,
    find_sampling,
    finetune_window,
    pretrain_window,
    segment_frames,
    segment_views,
    view_windows,
)

lengths = st.integers(1, 400)
clip_lengths = st.integers(1, 40)
strides = st.integers(1, 9)


@pytest.fixture(scope="module")
def recorded(golden):
    return json.loads(golden("augment.json").read_text())


@pytest.fixture(scope="module")
def recorded_segments(golden):
    return json.loads(golden("ssv2_sampling.json").read_text())


@pytest.mark.parametrize(
    ("key", "window"), [("pretrain_sampling", pretrain_window), ("finetune_sampling_dense", finetune_window)]
)
def test_training_windows_are_those_of_the_official_code(recorded, key, window):
    cases = recorded[key]
    assert len(cases) == 72
    for case in cases:
        rng = NumpyDraws(case["numpy_seed"])
        ids = window(case["num_frames_in_video"], case["clip_frames"], case["stride"], rng)
        assert ids.tolist() == case["frame_ids"], case


def test_evaluation_windows_are_those_of_the_official_code(recorded):
    for case in recorded["multi_view_test"]:
        windows = view_windows(
            case["num_frames_in_video"], case["clip_frames"], case["stride"], case["test_num_segment"]
        )
        assert len(windows) * case["test_num_crop"] == len(case["views"])
        for view in case["views"]:
            assert windows[view["chunk"]].tolist() == view["frame_ids"]


def test_segment_frames_and_views_are_those_of_the_official_code(recorded_segments):
    for case in recorded_segments["train_validation"]:
        draws = NumpyDraws(case["numpy_seed"])
        ids = segment_frames(case["num_frames_in_video"], case["num_segments"], draws)
        assert ids.tolist() == case["frame_ids"], case
    for case in recorded_segments["test"]:
        views = segment_views(case["num_frames_in_video"], case["num_segments"], case["test_num_segment"])
        for view in case["views"]:
            assert views[view["chunk"]].tolist() == view["frame_ids"]


@given(lengths, clip_lengths, strides, st.integers(1, 12), st.integers(0, 2**32))
def test_every_sampling_gives_so_many_frames_inside_the_video_in_order(length, frames, stride, clips, seed):
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


def test_single_windows_and_views_are_in_the_middle():
    assert view_windows(100, 4, 5, clips=1)[0].tolist() == [40, 45, 50, 55]
    assert view_windows(3, 4, 5, clips=1)[0].tolist() == [0, 0, 0, 0]
    assert segment_views(40, 4, clips=1)[0].tolist() == [5, 15, 25, 35]
    ids = find_sampling("dense").center(100, 16, 4)
    assert (ids[0], ids[-1]) == (18, 81)  # as much video before as behind
