"""Crops that the device resizes, forced on a CPU."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import called, killed_copy, same_run, sets
from torch import Tensor

from everest.data.augment import RandAugment
from everest.data.clip_dataset import ClipDataset
from everest.data.crops import Regions, largest_region, resize, resize_regions
from everest.data.loader import copy_to_device, read_batches
from everest.data.views import FinetuneViews, PretrainViews
from everest.lists.sample import Sample
from everest.video.reader import read_frames

SIZE = (56, 56)
REGION = largest_region(SIZE)  # 64
CPU = torch.device("cpu")
PRETRAIN = PretrainViews(frames=4, stride=2, size=SIZE, sampling="dense", flip=True, views_per_decode=3)
FINETUNE = FinetuneViews(
    frames=4, stride=2, size=SIZE, sampling="dense", flip=True, erasing=0.5, crop_area=(0.08, 1.0),
    rand_augment=RandAugment(magnitude=9, std=0.5, ops=4),
)  # fmt: skip
MAX_LEVELS = 2  # that a byte may differ: two roundings


@pytest.fixture(scope="module")
def film(shared: Path) -> Path:
    return shared / "videos" / "odd" / "portrait_354x492_2997.mp4"


@pytest.fixture(scope="module")
def frames(film: Path) -> Tensor:
    """(T, H, W, C) with a short side of 90."""
    return resize(read_frames(film, range(0, 32, 2)), (125, 90), antialias=True).permute(1, 2, 3, 0)


@given(st.integers(1, REGION[0]), st.integers(1, REGION[1]), st.booleans(), st.booleans(), st.booleans())
def test_a_region_of_any_size_becomes_the_workers_clip(frames, height, width, flipped, antialias, precise):
    part = frames[:2, 30 : 30 + height, 20 : 20 + width]
    memory = torch.full((1, 1, 2, *REGION, 3), 255, dtype=torch.uint8)  # what is around it has no effect
    memory[0, 0, :, :height, :width] = part
    expected = resize(part, SIZE, antialias=antialias)
    expected = expected.flip(-1) if flipped else expected
    regions = Regions(torch.tensor([[[height, width, int(flipped)]]]), SIZE, antialias)
    found = resize_regions(memory, regions, precise=precise)
    assert found.shape == (1, 1, 3, 2, *SIZE)
    assert (found[0, 0].int() - expected.int()).abs().max() <= MAX_LEVELS
    if (height, width) == SIZE:
        assert torch.equal(found[0, 0], expected)


@pytest.mark.parametrize("views", [PRETRAIN, FINETUNE])
def test_batches_have_the_same_boxes_flips_and_random_numbers(film, views):
    """Of a video of 354 x 492: some boxes are larger than the memory of a region."""
    samples, both = [Sample(path=str(film)), Sample(path="missing.mp4"), Sample(path=str(film))], []
    for one in (views, replace(views, region_size=REGION)):  # resized by the worker, and by the device
        dataset = ClipDataset(samples, views=one, seed=5, num_noise=7, decoder="auto", replace_bad=False)
        loaded = read_batches(dataset, [[(0, 0), (0, 1), (1, 2)]], workers=1, timeout=60)  # the only batch
        (clip,) = (copy_to_device(batch, CPU) for batch in loaded)
        kept = {name: getattr(clip, name).clone() for name in ("frames", "noise", "erase_boxes", "label")}
        both.append(clip._replace(**kept))
    cpu, device = both
    assert cpu.frames.shape == device.frames.shape
    assert device.regions is None
    for name in ("noise", "erase_boxes", "label", "video_ids", "failed_reads"):
        one, other = getattr(cpu, name), getattr(device, name)
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other
    difference = (cpu.frames.int() - device.frames.int()).abs()
    assert difference.max() <= MAX_LEVELS
    assert not device.frames[1].any()  # unreadable


@pytest.mark.parametrize(
    ("command", "changes"),
    [
        ("pretrain", ("pretrain.views_per_decode=2", "data.channels=1")),
        ("finetune", ("finetune.erasing=0.5", "data.channels=1", "train.workers=2")),
    ],
)
def test_a_resumed_run_is_the_same_to_the_bit(recipe, tmp_path, command, changes):
    """Erasing and mixup are of the resized clips."""
    start = ["--init", "none"] if command == "finetune" else []
    options = ["--recipe", recipe, *start, *sets("data.resize=device", *changes)]
    called(command, *options, "-o", tmp_path / "whole")
    killed_copy(tmp_path / "whole", tmp_path / "killed")
    called(command, *options, "-o", tmp_path / "killed")
    assert same_run(tmp_path / "whole", tmp_path / "killed")
