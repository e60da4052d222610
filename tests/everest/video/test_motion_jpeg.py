"""Motion JPEG files, whose packets are read at their places."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from timed_videos import repack, write_frames
from torch import Tensor

from everest.prepare.check import check_video
from everest.video.index import StampedIndex
from everest.video.metadata import inspect_video, to_rgb
from everest.video.reader import TimedFrame, VideoError, frames_in_order, luma, read_frames
from everest.video.source import ShardMember
from everest.video.writer import Mjpeg, write_timed_frames

FRAMES = 24
TASKS = Path("/proc/self/task")  # the threads of this process


@pytest.fixture(scope="module")
def pixels(shared: Path) -> NDArray[np.uint8]:
    return read_frames(shared / "videos" / "odd" / "portrait_354x492_2997.mp4", range(FRAMES)).numpy()


def written(path: Path, pixels: NDArray[np.uint8], quality: int) -> Path:
    frames = [TimedFrame(frame, number, Fraction(1, 25)) for number, frame in enumerate(pixels)]
    write_timed_frames(path, frames, Fraction(25), codec=Mjpeg(quality=quality), comment="")
    return path


@pytest.fixture(scope="module")
def film(pixels: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("images") / "film.mp4", pixels, 90)


@pytest.mark.skipif(not TASKS.is_dir(), reason="threads are counted in /proc")
def test_frames_have_no_threads_for_which_a_forked_process_would_wait(film: Path):
    with av.open(str(film)) as container:
        frame = next(container.decode(video=0))
    threads = set(TASKS.iterdir())
    assert to_rgb(frame).shape == (frame.height, frame.width, 3)
    assert set(TASKS.iterdir()) <= threads


def are_read_by_place(path: Path) -> bool:
    index = inspect_video(path).index
    return isinstance(index, StampedIndex) and index.offsets.size > 0


def by_ffmpeg(path: Path) -> Tensor:
    """All frames as FFmpeg decodes the file from its start."""
    with av.open(str(path)) as container:
        return torch.from_numpy(np.stack([x.to_ndarray(format="rgb24") for x in container.decode(video=0)]))


def test_frames_equal_ffmpegs_and_are_near_the_written_ones(film: Path, pixels: NDArray[np.uint8]):
    assert are_read_by_place(film)
    every = read_frames(film, range(FRAMES))
    assert torch.equal(every, by_ffmpeg(film))
    assert np.abs(every.numpy().astype(int) - pixels).mean() < 3
    assert torch.equal(read_frames(film, [20, 3, 3]), every[[20, 3, 3]])
    assert torch.equal(torch.stack(list(frames_in_order(film, range(FRAMES)))), every)
    assert np.array_equal(read_frames(film, [5], channels=1)[0].numpy(), luma(every[5].numpy()))
    member = ShardMember(film, 0, film.stat().st_size, "film.mp4")
    assert torch.equal(read_frames(member, [7]), every[[7]])


@pytest.mark.parametrize(("place", "lost"), [(0.0, 400), (0.5, 512)])  # the header; a sector of a disk
def test_a_damaged_image_is_an_error_of_its_own_frame_alone(film, tmp_path, place, lost):
    index = inspect_video(film).index
    content = bytearray(film.read_bytes())
    begin = index.offsets[9] + int(place * index.sizes[9])
    content[begin : begin + lost] = bytes(lost)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(content)
    assert torch.equal(read_frames(damaged, [8, 10]), read_frames(film, [8, 10]))
    repacked = repack(damaged, tmp_path / "damaged.mkv")  # read by the demuxer
    for file in (damaged, repacked):
        with pytest.raises(VideoError, match="frame 9 of 24 cannot be decoded"):
            read_frames(file, [8, 9])
    assert check_video(str(damaged)).reason == "damaged: 23 of 24 frames can be decoded"


def test_an_image_that_a_cut_removed_is_an_error(film: Path, tmp_path: Path):
    index = inspect_video(film).index
    (tmp_path / "cut.mp4").write_bytes(film.read_bytes()[: index.offsets[20] + 99])
    with pytest.raises(VideoError):
        read_frames(tmp_path / "cut.mp4", [20])


def test_an_image_of_another_size_is_scaled(film: Path, pixels: NDArray[np.uint8], tmp_path: Path):
    other = written(tmp_path / "other.mp4", pixels[:, :200, :300], 60)
    content = bytearray(film.read_bytes())
    into, out = inspect_video(film).index, inspect_video(other).index
    image = other.read_bytes()[out.offsets[9] : out.offsets[9] + out.sizes[9]]
    assert len(image) < into.sizes[9]
    content[into.offsets[9] : into.offsets[9] + len(image)] = image
    (tmp_path / "mixed.mp4").write_bytes(content)
    mixed = read_frames(tmp_path / "mixed.mp4", [8, 9, 10])
    assert torch.equal(mixed[[0, 2]], read_frames(film, [8, 10]))
    with av.open(str(tmp_path / "mixed.mp4")) as container:
        scaled = list(container.decode(video=0))[9].to_ndarray(width=354, height=492, format="rgb24")
    assert np.array_equal(mixed[1].numpy(), scaled)


def test_containers_that_do_not_state_the_places_of_images_are_demuxed(film: Path, tmp_path: Path):
    for name in ("film.mkv", "film.avi"):
        copy = repack(film, tmp_path / name)
        assert not are_read_by_place(copy)
        assert torch.equal(read_frames(copy, range(FRAMES)), by_ffmpeg(film))


@pytest.mark.parametrize("format", ["yuvj422p", "yuvj444p"])
def test_files_of_other_programs_are_read_by_place(pixels: NDArray[np.uint8], tmp_path: Path, format: str):
    film = write_frames(tmp_path / "film.mov", pixels, codec="mjpeg", rate=25, pix_fmt=format)
    assert are_read_by_place(film)
    assert torch.equal(read_frames(film, range(FRAMES)), by_ffmpeg(film))
