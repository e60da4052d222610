import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import metrics, run

from everest.data import cache as cache_module
from everest.data.cache import FrameCache, open_cache
from everest.data.clips import ClipDataset
from everest.data.views import FinetuneViews, PretrainViews, ValidationViews
from everest.errors import EnvironmentProblem
from everest.lists.sample import Sample
from everest.video.reader import VideoError, read_frames
from everest.video.writer import write_video

SIZE = (32, 32)
MAKERS = [
    PretrainViews(frames=4, stride=2, size=SIZE, flip=True, sampling="dense", views_per_decode=2),
    FinetuneViews(
        frames=4, stride=2, size=SIZE, flip=True, sampling="dense",
        crop_area=(0.08, 1.0), rand_augment=None, erasing=0.5,
    ),
    ValidationViews(frames=4, stride=2, size=SIZE, sampling="segment"),
]  # fmt: skip


class Kept(FrameCache):
    """A cache of whole videos of 32 frames, unless a span is named."""

    def frames(self, video: object, ids: list[int], span: tuple[int, int] = (0, 32)) -> torch.Tensor:
        return self.read(str(video), ids, span=span, decoder="auto")


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    folder = tmp_path / "kept"
    folder.mkdir()
    return Kept(folder)


@pytest.fixture
def video(clip_files: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(clip_files / "clip1.mp4", tmp_path / "video.mp4"))


@pytest.mark.parametrize("maker", MAKERS)
def test_clips_are_the_same_with_and_without(clip_files, kept, maker):
    samples = [Sample(path=str(clip_files / f"clip{i}.mp4")) for i in range(4)]
    samples.append(dataclasses.replace(samples[0], start_frame=7, end_frame=19))
    samples.append(dataclasses.replace(samples[1], start=0.5, end=1.5))
    options = {"make_views": maker, "seed": 0, "num_noise": 3, "decoder": "auto", "replace_bad": True}
    without, cached = ClipDataset(samples, **options), ClipDataset(samples, **options, cache=kept)
    for place in [(epoch, index) for epoch in range(3) for index in range(len(samples))]:
        one, other = without.read(place), cached.read(place)
        assert torch.equal(one.frames, other.frames)
        assert torch.equal(one.erase, other.erase)
    assert len(list(kept.folder.iterdir())) == len(samples)


def test_a_video_is_decoded_again_only_if_it_was_rewritten(video, kept, tmp_path, monkeypatch):
    gone = Kept(tmp_path / "gone")  # a folder that takes nothing costs no clip
    assert torch.equal(gone.frames(video, [3]), read_frames(video, [3]))
    first = kept.frames(video, [3, 1, 30])
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "read_frames", None)
        assert torch.equal(kept.frames(video, [3, 1, 30]), first)
    write_video(video, torch.full((32, 48, 64, 3), 90, dtype=torch.uint8), fps=16)
    assert torch.equal(kept.frames(video, [5]), read_frames(video, [5]))


def test_frames_of_one_decoder_are_not_those_of_another(video, kept):
    wanted = {"ids": [3, 1], "span": (0, 32)}
    of_auto = kept.read(str(video), **wanted, decoder="auto")
    (file,) = kept.folder.iterdir()
    np.save(file, np.zeros((32, 48, 64, 3), dtype=np.uint8))  # as no decoder reads it
    assert not kept.read(str(video), **wanted, decoder="auto").any()
    assert torch.equal(kept.read(str(video), **wanted, decoder="decord"), of_auto)


def test_images_are_cached_and_a_changed_one_is_read_again(tmp_path, kept):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{number}.png")
    assert kept.frames(folder, [2, 0], (0, 3))[:, 0, 0, 0].tolist() == [2, 0]
    Image.new("RGB", (4, 4), (99, 0, 0)).save(folder / "2.png")
    assert kept.frames(folder, [2, 0], (0, 3))[:, 0, 0, 0].tolist() == [99, 0]


