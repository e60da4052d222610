"""A video file opened with PyAV: a first look that is kept, and its frames as they are shown.

F frames. Of a file with several video streams the first is read (cover pictures do not count).
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
from av import VideoFrame, VideoStream
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.stream import Disposition

from everest.data.exactness import exact_backends
from everest.data.packet_index import PacketIndex, shown_packets
from everest.errors import DataError

# Their decoders look at a packet's own setting; that of AV1 leaves out frames that it had begun before.
SKIPPING_CODECS = frozenset({"h264", "hevc"})
CONTAINER_MARKS = {4: b"ftyp", 0: b"\x1aE\xdf\xa3"}  # ISO media (mp4, mov), Matroska and WebM


class VideoError(DataError):
    """A video that cannot be read: which, and why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(path, reason)  # both, so that the error survives the way out of a loader's worker
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What can be known before any frame is chosen."""

    frames: int
    height: int  # as shown, after rotation
    width: int
    fps: float | None  # None: a folder of pictures


@dataclass(frozen=True, slots=True, eq=False)
class Opening:
    """What a first look at a file tells."""

    info: VideoInfo
    index: PacketIndex
    stream: int  # number of the video stream in the file
    quarter_turns: int  # counter-clockwise, to be applied to every frame
    second: float  # in time stamps
    exact: frozenset[str]  # back-ends beside PyAV that give its frames to the bit


def look(path: Path) -> Opening:
    """The first look at a file, from memory where it has not changed since.

    Raises:
        VideoError: nothing can be decoded.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise VideoError(path, error.strerror or str(error)) from error
    if status.st_size == 0:
        raise VideoError(path, "empty file")
    with retold(path):
        return _cached_look(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=32768)  # some kilobytes each
def _cached_look(path: Path, size: int, modified: int) -> Opening:
    """Index a file and decode its first frame. `size` and `modified`: a rewritten file is another."""
    with _opened(path) as (container, stream):
        packets = shown_packets(container, stream)
        index = PacketIndex.of(packets)
        exact = exact_backends(container, stream, packets)
        number = stream.index
        fps = stream.average_rate or stream.guessed_rate
        second = 1 / stream.time_base if stream.time_base else 1
    with closing(decoded(path)) as frames:
        first = next(frames, None)
        if first is None:
            raise VideoError(path, "no frame can be decoded")
        count = index.times.size or 1 + sum(1 for _ in frames)
    turns = round(first.rotation / 90) % 4
    height, width = (first.width, first.height) if turns % 2 else (first.height, first.width)
    info = VideoInfo(frames=count, height=height, width=width, fps=float(fps or 25))
    return Opening(
        info=info, index=index, stream=number, quarter_turns=turns, second=float(second), exact=exact
    )


@contextmanager
def retold(path: Path) -> Iterator[None]:
    """Turn what the libraries raise for a bad file into a VideoError."""
    try:
        yield
    except (FFmpegError, OSError) as error:
        raise VideoError(path, f"cannot be read: {error.strerror or error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A file and its first video stream, to be decoded by one thread."""
    try:
        container = av.open(str(path))
    except InvalidDataError as error:
        with path.open("rb") as file:
            head = file.read(12)
        known = any(head[at:].startswith(mark) for at, mark in CONTAINER_MARKS.items())
        reason = "no frame can be decoded (truncated or damaged file)" if known else "not a video file"
        raise VideoError(path, reason) from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise VideoError(path, "no video stream")
        if streams[0].codec_context is None:
            raise VideoError(path, "no frame can be decoded (unknown codec or damaged header)")
        streams[0].codec_context.thread_count = 1  # the loader's workers are the parallelism
        yield container, streams[0]


def decoded(
    path: Path,
    seek: int | None = None,
    *,
    unwanted: Collection[int] = (),
    needless: Collection[int] = (),
    last: int | None = None,
) -> Generator[VideoFrame]:
    """Frames in order of presentation from a seek position, or from the start, up to the first damage.

    Decoders conceal what they miss: a frame after damage looks like one, but is not what was filmed.

    Args:
        unwanted: time stamps of frames that may be left out, where no other frame refers to them.
        needless: time stamps of frames that no other one needs.
        last: time stamp of the frame after whose packet the file may be left.
    """
    with _opened(path) as (container, stream):
        codec = stream.codec_context
        skips = codec.name in SKIPPING_CODECS and len(unwanted) > 0
        if seek is not None:
            container.seek(seek, stream=stream)
        for packet in container.demux(stream):
            if skips and packet.pts in needless:
                continue
            if skips:
                codec.skip_frame = "NONREF" if packet.pts in unwanted else "DEFAULT"
            damaged, frames = packet.is_corrupt, []
            if not damaged:
                try:
                    frames = packet.decode()
                except InvalidDataError:
                    damaged = True
            ends = damaged or (skips and last is not None and packet.pts == last)
            if ends:
                frames = [*frames, *codec.decode(None)]  # whole ones that waited for their turn
            for frame in frames:
                if frame.is_corrupt:
                    return
                yield frame
            if ends:
                return
