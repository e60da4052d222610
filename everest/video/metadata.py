"""Metadata needed to read a video file: number and size of frames, index, orientation, damage.

Metadata is kept in memory and on disk, so that a process need not read the packets of each file again. On
disk, there is one small file for each video, named by a hash of the video's path, size, times and inode (in
a storage: URL, size and version). A changed video gets another name. Files are renamed into place when they
are complete, and a damaged file counts as missing.
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
    read_stamped_packets,
)
from everest.video.missing import StatedTimes
from everest.video.source import ShardMember, Video, video_version
from everest.video.stream import DAMAGED_OR_LARGE, MOTION_JPEG, VideoError, decoder_errors, open_stream
from everest.video.times import frame_rate

MATRIX_SIDE_DATA: Final = "DISPLAYMATRIX"  # PyAV's name of nine 32-bit numbers; a to d have 16 binary places
MIN_SLANT: Final = 0.02  # sine of the slant: our choice, about 1 degree
METADATA_VERSION: Final = 12  # raise it with every change of the metadata or of how it is found
STORED_DTYPE: Final = np.dtype("<i8")
MAX_CACHED_FRAMES: Final = 2**23  # heuristic: frames of all files in memory, 16 bytes each
SLANTED_NOTICE: Final = "is rotated by an angle that is no multiple of 90 degrees; the nearest is used"


class Orientation(NamedTuple):
    """The operations that make a picture upright, in this order.

    A frame's matrix maps a stored position (x, y) to (a x + c y, b x + d y), with y downward.
    """

    transposed: bool = False  # exchange x and y
    mirrored: bool = False  # exchange left and right
    flipped: bool = False  # exchange top and bottom

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Turn stored pixels (H, W, C) into pixels as shown (H', W', C), without a copy."""
        upright = pixels.transpose(1, 0, 2) if self.transposed else pixels
        return upright[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1]

    def apply_to_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Turn the stored size (H, W) into the size as shown (H', W'), or the reverse."""
        return (size[1], size[0]) if self.transposed else size


def read_orientation(frame: VideoFrame) -> tuple[Orientation, bool]:
    """The nearest orientation at right angles, and whether the frame's matrix differs from it."""
    data = frame.side_data.get(MATRIX_SIDE_DATA)
    if data is None:
        return Orientation(), False
    a, b, _, c, d, *_ = (value / 2**16 for value in struct.unpack("=9i", bytes(data)))
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    x, y = (c, b) if transposed else (a, d)  # the new x and y are multiples of these
    others = (a, d) if transposed else (b, c)
    is_slanted = max(map(abs, others)) > MIN_SLANT * max(abs(x), abs(y))
    return Orientation(transposed, x < 0, y < 0), is_slanted


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """The number, size and rate of a video's frames."""

    num_frames: int
    height: int  # height as shown, after rotation
    width: int
    fps: float | None  # None: a folder of images


@dataclass(frozen=True, slots=True, eq=False)
class VideoMetadata:
    """All that is needed to read frames of a file."""

    info: VideoInfo
    index: FrameIndex
    orientation: Orientation
    second: float  # one second in units of the time stamps
    decord_is_exact: bool
    missing: tuple[Span, ...]  # parts that cannot be shown
    notices: tuple[str, ...]  # what was repaired to read the file


