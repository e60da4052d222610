"""The source of a video: a local file, a file of a storage, or a member of a shard.

Decoders read local files in place. In a large file of a storage, they read the parts that they need, and the
last parts stay in memory. Any other video is loaded completely, and the last video stays in memory: a clip
requests the frames of a video right after asking for their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from io import SEEK_CUR, SEEK_END, SEEK_SET, BufferedReader, BytesIO, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Final

from everest.system.storage import Location, RemotePath, parse_location

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_LOADED_BYTES: Final = 2**25  # bytes; larger files of a storage are read in parts
PART_BYTES: Final = 2**21  # bytes per request
PARTS_IN_MEMORY: Final = 32  # parts that stay in memory


@dataclass(frozen=True, order=True, slots=True)
class ShardMember:
    """A video in a shard: a range of its bytes."""

    shard: Location
    offset: int
    size: int
    name: str  # name of the original file

    def __str__(self) -> str:
        return f"{self.shard}#{self.name}"


Video = Path | RemotePath | ShardMember


def as_video(video: str | Video) -> Video:
    """Parse a path or URL; any other source of a video is returned unchanged."""
    return parse_location(video) if isinstance(video, str) else video


def video_bytes(video: Video) -> bytes:
    """All bytes of a video."""
    return video.read_bytes() if isinstance(video, Path) else _fetch(video, video_version(video))


def decoder_input(video: Video) -> str | BytesIO | BufferedReader:
    """The input for a decoder: an absolute path, or a file object of the bytes.

    FFmpeg takes a relative path such as `a:b.mp4` for an address with the protocol `a`.
    """
    if isinstance(video, Path):
        return str(video.absolute())
    if isinstance(video, RemotePath) and video.version()[0] > MAX_LOADED_BYTES:
        return BufferedReader(PartsOfFile(video))
    return BytesIO(video_bytes(video))


def open_bytes(video: Video) -> BytesIO | BufferedReader:
    """The bytes of a video, to be read from any position."""
    source = decoder_input(video)
    return Path(source).open("rb") if isinstance(source, str) else source


def video_version(video: Video) -> tuple[int, str]:
    """Size in bytes, and a text that changes when the file is rewritten."""
    if isinstance(video, ShardMember):
        return video.size, video_version(video.shard)[1]
    if isinstance(video, RemotePath):
        return video.version()
    status = video.stat()
    return status.st_size, str(status.st_mtime_ns)


@lru_cache(maxsize=1)
def _fetch(video: RemotePath | ShardMember, version: tuple[int, str]) -> bytes:
    """Load a video into memory; `version` is part of the cache key."""
    if isinstance(video, RemotePath):
        return video.read_bytes()
    if isinstance(video.shard, RemotePath):
        return video.shard.read_bytes(video.offset, video.offset + video.size)
    with video.shard.open("rb") as file:
        file.seek(video.offset)
        return file.read(video.size)


class PartsOfFile(RawIOBase):
    """A file of a storage that is read by ranges of bytes, each requested when a reader comes to it."""

    def __init__(self, file: RemotePath) -> None:
        self._file = file
        self._version = file.version()
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        begin = {SEEK_SET: 0, SEEK_CUR: self._position, SEEK_END: self._version[0]}[whence]
        self._position = max(0, begin + offset)
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        """Fill the buffer up to the end of a part; returns the number of bytes, 0 at the end of the file."""
        if self._position >= self._version[0]:
            return 0
        part_number, begin = divmod(self._position, PART_BYTES)
        target = memoryview(buffer).cast("B")
        content = _part(self._file, self._version, part_number)[begin : begin + len(target)]
        target[: len(content)] = content
        self._position += len(content)
        return len(content)


@lru_cache(maxsize=PARTS_IN_MEMORY)
def _part(file: RemotePath, version: tuple[int, str], part_number: int) -> bytes:
    """A part of a file; `version` is part of the cache key."""
    return file.read_bytes(part_number * PART_BYTES, min((part_number + 1) * PART_BYTES, version[0]))
