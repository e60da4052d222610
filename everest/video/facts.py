"""Facts needed to read a video file: number and size of frames, index, orientation, damage.

They are kept in memory and on the disk, so that a process need not read the packets of each file again. On
the disk, there is one small file for each video, named by a hash of its path, size, times and inode (in a
storage: URL, size and version). A changed video has another name. Files are renamed into place when they are
complete, and a damaged one counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import av
import numpy as np
from av import VideoFrame

from everest.system.storage import RemotePath
from everest.system.types import Span
from everest.video.decoding import Survey, decode_frames, decode_images
from everest.video.index import (
    CountedIndex,
    FrameIndex,
    StampedIndex,
    StampedPacket,
    count_frames,
    stamped_packets,
)
from everest.video.missing import StatedTimes
from everest.video.source import Member, Video, video_version
from everest.video.stream import DAMAGED_OR_LARGE, MOTION_JPEG, VideoError, decoder_errors, open_stream
from everest.video.times import frame_rate

MATRIX_SIDE_DATA: Final = "DISPLAYMATRIX"  # PyAV's name of nine 32-bit numbers, of which a to d are 16.16
MIN_SLANT: Final = 0.02  # of a right angle's sine: our choice, about 1 degree
FACTS_VERSION: Final = 12  # raise it with every change of the facts or of how they are found
STORED_DTYPE: Final = np.dtype("<i8")
MAX_CACHED_FRAMES: Final = 2**23  # heuristic: of all files in memory, 16 bytes each
SLANTED_NOTICE: Final = "is rotated by an angle that is no multiple of 90 degrees; the nearest is used"


class Orientation(NamedTuple):
    """The operations that make a picture upright, in this order.

    A frame's matrix maps a stored position (x, y) to (a x + c y, b x + d y), with y downward.
    """

    transposed: bool = False  # exchange x and y
    mirrored: bool = False  # exchange left and right
    flipped: bool = False  # exchange top and bottom

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, C) as stored to (H', W', C) as shown, without a copy."""
        shown = pixels.transpose(1, 0, 2) if self.transposed else pixels
        return shown[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1]

    def exchanged(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) as stored to (H', W') as shown, or the reverse."""
        return (size[1], size[0]) if self.transposed else size


def orientation_of(frame: VideoFrame) -> tuple[Orientation, bool]:
    """The nearest orientation at right angles, and whether the frame's matrix differs from it."""
    data = frame.side_data.get(MATRIX_SIDE_DATA)
    if data is None:
        return Orientation(), False
    a, b, _, c, d, *_ = (value / 2**16 for value in struct.unpack("=9i", bytes(data)))
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    x, y = (c, b) if transposed else (a, d)  # what the new x and y are multiples of
    rest = (a, d) if transposed else (b, c)
    is_slanted = max(map(abs, rest)) > MIN_SLANT * max(abs(x), abs(y))
    return Orientation(transposed, x < 0, y < 0), is_slanted


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """The number, size and rate of a video's frames."""

    frames: int
    height: int  # as shown, after rotation
    width: int
    fps: float | None  # None: a folder of images


@dataclass(frozen=True, slots=True, eq=False)
class VideoFacts:
    """All facts needed to read frames of a file."""

    info: VideoInfo
    index: FrameIndex
    orientation: Orientation
    second: float  # in units of the time stamps
    decord_is_exact: bool
    missing: tuple[Span, ...]  # that cannot be shown
    notices: tuple[str, ...]  # what was repaired


def read_facts(path: Video) -> VideoFacts:
    """Read a file's packets, and decode its first frame, or all if needed; VideoError if none can be."""
    with open_stream(path) as (container, stream):
        packets, is_trusted = stamped_packets(path, container, stream)
        stated = StatedTimes.of(path, container, stream, len(packets))
        with decoder_errors(path):
            codec = stream.codec_context
            is_sized = codec.width > 0
            # Other formats state where a header before the image is.
            may_be_images = codec.name == MOTION_JPEG and container.format.name.startswith("mov")
            # decord 0.6 may read wrong pixels of 4:4:4 and AV1, and the wrong stream of several.
            has_plain_pixels = codec.pix_fmt in ("yuv420p", "yuvj420p")
            is_av1 = codec.codec.name in ("av1", "libdav1d")
            suits_decord = has_plain_pixels and not is_av1 and len(container.streams.video) == 1
    survey = Survey()
    with closing(decode_frames(path, survey=survey)) as frames:
        first = next((frame for frame, _ in frames), None)
    if first is None:
        problem = "no frame can be decoded"
        raise VideoError(path, problem if is_sized else f"{problem} ({DAMAGED_OR_LARGE})")
    with decoder_errors(path):
        orientation, is_slanted = orientation_of(first)
    notices = [SLANTED_NOTICE] * is_slanted
    if first.pts is not None and not survey.lost:
        # No player shows frames that refer to others before the file.
        packets = [packet for packet in packets if packet.time >= first.pts]
    stamped = _stamped_index(path, packets, first, may_be_images=may_be_images)
    if stamped is not None and is_trusted:
        index, lost = stamped, []
    else:
        step = stated.second / stated.fps
        index, lost, repaired = count_frames(path, step=step, of_decoding=stated.of_decoding)
        notices += repaired.notices()
        if stamped is not None and not lost and repaired.are_stored and len(index) == len(stamped):
            index = stamped
    begin = 0.0
    seconds = np.arange(len(index)) / stated.fps
    if index.times.size:
        begin = float(index.times[0]) / stated.second
        seconds = (index.times - index.times[0]) / stated.second
    fps = frame_rate(stated.fps, seconds)
    height, width = orientation.exchanged((first.height, first.width))
    # decord 0.6 finds the frames of stamped files with closed GOPs at a constant rate.
    has_closed_gops = isinstance(index, StampedIndex) and index.order.size > 0
    is_plain = has_closed_gops and np.unique(np.diff(index.times)).size <= 1
    return VideoFacts(
        info=VideoInfo(frames=len(index), height=height, width=width, fps=fps),
        index=index,
        orientation=orientation,
        second=stated.second,
        decord_is_exact=suits_decord and orientation == Orientation() and is_plain,
        missing=tuple(stated.missing(path, seconds, begin, 1 / fps, lost=lost)),
        notices=tuple(notices),
    )


