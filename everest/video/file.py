"""Facts about a video file that its frames are read by: number, size, index, rotation.

They may be kept on the disk, so that a process need not read the packets of each file again: one small file
for each video, named by a hash of its path, size, times and inode (in a storage: URL, size and version). A
changed video has another name. Files are renamed into place when they are complete, and a damaged one counts
as missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from contextlib import closing, suppress
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import av
import numpy as np

from everest.system.storage import RemotePath
from everest.video.index import PacketIndex, count_frames, displayed_packets, exact_backends
from everest.video.source import Member, Video, video_version
from everest.video.stream import DAMAGED_OR_LARGE, VideoError, decode_frames, decoder_errors, open_stream

RULES: Final = 3  # to be raised with every change of the facts or of how they are found
NUMBERS: Final = np.dtype("<i8")


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


_kept: list[Path] = []  # the folder in which facts are kept, if there is one


def keep_indexes(folder: Path | None) -> None:
    """Keep the facts of all files but shards in a folder from now on, also for processes started later."""
    _kept[:] = [] if folder is None else [folder]


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
    if not _kept or isinstance(path, Member) or not changing:  # a storage may state no version
        return _read_facts(path)
    (folder,) = _kept
    try:
        file = file_of_facts(folder, path)
    except OSError as error:
        raise VideoError(path, error.strerror or str(error)) from error
    with suppress(OSError, ValueError, KeyError, TypeError, zlib.error):  # missing or damaged
        return _unpacked(zlib.decompress(file.read_bytes()))
    found = _read_facts(path)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    with suppress(OSError):  # without space or permission, they are found again next time
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(zlib.compress(_packed(found), level=1))
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
    return found


def file_of_facts(folder: Path, video: Path | RemotePath) -> Path:
    """The file in `folder` for the facts of a video as it is now.

    Raises:
        OSError: there is no such video.
    """
    video = video.absolute()
    if isinstance(video, RemotePath):
        marks: tuple[int | str, ...] = video.version()
    else:
        status = video.stat()  # the second time cannot be set
        marks = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
    version = (RULES, av.__version__, str(video), *marks)
    name = hashlib.sha256(repr(version).encode(errors="surrogateescape")).hexdigest()[:32]
    return folder / name[:2] / name[2:]


def _packed(video: VideoFile) -> bytes:
    """A line of JSON, and the numbers of the index: of each array its length and its differences."""
    index = video.index
    arrays = [index.times, index.key_times, index.key_seeks, index.order, index.counted_times]
    values = {
        "info": astuple(video.info),
        "by_decode_stamp": index.by_decode_stamp,
        "last_duration": index.last_duration,
        "codec": video.codec,
        "stream": video.stream,
        "quarter_turns": video.quarter_turns,
        "second": video.second,
        "exact": sorted(video.exact),
        "lengths": [len(array) for array in arrays],
    }
    # Differences are small or equal numbers, which take a tenth of the space.
    steps = [np.diff(array, prepend=np.int64(0)).astype(NUMBERS).tobytes() for array in arrays]
    return json.dumps(values).encode() + b"\n" + b"".join(steps)


def _unpacked(facts: bytes) -> VideoFile:
    """Undo `_packed`; an error of any kind if the bytes are damaged."""
    header, _, numbers = facts.partition(b"\n")
    values = json.loads(header)
    lengths = values.pop("lengths")
    steps = np.frombuffer(numbers, dtype=NUMBERS)
    if min(lengths) < 0 or sum(lengths) != steps.size:
        raise ValueError("the numbers are not complete")
    parts = np.split(steps, np.cumsum(lengths)[:-1])
    times, key_times, key_seeks, order, counted_times = (np.cumsum(part, dtype=np.int64) for part in parts)
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