def test_a_damaged_video_gives_the_frames_before_the_damage(shared, kept):
    file = shared / "videos" / "odd" / "corrupted_real.mp4"
    assert torch.equal(kept.frames(file, [0, 28], (0, 50)), read_frames(file, [0, 28]))
    with pytest.raises(VideoError, match="cannot be decoded"):
        kept.frames(file, [3, 30], (0, 50))


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY no array"])
def test_a_damaged_file_of_the_cache_is_made_again(video, kept, damage):
    expected = kept.frames(video, [3])
    (file,) = kept.folder.iterdir()
    file.write_bytes(damage or file.read_bytes()[:1000])
    assert torch.equal(kept.frames(video, [3]), expected)
    assert np.load(file).shape == (32, 48, 64, 3)


def test_more_than_there_is_room_for_is_refused_with_both_numbers(video, small_disk, tmp_path, monkeypatch):
    monkeypatch.setenv("EVEREST_CACHE", str(small_disk))
    names = [str(shutil.copy(video, tmp_path / f"{i}.mp4")) for i in range(8)]  # 288 KiB each, decoded
    videos = [Sample(path=name) for name in names]
    assert open_cache("disk", videos[:6]) == FrameCache(small_disk / "frames")
    with pytest.raises(EnvironmentProblem, match=r"8 videos need about .* GiB, .* GiB free; use 'none'"):
        open_cache("disk", videos)
    segments = [Sample(path=name, start_frame=8, end_frame=20) for name in names]  # 108 KiB each
    assert open_cache("disk", segments) == FrameCache(small_disk / "frames")
    parts = [Sample(path=names[0], start_frame=first) for first in range(12)]
    with pytest.raises(EnvironmentProblem, match=r"12 videos need about"):  # as many segments of one
        open_cache("disk", parts)
    monkeypatch.setattr(cache_module, "MAX_VIDEO_BYTES", 2**17)  # whole videos are not cached: no room needed
    assert open_cache("disk", [*videos, segments[0]]) == FrameCache(small_disk / "frames")


def test_a_full_disk_costs_no_clip_and_no_whole_video(video, small_disk, tmp_path, monkeypatch):
    kept = Kept(small_disk)
    for number in range(12):
        copy = shutil.copy(video, tmp_path / f"{number}.mp4")
        assert torch.equal(kept.frames(copy, [3, 30]), read_frames(video, [3, 30]))
    assert 3 <= len(list(small_disk.glob("*.npy"))) < 12
    decoded: list[int] = []
    monkeypatch.setattr(cache_module, "read_frames", lambda _, ids, **options: decoded.extend(ids))
    kept.frames(shutil.copy(video, tmp_path / "another.mp4"), [3, 30])
    assert decoded == [3, 30]


PROGRAM = """
import sys
from everest.data.cache import open_cache
from everest.lists.sample import Sample
videos = [Sample(path=sys.argv[1])]
open_cache("memory", videos)  # of the videos to train on; the next is of those to validate on
kept = open_cache("memory", videos)
kept.read(sys.argv[1], [1], span=(0, 32), decoder="auto")
print(kept.folder, len(list(kept.folder.glob("*.npy"))))
"""


def test_memory_goes_with_the_last_process(video):
    if not cache_module.MEMORY_FOLDER.is_dir():
        pytest.skip("no files in memory on this system")
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(video)], capture_output=True, text=True, check=True
    )
    assert ended.stderr == ""
    shown = ended.stdout.split()
    folder = Path(shown[0])
    assert int(shown[1]) >= 1
    assert list(folder.glob("*.user")) or [file.name for file in folder.iterdir()] == [".lock"]


def test_a_run_with_a_cache_equals_the_run_without(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("EVEREST_CACHE", str(tmp_path / "cache"))
    for kind in ("none", "disk"):
        setting = ["--set", f"data.cache={kind}"]
        run("finetune", "--recipe", recipe, "--init", "none", "-o", tmp_path / kind, *setting)
    assert metrics(tmp_path / "none") == metrics(tmp_path / "disk")
    assert len(list((tmp_path / "cache" / "frames").glob("*.npy"))) == 4