def _stamped_index(
    path: Video, packets: Sequence[StampedPacket], first: VideoFrame, *, may_be_images: bool
) -> StampedIndex | None:
    """The index of packets whose first shown frame is given; None if there are none."""
    if not packets:
        return None
    are_images = False
    if may_be_images:  # not if they are interlaced, for example: judged by the first one by time
        (alone,) = decode_images(path, [(max(0, min(packets).offset), min(packets).size)])
        with decoder_errors(path):
            are_images = alone is not None and np.array_equal(rgb(alone), rgb(first))
    return StampedIndex.of(packets, are_images=are_images)


def rgb(frame: VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8, as stored.

    By one thread: a frame ends its threads when it is freed, and a process forked before would wait forever.
    """
    return frame.to_ndarray(format="rgb24", threads=1)


VideoKey = tuple[Video, int, str]  # a video, and its version: a rewritten file has another one


@dataclass(slots=True)
class _FactsCache:
    """The facts that this process keeps."""

    folder: Path | None = None  # on the disk
    recent: dict[VideoKey, VideoFacts] = field(default_factory=dict)  # the last one used stands last
    frames: int = 0  # of all recent ones


_cache = _FactsCache()


def keep_facts_in(folder: Path | None) -> None:
    """Keep the facts of all files but shards in a folder from now on, also for processes started later."""
    _cache.folder = folder


def keep_facts_in_cache() -> None:
    """Keep the facts about video files in the cache folder from now on: EVEREST_CACHE, else the user's."""
    with suppress(RuntimeError):  # a user without a home
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        keep_facts_in(Path(os.environ.get("EVEREST_CACHE") or usual / "everest") / "indexes")


def clear_video_cache() -> None:
    """Free the facts of all files, for callers that need each file only once."""
    _cache.recent.clear()
    _cache.frames = 0


def inspect_video(path: Video) -> VideoFacts:
    """The facts of a file, cached until it changes; VideoError if no frame can be decoded."""
    try:
        key = (path, *video_version(path))
        facts = _cache.recent.pop(key, None)
        if facts is not None:
            _cache.recent[key] = facts
            return facts
        _, _, version = key
        if _cache.folder is None or isinstance(path, Member) or not version:  # a storage may state none
            facts = read_facts(path)
        else:
            facts = _facts_from_disk(path, _cache.folder)
    except OSError as error:
        raise VideoError(path, error.strerror or str(error)) from error
    _cache.frames += facts.info.frames
    while _cache.recent and _cache.frames > MAX_CACHED_FRAMES:  # forget the files used first
        _cache.frames -= _cache.recent.pop(next(iter(_cache.recent))).info.frames
    _cache.recent[key] = facts
    return facts


def _facts_from_disk(path: Path | RemotePath, folder: Path) -> VideoFacts:
    """Read the facts of the file's present version from a folder, or from the file, and keep them there."""
    absolute = path.absolute()
    if isinstance(absolute, RemotePath):
        version: tuple[int | str, ...] = absolute.version()
    else:
        status = absolute.stat()  # the second time cannot be set
        version = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
    identity = repr((FACTS_VERSION, av.__version__, str(absolute), *version))
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    file = folder / name[:2] / name[2:]
    with suppress(OSError, ValueError, KeyError, TypeError, zlib.error):  # missing or damaged
        return _unpack(zlib.decompress(file.read_bytes()))
    facts = read_facts(path)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    with suppress(OSError):  # without space or permission, they are read again next time
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(zlib.compress(_pack(facts), level=1))
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
    return facts


def _pack(facts: VideoFacts) -> bytes:
    """Encode facts as a line of JSON and the differences of each index array (a tenth of the space)."""
    index = {name: getattr(facts.index, name) for name in facts.index.__slots__}
    arrays = {name: value for name, value in index.items() if isinstance(value, np.ndarray)}
    header = {name: getattr(facts, name) for name in facts.__slots__} | {
        "info": astuple(facts.info),
        "index": {name: value for name, value in index.items() if name not in arrays},
        "lengths": {name: len(array) for name, array in arrays.items()},
        "is_counted": isinstance(facts.index, CountedIndex),
    }
    steps = [np.diff(array, prepend=np.int64(0)).astype(STORED_DTYPE).tobytes() for array in arrays.values()]
    return json.dumps(header).encode() + b"\n" + b"".join(steps)


def _unpack(packed: bytes) -> VideoFacts:
    """Undo `_pack`."""
    header, _, numbers = packed.partition(b"\n")
    values = json.loads(header)
    index, lengths = values.pop("index"), values.pop("lengths")
    parts = np.split(np.frombuffer(numbers, dtype=STORED_DTYPE), np.cumsum(list(lengths.values()))[:-1])
    index |= {name: np.cumsum(part, dtype=np.int64) for name, part in zip(lengths, parts, strict=True)}
    kind = CountedIndex if values.pop("is_counted") else StampedIndex
    return VideoFacts(
        info=VideoInfo(*values.pop("info")),
        index=kind(**index),
        orientation=Orientation(*values.pop("orientation")),
        missing=tuple((start, end) for start, end in values.pop("missing")),
        notices=tuple(values.pop("notices")),
        **values,
    )
