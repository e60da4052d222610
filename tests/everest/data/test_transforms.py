import json

import numpy as np
import pytest
import torch
from draws import PythonDraws
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from everest.data.augment import OPERATIONS, RandAugment, apply_operations
from everest.data.crops import (
    NO_BOX,
    Box,
    center_box,
    covering_size,
    crop,
    erase,
    erasing_box,
    multi_scale_crop,
    multi_scale_sizes,
    random_resized_crop,
    resize,
    view_boxes,
)
from everest.data.frames import view_windows
from everest.video.pixels import IMAGENET_STD, normalize

PAPER = RandAugment(magnitude=7, std=0.5, ops=4)  # rand-m7-n4-mstd0.5-inc1, as the released scripts
sizes = st.tuples(st.integers(1, 500), st.integers(1, 500))


@pytest.fixture(scope="module")
def recorded(golden):
    return json.loads(golden("augment.json").read_text())


@pytest.fixture(scope="module")
def tensors(golden):
    return load_file(golden("augment.safetensors"))


@pytest.fixture(scope="module")
def all_tensors(shared):
    return load_file(shared / "golden" / "augment.safetensors")


def levels_apart(clip, official):
    """(3, T, H, W): how many of 256 levels a byte clip differs from a normalized one."""
    return ((normalize(clip) - official) * torch.tensor(IMAGENET_STD).view(3, 1, 1, 1) * 255).abs()


def cut(clip, box):
    return clip[..., box.top : box.top + box.height, box.left : box.left + box.width]


def test_multi_scale_candidates_are_those_of_the_official_code(recorded):
    for case in recorded["multi_scale_crop"]["candidates"]:
        (width, height), side = case["image_wh"], case["input_size"]
        found = multi_scale_sizes((height, width), (side, side))
        assert [[w, h] for h, w in found] == case["candidate_crops_wh"]
    assert multi_scale_sizes((240, 240), (112, 224))[0] == (120, 240)  # of a wide target, and of a high one
    assert multi_scale_sizes((240, 240), (224, 112))[0] == (240, 120)


def test_multi_scale_draws_are_those_of_the_official_code(recorded):
    cases = recorded["multi_scale_crop"]["draws"]
    assert len(cases) == 96
    for case in cases:
        (width, height), side = case["image_wh"], case["input_size"]
        box = multi_scale_crop((height, width), (side, side), PythonDraws(case["python_random_seed"]))
        assert box == (case["offset_h"], case["offset_w"], case["crop_h"], case["crop_w"])


def test_pretraining_pixels_equal_the_released_ones_to_the_level(recorded, tensors):
    case, clip = recorded["pretrain_transform"], tensors["msc.input_THWC"]
    side = case["input_size"]
    box = multi_scale_crop((60, 80), (side, side), PythonDraws(case["python_random_seed"]))
    assert [box.width, box.height, box.left, box.top] == case["crop_w_h_offw_offh"]
    resized = resize(crop(clip, box), (side, side), antialias=True)
    assert levels_apart(resized, tensors["msc.output_CTHW"]).max() < 0.01


@given(sizes, sizes, st.integers(0, 2**32))
def test_every_training_box_lies_in_the_frame(frame, target, seed):
    rng = np.random.default_rng(seed)
    for box in (multi_scale_crop(frame, target, rng), random_resized_crop(frame, target, rng)):
        assert box.height > 0
        assert box.width > 0
        assert 0 <= box.top <= frame[0] - box.height
        assert 0 <= box.left <= frame[1] - box.width


def test_random_resized_crops_are_those_of_the_official_code(recorded):
    cases = recorded["random_resized_crop"]["draws"]
    assert len(cases) == 10
    for case in cases:
        box = random_resized_crop((case["height"], case["width"]), (224, 224), PythonDraws(case["seed"]))
        assert list(box) == case["i_j_h_w"]


@pytest.mark.parametrize("number", [0, 1])
def test_finetuning_pixels_lie_within_a_level_of_the_released_ones(recorded, all_tensors, number):
    case = recorded["finetune_frame_pipeline"][number]
    draws = PythonDraws(case["seed_python_numpy_torch"])
    clip = PAPER(all_tensors["aug_frame.input_THWC"], draws)
    box = random_resized_crop((60, 80), (32, 32), draws)
    assert list(box) == case["i_j_h_w"]
    resized = resize(crop(clip, box), (32, 32), antialias=False)
    erased = torch.zeros(32, 32, dtype=torch.bool)  # neither case is flipped, and numpy decided that
    cut(erased, erasing_box((32, 32), case["reprob"], draws)).fill_(True)
    assert erased.any() == (number == 1)
    apart = levels_apart(resized, all_tensors[case["tensor"]])
    assert apart[..., ~erased].max() < 1.01
    assert (apart[..., erased] > 5).float().sum() >= 0.9 * apart[..., erased].numel()