def read_metadata(path: Video) -> VideoMetadata:
    """Read a file's packets and decode its first frame, or all if needed; VideoError without frames."""
    with open_stream(path) as (container, stream):
        packets, is_trusted = read_stamped_packets(path, container, stream)
        stated = StatedTimes.of(path, container, stream, len(packets))
        with decoder_errors(path):
            codec = stream.codec_context
            is_sized = codec.width > 0
            # Other formats state the position of a header before the image.
            may_be_images = codec.name == MOTION_JPEG and container.format.name.startswith("mov")
            # decord 0.6 may read wrong pixels of 4:4:4 and AV1, or the wrong one of several streams.
            has_plain_pixels = codec.pix_fmt in ("yuv420p", "yuvj420p")
            is_av1 = codec.codec.name in ("av1", "libdav1d")
            can_use_decord = has_plain_pixels and not is_av1 and len(container.streams.video) == 1
    survey = Survey()
    with closing(decode_frames(path, survey=survey)) as frames:
        first_frame = next((frame for frame, _ in frames), None)
    if first_frame is None:
        problem = "no frame can be decoded"
        raise VideoError(path, problem if is_sized else f"{problem} ({DAMAGED_OR_LARGE})")
    with decoder_errors(path):
        orientation, is_slanted = read_orientation(first_frame)
    notices = [SLANTED_NOTICE] * is_slanted
    if first_frame.pts is not None and not survey.lost:
        # Players do not show frames that refer to frames from before the file.
        packets = [packet for packet in packets if packet.time >= first_frame.pts]
    stamped = _make_stamped_index(path, packets, first_frame, may_be_images=may_be_images)
    if stamped is not None and is_trusted:
        index, lost = stamped, []
    else:
        frame_interval = stated.second / stated.fps
        index, lost, repaired = count_frames(
            path, frame_interval=frame_interval, are_decode_times=stated.are_decode_times
        )
        notices += repaired.notices()
        if stamped is not None and not lost and repaired.are_stored and len(index) == len(stamped):
            index = stamped
    start = 0.0
    seconds = np.arange(len(index)) / stated.fps
    if index.times.size:
        start = float(index.times[0]) / stated.second
        seconds = (index.times - index.times[0]) / stated.second
    fps = frame_rate(stated.fps, seconds)
    height, width = orientation.apply_to_size((first_frame.height, first_frame.width))
    # decord 0.6 finds the frames of stamped files with closed GOPs at a constant rate.
    has_closed_gops = isinstance(index, StampedIndex) and index.order.size > 0
    has_constant_rate = has_closed_gops and np.unique(np.diff(index.times)).size <= 1
    return VideoMetadata(
        info=VideoInfo(num_frames=len(index), height=height, width=width, fps=fps),
        index=index,
        orientation=orientation,
        second=stated.second,
        decord_is_exact=can_use_decord and orientation == Orientation() and has_constant_rate,
        missing=tuple(stated.missing(path, seconds, start, 1 / fps, lost=lost)),
        notices=tuple(notices),
    )


def _make_stamped_index(
    path: Video, packets: Sequence[StampedPacket], first_frame: VideoFrame, *, may_be_images: bool
) -> StampedIndex | None:
    """The index of packets whose first shown frame is `first_frame`; None without packets."""
    if not packets:
        return None
    are_images = False
    if may_be_images:  # tested on the first image shown: interlaced images fail, for example
        (image,) = decode_images(path, [(max(0, min(packets).offset), min(packets).size)])
        with decoder_errors(path):
            are_images = image is not None and np.array_equal(to_rgb(image), to_rgb(first_frame))
    return StampedIndex.of(packets, are_images=are_images)


def to_rgb(frame: VideoFrame) -> np.ndarray:
    """The pixels of a frame as stored: (H, W, 3) uint8.

    One thread converts: a frame ends its threads when freed; a process forked before would wait forever.
    """
    return frame.to_ndarray(format="rgb24", threads=1)


VideoKey = tuple[Video, int, str]  # a video and its version, which changes when the file is rewritten


@dataclass(slots=True)
class _MetadataCache:
    """The metadata that this process keeps."""

    folder: Path | None = None  # folder on the disk; None: memory only
    recent: dict[VideoKey, VideoMetadata] = field(default_factory=dict)  # the last entry was used last
    num_frames: int = 0  # frames of all recent files


_cache = _MetadataCache()


def keep_metadata_in(folder: Path | None) -> None:
    """Keep the metadata of all files but shards in a folder from now on, also for processes started later."""
    _cache.folder = folder


