import dataclasses

import numpy as np
import pytest
import torch

from everest.config.heads import Head
from everest.data.augment import RandAugment
from everest.data.clip_dataset import MAX_TRIES, ClipDataset
from everest.data.footage import frame_span
from everest.data.loader import read_batches
from everest.data.views import EvalViews, FinetuneViews, PretrainViews, ValidationViews
from everest.errors import DataError
from everest.lists.reading import read_samples
from everest.lists.sample import Sample
from everest.video.reader import VideoError, read_frames
from everest.video.writer import write_video

SIZE = (32, 32)
PRETRAIN = PretrainViews(frames=4, stride=2, size=SIZE, flip=True, sampling="dense", views_per_decode=1)
FINETUNE = FinetuneViews(
    frames=4, stride=2, size=SIZE, flip=True, sampling="dense", erasing=0.5,
    crop_area=(0.08, 1.0),
    rand_augment=RandAugment(magnitude=9, std=0.5, ops=4),
)  # fmt: skip
VALIDATION = ValidationViews(frames=4, stride=2, size=SIZE, sampling="dense")
TEST = EvalViews(frames=4, stride=2, size=SIZE, clips=2, crops=3, sampling="dense")
ALL = [PRETRAIN, dataclasses.replace(PRETRAIN, views_per_decode=3), FINETUNE, VALIDATION, TEST]
ALL += [dataclasses.replace(maker, sampling="segment", size=(16, 48)) for maker in ALL]


@pytest.fixture(scope="module")
def samples(clip_files):
    found = read_samples(clip_files / "train.csv", root=clip_files)
    return found.samples


def dataset(samples, views=PRETRAIN, **options):
    settings = {"seed": 0, "num_noise": 5, "decoder": "auto", "replace_bad": True} | options
    settings.setdefault("heads", (Head(outputs=2),))
    return ClipDataset(samples, views=views, **settings)


def same(one, other):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("maker", ALL)
def test_clip_follows_from_seed_epoch_and_index(samples, maker):
    assert same(dataset(samples, maker, seed=7).read((2, 1)), dataset(samples, maker, seed=7).read((2, 1)))


@pytest.mark.parametrize("maker", [PRETRAIN, FINETUNE])
@pytest.mark.parametrize(("seed", "place"), [(8, (2, 1)), (7, (3, 1)), (7, (2, 2))])
def test_training_clip_changes_with_seed_epoch_and_index(samples, maker, seed, place):
    one = dataset(samples[:1] * 4, maker, seed=7).read((2, 1))
    other = dataset(samples[:1] * 4, maker, seed=seed).read(place)
    assert not torch.equal(one.frames, other.frames)
    assert not torch.equal(one.noise, other.noise)


def test_views_of_one_decode_are_other_crops_of_the_same_frames_with_noise_of_their_own(samples):
    clip = dataset(samples, ALL[1]).read((0, 0))
    first, second, third = clip.frames
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert len(clip.noise.unique()) == clip.noise.numel()
    unlabeled = [dataclasses.replace(samples[0], labels=())]
    assert dataset(unlabeled).read((0, 0)).label.tolist() == [-1]


@pytest.mark.parametrize("maker", [VALIDATION, TEST])
def test_evaluated_frames_do_not_depend_on_seed_or_epoch(samples, maker):
    one, other = dataset(samples, maker, seed=1).read((0, 1)), dataset(samples, maker, seed=2).read((5, 1))
    assert torch.equal(one.frames, other.frames)


def test_without_flip_left_stays_left(tmp_path):
    frames = torch.zeros(16, 48, 64, 3, dtype=torch.uint8)
    frames[:, :, 32:] = 255
    write_video(tmp_path / "a.mp4", frames, fps=8)
    sample = Sample(path=str(tmp_path / "a.mp4"))
    for flip, expected in ((False, {False}), (True, {False, True})):
        maker = dataclasses.replace(PRETRAIN, flip=flip)
        clips = [maker(sample, np.random.default_rng(seed), "auto").frames.float() for seed in range(20)]
        assert {bool(clip[..., 0].mean() > clip[..., -1].mean()) for clip in clips} == expected


def test_segment_limits_the_frames(samples):
    path = samples[0].path
    whole = read_frames(path, range(32))
    sample = dataclasses.replace(samples[0], start_frame=10, end_frame=18)
    assert frame_span(sample)[:2] == (10, 8)
    native = dataclasses.replace(VALIDATION, size=(48, 64))
    frames = native(sample, np.random.default_rng(0), "auto").frames[0]  # (3, 4, 48, 64)
    expected = whole[[10, 12, 15, 17]]  # stretched over all 8: no window fits in
    assert torch.equal(frames, expected.permute(3, 0, 1, 2))
    with pytest.raises(VideoError, match="frames from 40; there are 32"):
        frame_span(dataclasses.replace(sample, start_frame=40, end_frame=None))


@pytest.fixture
def broken(tmp_path):
    (tmp_path / "broken.mp4").write_text("no video")
    return Sample(path=str(tmp_path / "broken.mp4"), labels=(1,))


def test_broken_video_is_replaced_by_the_same_other_one_every_time(samples, broken):
    mixed = [broken, *samples[:3]]
    clip = dataset(mixed).read((3, 0))
    assert clip.failed_reads[0] == (broken.path, "not a video file")
    assert clip.video_id in {sample.path for sample in samples[:3]}
    assert same(clip, dataset(mixed).read((3, 0)))
    assert torch.equal(clip.noise, dataset(samples[:1] * 4).read((3, 0)).noise)  # that of its place
    replacements = {dataset(mixed).read((epoch, 0)).video_id for epoch in range(20)}
    assert len(replacements) > 1


@pytest.mark.parametrize("workers", [0, 1])
def test_only_broken_videos_end_in_an_error_that_reaches_the_loop(broken, workers):
    words = rf"^{MAX_TRIES} draws in a row gave unreadable videos \(1 of 2\), first .*broken\.mp4: not a vid"
    with pytest.raises(DataError, match=words):
        list(read_batches(dataset([broken, broken]), [[(0, 0)]], workers=workers, timeout=60))


def test_in_evaluation_broken_videos_are_zeros_and_named(samples, broken):
    clip = dataset([broken, *samples], TEST, replace_bad=False).read((0, 0))
    assert clip.frames.shape == (6, 3, 4, 32, 32)
    assert not clip.frames.any()
    assert clip.failed_reads == [(broken.path, "not a video file")]
    assert (clip.video_id, clip.label.tolist()) == (broken.path, [1])
