"""Facts about a video file that its frames are read by: number, size, index, rotation."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path

from everest.video.counted import count_frames
from everest.video.index import PacketIndex, displayed_packets, exact_backends
from everest.video.index_store import Facts, IndexStore
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


_stores: list[IndexStore] = []  # the one in use, if there is one


def keep_indexes(folder: Path | None) -> None:
    """Keep the facts of this machine's files in a folder from now on, also for processes started later.

    Args:
        folder: made when it is needed; None: facts are not kept.
    """
    _stores[:] = [] if folder is None else [IndexStore(folder)]


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
    if not _stores or not isinstance(path, Path):
        return _read_facts(path)
    (store,) = _stores
    try:
        file = store.file_of(path)
    except OSError as error:
        raise VideoError(path, error.strerror or str(error)) from error
    stored = store.read(file)
    if stored is not None:
        with suppress(KeyError, ValueError, TypeError):
            return _unpacked(stored)
    found = _read_facts(path)
    store.write(file, *_packed(found))
    return found


def _packed(video: VideoFile) -> Facts:
    index = video.index
    values = {
        "info": astuple(video.info),
        "by_decode_stamp": index.by_decode_stamp,
        "last_duration": index.last_duration,
        "codec": video.codec,
        "stream": video.stream,
        "quarter_turns": video.quarter_turns,
        "second": video.second,
        "exact": sorted(video.exact),
    }
    return values, [index.times, index.key_times, index.key_seeks, index.order, index.counted_times]


def _unpacked(facts: Facts) -> VideoFile:
    values, (times, key_times, key_seeks, order, counted_times) = facts
    of_index = {name: values.pop(name) for name in ("by_decode_stamp", "last_duration")}
    index = PacketIndex(times, key_times, key_seeks, order, counted_times=counted_times, **of_index)
    info, exact = VideoInfo(*values.pop("info")), frozenset(values.pop("exact"))
    return VideoFile(info=info, index=index, exact=exact, **values)


def _read_facts(path: Video) -> VideoFile:
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