def keep_metadata_in_cache() -> None:
    """Keep the metadata of video files in the cache folder from now on: EVEREST_CACHE, else the user's."""
    with suppress(RuntimeError):  # the user has no home folder
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        keep_metadata_in(Path(os.environ.get("EVEREST_CACHE") or usual / "everest") / "indexes")


def clear_video_cache() -> None:
    """Free the metadata of all files, for callers that need each file only once."""
    _cache.recent.clear()
    _cache.num_frames = 0


def inspect_video(path: Video) -> VideoMetadata:
    """The metadata of a file, cached until it changes; VideoError if no frame can be decoded."""
    try:
        key = (path, *video_version(path))
        metadata = _cache.recent.pop(key, None)
        if metadata is not None:
            _cache.recent[key] = metadata
            return metadata
        _, _, version = key
        if _cache.folder is None or isinstance(path, ShardMember) or not version:  # a storage may have none
            metadata = read_metadata(path)
        else:
            metadata = _metadata_from_disk(path, _cache.folder)
    except OSError as error:
        raise VideoError(path, error.strerror or str(error)) from error
    _cache.num_frames += metadata.info.num_frames
    while _cache.recent and _cache.num_frames > MAX_CACHED_FRAMES:  # forget the files used first
        _cache.num_frames -= _cache.recent.pop(next(iter(_cache.recent))).info.num_frames
    _cache.recent[key] = metadata
    return metadata


def _metadata_from_disk(path: Path | RemotePath, folder: Path) -> VideoMetadata:
    """The metadata of the current version of a file: from the folder, or read now and kept there."""
    absolute = path.absolute()
    if isinstance(absolute, RemotePath):
        version: tuple[int | str, ...] = absolute.version()
    else:
        status = absolute.stat()  # programs cannot set the second time
        version = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
    identity = repr((METADATA_VERSION, av.__version__, str(absolute), *version))
    digest = hashlib.sha256(identity.encode()).hexdigest()[:32]
    file = folder / digest[:2] / digest[2:]
    with suppress(OSError, ValueError, KeyError, TypeError, zlib.error):  # missing or damaged file
        return _unpack(zlib.decompress(file.read_bytes()))
    metadata = read_metadata(path)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    with suppress(OSError):  # without space or permission, the video is read again next time
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(zlib.compress(_pack(metadata), level=1))
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
    return metadata


def _pack(metadata: VideoMetadata) -> bytes:
    """Encode metadata as a line of JSON and the differences in each index array (a tenth of the space)."""
    index = {name: getattr(metadata.index, name) for name in metadata.index.__slots__}
    arrays = {name: value for name, value in index.items() if isinstance(value, np.ndarray)}
    header = {name: getattr(metadata, name) for name in metadata.__slots__} | {
        "info": astuple(metadata.info),
        "index": {name: value for name, value in index.items() if name not in arrays},
        "lengths": {name: len(array) for name, array in arrays.items()},
        "is_counted": isinstance(metadata.index, CountedIndex),
    }
    deltas = [np.diff(array, prepend=np.int64(0)).astype(STORED_DTYPE).tobytes() for array in arrays.values()]
    return json.dumps(header).encode() + b"\n" + b"".join(deltas)


def _unpack(packed: bytes) -> VideoMetadata:
    """Decode the output of `_pack`."""
    header, _, deltas = packed.partition(b"\n")
    values = json.loads(header)
    index, lengths = values.pop("index"), values.pop("lengths")
    parts = np.split(np.frombuffer(deltas, dtype=STORED_DTYPE), np.cumsum(list(lengths.values()))[:-1])
    index |= {name: np.cumsum(part, dtype=np.int64) for name, part in zip(lengths, parts, strict=True)}
    index_type = CountedIndex if values.pop("is_counted") else StampedIndex
    return VideoMetadata(
        info=VideoInfo(*values.pop("info")),
        index=index_type(**index),
        orientation=Orientation(*values.pop("orientation")),
        missing=tuple((start, end) for start, end in values.pop("missing")),
        notices=tuple(values.pop("notices")),
        **values,
    )