def test_evaluation_boxes_are_those_of_the_official_code(golden, recorded):
    of_segments = json.loads(golden("ssv2_sampling.json").read_text())["test"]
    for case in (*recorded["multi_view_test"], *of_segments):
        target = (case["short_side"], case["short_side"])
        covering = covering_size((case["height"], case["width"]), target)
        assert list(covering) == case.get("resized_hw", list(covering))
        boxes = view_boxes(covering, target, case.get("test_num_crop", 3))
        for view in case["views"]:
            expected = {side: view[side] for side in Box._fields if side in view}
            assert boxes[view["split"]]._asdict().items() >= expected.items()
            assert expected.keys() >= {"top", "left"}
    assert view_boxes((48, 64), (48, 48), 1) == [center_box((48, 64), (48, 48))] == [(0, 8, 48, 48)]


def test_evaluation_pixels_are_within_a_level_of_the_released_ones(all_tensors):
    video, target = all_tensors["views.input_THWC"], (48, 48)
    covering = covering_size((54, 72), target)
    resized = resize(video, covering, antialias=False)
    boxes, windows = view_boxes(covering, target, 3), view_windows(40, 8, 2, clips=2)
    for name, window, box in (
        ("views.test_item0_CTHW", windows[0], boxes[0]),
        ("views.test_item5_CTHW", windows[1], boxes[2]),
        ("views.validation_CTHW", [8, 10, 12, 14, 17, 19, 21, 23], center_box(covering, target)),
    ):
        assert levels_apart(cut(resized, box)[:, list(window)], all_tensors[name]).max() < 1.01


@pytest.mark.parametrize("number", range(6))
def test_rand_augment_equals_the_released_one_bit_for_bit(recorded, request, number):
    case = recorded["rand_augment"]["cases"][number]
    tensors = request.getfixturevalue("all_tensors" if number else "tensors")  # the repository has the first
    assert list(OPERATIONS) == recorded["rand_augment"]["op_order"]
    seed = case["python_random_seed"]
    assert case["numpy_seed"] == seed
    sampled = PAPER.draw(PythonDraws(seed))
    assert len(sampled) == len(case["applied"])
    assert [[] if a is None else [a] for _, a in sampled] == [op["args"] for op in case["applied"]]
    assert torch.equal(PAPER(tensors["randaug.input_THWC"], PythonDraws(seed)), tensors[case["tensor"]])


def test_every_operation_equals_the_released_one_at_three_magnitudes(recorded, tensors):
    frame = Image.fromarray(tensors["randaug.input_THWC"][0].numpy())
    cases = recorded["rand_augment_ops_on_first_frame"]["ops"]
    assert len(cases) == 3 * len(OPERATIONS)
    for key, case in cases.items():
        name, magnitude = key.split("@")
        operation = OPERATIONS[name]
        level = float(magnitude) / 10 * (-1 if operation.signed else 1)  # the recorded seed negates
        argument = operation.argument(level)
        assert case["args"] == ([] if argument is None else [argument])
        assert np.asarray(apply_operations(frame, [(name, argument)])).sum() == case["sum"]


def test_rand_augment_does_the_same_to_every_frame(tensors):
    frame = tensors["randaug.input_THWC"][:1]
    clip = PAPER(frame.expand(5, -1, -1, -1), np.random.default_rng(2))
    assert not torch.equal(clip[:1], frame)
    assert all(torch.equal(other, clip[0]) for other in clip)


def test_erasing_box_is_that_of_the_official_code(recorded, tensors):
    case, none = recorded["random_erasing"][:2]
    box = erasing_box((24, 32), case["probability"], PythonDraws(case["python_random_seed"]))
    erased = (tensors[case["tensor"]] != 5).any(dim=1)  # (T, H, W)
    expected = torch.zeros(24, 32, dtype=torch.bool)
    cut(expected, box).fill_(True)
    assert torch.equal(erased, expected.expand(4, -1, -1))
    assert erasing_box((24, 32), none["probability"], PythonDraws(none["python_random_seed"])) == NO_BOX


def test_erase_fills_its_boxes_with_fresh_noise_and_nothing_else():
    frames = torch.full((3, 3, 4, 24, 32), 5.0)
    boxes = torch.tensor([[2, 3, 10, 20], [0, 0, 0, 0], [0, 0, 24, 32]])
    filled = erase(frames, boxes, generator=torch.Generator().manual_seed(0))
    changed = filled != 5
    assert changed[0, :, :, 2:12, 3:23].all()
    assert changed[0].sum() == 3 * 4 * 10 * 20
    assert not changed[1].any()
    assert changed[2].all()
    assert abs(filled[2].mean()) < 0.05
    assert abs(filled[2].std() - 1) < 0.05
    assert not torch.equal(filled[2, 0, 0], filled[2, 0, 1])
    again = erase(frames, boxes, generator=torch.Generator().manual_seed(0))
    assert torch.equal(filled, again)
    assert (frames == 5).all()
