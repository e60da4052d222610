"""Facts about a video file that its frames are read by: number, size, index, rotation."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache

from everest.video.counted import count_frames
from everest.video.index import PacketIndex, displayed_packets, exact_backends
from everest.video.source import Video, video_version
from everest.video.stream import (
    DAMAGED_OR_LARGE,
    VideoError,
    decode_frames,
    decoder_errors,
    open_stream,
)


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Facts that are known before any frame is chosen."""

    frames: int
    height: int  # as shown, after rotation
    width: int
    fps: float | None  # None: a folder of images


@dataclass(frozen=True, slots=True, eq=False)
class VideoFile:
    """Facts that the back-ends need to read frames of a file."""

    info: VideoInfo
    index: PacketIndex
    codec: str  # FFmpeg's name
    stream: int  # number of the video stream in the file
    quarter_turns: int  # counter-clockwise, to be applied to every frame
    second: float  # in units of the time stamps
    exact: frozenset[str]  # back-ends other than PyAV that return its frames to the bit


def inspect_video(path: Video) -> VideoFile:
    """Index a file and decode its first frame; cached until the file changes.

    Raises:
        VideoError: nothing can be decoded.
    """
    try:
        size, changing = video_version(path)
    except OSError as error:
        raise VideoError(path, error.strerror or str(error)) from error
    if size == 0:
        raise VideoError(path, "empty file")
    return _inspect(path, size, changing)


def clear_video_cache() -> None:
    """Free the facts of all files, for callers that need each file only once."""
    _inspect.cache_clear()


@lru_cache(maxsize=32768)  # some kilobytes each
def _inspect(path: Video, size: int, changing: str) -> VideoFile:
    """Inspect a file. With `size` and `changing` in the cache's key, a rewritten file is inspected again."""
    with open_stream(path) as (container, stream):
        index = PacketIndex.of(displayed_packets(path, container, stream))
        with decoder_errors(path):
            exact = exact_backends(container, stream, index)
            number, name, codec = stream.index, container.format.name, stream.codec_context.name
            fps = stream.average_rate or stream.guessed_rate or 25
            second = 1 / stream.time_base if stream.time_base else 1
            size_is_known = stream.codec_context.width > 0
    with closing(decode_frames(path)) as frames:
        first = next(frames, None)
        if first is None:
            problem = "no frame can be decoded"
            raise VideoError(path, problem if size_is_known else f"{problem} ({DAMAGED_OR_LARGE})")
        with decoder_errors(path):
            turns = round(first.rotation / 90) % 4
    count = index.times.size
    if not count:
        index, count = count_frames(path, container=name)
    height, width = (first.width, first.height) if turns % 2 else (first.height, first.width)
    return VideoFile(
        info=VideoInfo(frames=count, height=height, width=width, fps=float(fps)),
        index=index,
        codec=codec,
        stream=number,
        quarter_turns=turns,
        second=float(second),
        exact=exact,
    )
