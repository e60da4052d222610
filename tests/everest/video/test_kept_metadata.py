"""Facts about video files on the disk: those of the file as it is now, or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from timed_videos import write_numbered

from everest.video.index import CountedIndex
from everest.video.metadata import VideoMetadata, clear_video_cache, inspect_video, keep_metadata_in
from everest.video.reader import VideoError
from everest.video.writer import write_video


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    clear_video_cache()
    keep_metadata_in(tmp_path / "indexes")
    yield tmp_path / "indexes"
    keep_metadata_in(None)
    clear_video_cache()


def stored(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def assert_same(one: VideoMetadata, other: VideoMetadata) -> None:
    np.testing.assert_equal(asdict(one), asdict(other))


@pytest.mark.parametrize("kind", ["mp4", "avi"])
def test_stored_metadata_equals_that_of_the_file(folder: Path, clip_files: Path, tmp_path: Path, kind: str):
    video = clip_files / "clip0.mp4"
    if kind == "avi":  # counted instead of indexed
        video = write_numbered(tmp_path / "counted.avi", range(32), Fraction(1, 10), codec="mpeg4")
    first = inspect_video(video)
    assert [path.stat().st_size < 1000 for path in stored(folder)] == [True]
    clear_video_cache()
    again = inspect_video(video)
    assert again is not first
    assert_same(first, again)
    clear_video_cache()
    keep_metadata_in(None)
    assert_same(first, inspect_video(video))
    assert isinstance(first.index, CountedIndex) == (kind == "avi")


def test_a_file_rewritten_with_its_old_size_and_time_is_indexed_again(folder: Path, tmp_path: Path):
    video = tmp_path / "video.mp4"
    frames = torch.zeros(20, 32, 32, 3, dtype=torch.uint8)
    write_video(video, frames, fps=10)
    status, size = video.stat(), video.stat().st_size
    assert inspect_video(video).info.num_frames == 20
    write_video(video, frames[:10], fps=10)
    with video.open("ab") as file:
        file.write(bytes(size - video.stat().st_size))
    os.utime(video, ns=(status.st_atime_ns, status.st_mtime_ns))
    clear_video_cache()
    assert inspect_video(video).info.num_frames == 10
    assert len(stored(folder)) == 2


def test_a_damaged_file_of_the_store_is_made_again(folder: Path, clip_files: Path):
    video = clip_files / "clip1.mp4"
    first = inspect_video(video)
    (file,) = stored(folder)
    content = file.read_bytes()
    half = len(content) // 2
    other_byte = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    for damaged in (b"", b"{}", content[:half], other_byte):
        file.write_bytes(damaged)
        clear_video_cache()
        assert_same(first, inspect_video(video))
        assert file.read_bytes() == content


def test_no_unreadable_video_is_stored_and_no_unwritable_folder_costs_a_video(tmp_path, folder, clip_files):
    (tmp_path / "broken.mp4").write_text("no video")
    with pytest.raises(VideoError, match="not a video file"):
        inspect_video(tmp_path / "broken.mp4")
    assert stored(folder) == []
    keep_metadata_in(tmp_path / "broken.mp4" / "indexes")
    assert inspect_video(clip_files / "clip2.mp4").info.num_frames == 32
