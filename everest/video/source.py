"""The source of a video: a file of this machine, a file of a storage, or a member of a shard.

Decoders read files of this machine in place. Any other video is loaded into memory completely, and the last
one stays there: a clip requests the frames of a video right after the number of its frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from everest.system.storage import Location, RemotePath, parse_location


@dataclass(frozen=True, order=True, slots=True)
class Member:
    """A video in a shard: a range of its bytes."""

    shard: Location
    offset: int
    size: int
    name: str  # of the original file

    def __str__(self) -> str:
        return f"{self.shard}#{self.name}"


Video = Path | RemotePath | Member


def as_video(video: str | Video) -> Video:
    """Parse a path or URL; any other source of a video is returned as it is."""
    return parse_location(video) if isinstance(video, str) else video


def video_bytes(video: Video) -> bytes:
    """All bytes of a video."""
    return video.read_bytes() if isinstance(video, Path) else _fetch(video, video_version(video))


def decoder_input(video: Video) -> str | BytesIO:
    """The input for a decoder: an absolute path, or the bytes in memory.

    FFmpeg takes a relative path such as `a:b.mp4` for an address with the protocol `a`.
    """
    return str(video.absolute()) if isinstance(video, Path) else BytesIO(video_bytes(video))


def video_version(video: Video) -> tuple[int, str]:
    """Size in bytes, and a text that changes when the file is rewritten.

    Raises:
        OSError: there is no such file.
    """
    if isinstance(video, Member):
        return video.size, video_version(video.shard)[1]
    if isinstance(video, RemotePath):
        return video.version()
    status = video.stat()
    return status.st_size, str(status.st_mtime_ns)


@lru_cache(maxsize=1)
def _fetch(video: RemotePath | Member, version: tuple[int, str]) -> bytes:
    """Load a video into memory; `version` is part of the cache key."""
    if isinstance(video, RemotePath):
        return video.read_bytes()
    if isinstance(video.shard, RemotePath):
        return video.shard.read_bytes(video.offset, video.offset + video.size)
    with video.shard.open("rb") as file:
        file.seek(video.offset)
        return file.read(video.size)
