"""Large files of a storage: read in parts, with the frames of the whole file."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from storage import new_bucket, put, s3_server
from timed_videos import write_frames

from everest.system.storage import RemotePath
from everest.video.metadata import clear_video_cache, keep_metadata_in
from everest.video.reader import frame_times, frames_in_order, read_frames, video_info
from everest.video.source import MAX_LOADED_BYTES, PartsOfFile, _part

FRAMES = 150


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server():
        yield new_bucket(f"footage-{uuid.uuid4().hex}")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file above `MAX_LOADED_BYTES`: noise in 15 groups of ten pictures."""
    path = tmp_path_factory.mktemp("recording") / "noise.mp4"
    noise = np.random.default_rng(0).integers(0, 256, size=(FRAMES, 480, 640, 3), dtype=np.uint8)
    write_frames(path, noise, codec="mpeg4", rate=10, options={"g": "10", "b": "40000000"})
    assert path.stat().st_size > MAX_LOADED_BYTES
    return path


@pytest.fixture(scope="module")
def content(recording: Path) -> bytes:
    return recording.read_bytes()


@pytest.fixture(scope="module")
def stored(bucket: str, content: bytes) -> str:
    put(f"{bucket}/noise.mp4", content)
    return f"{bucket}/noise.mp4"


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what is read from storages, in bytes."""
    sizes: list[int] = []
    read = RemotePath.read_bytes

    def count(self: RemotePath, start: int | None = None, end: int | None = None) -> bytes:
        found = read(self, start, end)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(RemotePath, "read_bytes", count)
    _part.cache_clear()
    return sizes


def test_frames_and_packets_of_a_large_file_are_those_of_the_file_here(stored: str, recording: Path):
    assert video_info(stored) == video_info(recording)
    ids = [149, 0, 77, 78, 20]
    assert torch.equal(read_frames(stored, ids), read_frames(recording, ids))
    there, here = (list(frames_in_order(path, range(35, 60, 6))) for path in (stored, recording))
    assert all(torch.equal(a, b) for a, b in zip(there, here, strict=True))
    assert np.array_equal(frame_times(stored), frame_times(recording))


def test_a_clip_costs_its_part_of_the_file_once_the_index_is_cached(stored, recording, requested, tmp_path):
    keep_metadata_in(tmp_path)
    try:
        clear_video_cache()
        video_info(stored)
        whole = recording.stat().st_size
        assert whole <= sum(requested) <= 1.5 * whole
        requested.clear()
        clear_video_cache()  # as in another process
        _part.cache_clear()
        read_frames(stored, range(62, 70))
        assert 0 < sum(requested) < whole / 4
    finally:
        keep_metadata_in(None)
        clear_video_cache()


@settings(max_examples=30)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.integers(-(2**23), 2**23), st.integers(0, 2**22)), max_size=6
    )
)
def test_positions_and_bytes_are_those_of_the_whole(stored, content, steps):
    parts, whole = PartsOfFile(RemotePath(stored)), BytesIO(content)
    for whence, offset, count in steps:
        if whence == 0 and offset < 0:
            continue
        assert parts.seek(offset, whence) == whole.seek(offset, whence)
        found = parts.read(count)
        assert found == whole.read(len(found or b""))
        assert found or not count or whole.tell() >= len(content)
