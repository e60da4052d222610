"""What a video is read from: a file of this machine, a file of a storage, or a part of a shard.

Decoders read files of this machine where they lie. All else comes into memory, whole, and the last one stays
there: a clip asks for the frames of a video right after it asked how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from everest.system.storage import Location, RemotePath, parse_location


@dataclass(frozen=True, order=True, slots=True)
class Member:
    """A video in a shard: which bytes of it."""

    shard: Location
    offset: int
    size: int
    name: str  # of the file that it was

    def __str__(self) -> str:
        return f"{self.shard}#{self.name}"


Video = Path | RemotePath | Member


def as_video(video: str | Video) -> Video:
    """A video from its path or URL, or as it is."""
    return parse_location(video) if isinstance(video, str) else video


def video_bytes(video: Video) -> bytes:
    """All bytes."""
    return video.read_bytes() if isinstance(video, Path) else _fetched(video, video_version(video))


def decoder_input(video: Video) -> str | BytesIO:
    """What decoders take."""
    return str(video) if isinstance(video, Path) else BytesIO(video_bytes(video))


def first_bytes(video: Video, size: int) -> bytes:
    """The first bytes."""
    if isinstance(video, Path):
        with video.open("rb") as file:
            return file.read(size)
    return video_bytes(video)[:size]


def video_version(video: Video) -> tuple[int, str]:
    """Bytes, and what changes with the video: a rewritten file is another one.

    Raises:
        OSError: there is none.
    """
    if isinstance(video, Member):
        return video.size, video_version(video.shard)[1]
    if isinstance(video, RemotePath):
        return video.version()
    status = video.stat()
    return status.st_size, str(status.st_mtime_ns)


@lru_cache(maxsize=1)
def _fetched(video: RemotePath | Member, version: tuple[int, str]) -> bytes:
    if isinstance(video, RemotePath):
        return video.read_bytes()
    if isinstance(video.shard, RemotePath):
        return video.shard.read_bytes(video.offset, video.offset + video.size)
    with video.shard.open("rb") as file:
        file.seek(video.offset)
        return file.read(video.size)
