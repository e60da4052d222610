"""Facts about a video file that its frames are read by: number, size, index, orientation.

They may be kept on the disk, so that a process need not read the packets of each file again: one small file
for each video, named by a hash of its path, size, times and inode (in a storage: URL, size and version). A
changed video has another name. Files are renamed into place when they are complete, and a damaged one counts
as missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import av
import numpy as np
from av import VideoFrame
from numpy.typing import NDArray

from everest.system.storage import RemotePath
from everest.video.cuts import end_before, missing_end, promised_seconds
from everest.video.decoding import Loss, Survey, decode_frames, decode_places
from everest.video.index import CountedIndex, FrameIndex, StampedIndex, count_frames, stamped_packets
from everest.video.source import Member, Video, video_version
from everest.video.stream import DAMAGED_OR_LARGE, IMAGES, VideoError, decoder_errors, open_stream
from everest.video.times import frame_rate

RULES: Final = 10  # to be raised with every change of the facts or of how they are found
NUMBERS: Final = np.dtype("<i8")
MATRIX: Final = "DISPLAYMATRIX"  # PyAV's name of nine 32-bit numbers, of which a to d are 16.16
MOST_FRAMES: Final = 2**23  # our choice: of all files that are cached, 16 bytes each
SLANT: Final = 0.02  # of a right angle's sine: our choice, about 1 degree


class Orientation(NamedTuple):
    """What makes a picture upright, in this order.

    A frame's matrix maps a stored place (x, y) to (a x + c y, b x + d y), with y downward.
    """

    transposed: bool = False  # exchange x and y
    mirrored: bool = False  # exchange left and right
    flipped: bool = False  # exchange top and bottom

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, C) as stored to (H', W', C) as shown, without a copy."""
        shown = pixels.transpose(1, 0, 2) if self.transposed else pixels
        return shown[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1]


def orientation_of(frame: VideoFrame) -> tuple[Orientation, bool]:
    """The nearest orientation at right angles, and whether the frame's matrix is another one."""
    data = frame.side_data.get(MATRIX)
    if data is None:
        return Orientation(), False
    a, b, _, c, d, *_ = (value / 2**16 for value in struct.unpack("=9i", bytes(data)))
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    x, y = (c, b) if transposed else (a, d)  # what the new x and y are multiples of
    rest = (a, d) if transposed else (b, c)
    is_slanted = max(map(abs, rest)) > SLANT * max(abs(x), abs(y))
    return Orientation(transposed, x < 0, y < 0), is_slanted


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
    index: FrameIndex
    orientation: Orientation
    second: float  # in units of the time stamps
    decord_is_exact: bool
    missing: tuple[tuple[float, float], ...]  # seconds that cannot be shown; inf: no end known
    notices: tuple[str, ...]  # what was repaired


@dataclass(slots=True)
class _Recent:
    """The facts of the files that were used last."""

    files: dict[tuple[Video, int, str], VideoFile]  # by path and version; the last one used stands last
    frames: int  # of all

    def add(self, key: tuple[Video, int, str], facts: VideoFile) -> None:
        self.frames += facts.info.frames
        while self.files and self.frames > MOST_FRAMES:
            self.frames -= self.files.pop(next(iter(self.files))).info.frames
        self.files[key] = facts


_recent = _Recent({}, 0)
_kept: list[Path] = []  # the folder in which facts are kept, if there is one


def keep_indexes(folder: Path | None) -> None:
    """Keep the facts of all files but shards in a folder from now on, also for processes started later."""
    _kept[:] = [] if folder is None else [folder]


def inspect_video(path: Video) -> VideoFile:
    """Index a file and decode its first frame; cached until the file changes."""
    try:
        size, changing = video_version(path)
        key = (path, size, changing)  # a rewritten file has another one
        if (facts := _recent.files.pop(key, None)) is not None:
            _recent.files[key] = facts
        else:
            facts = _inspect(path, changing)
            _recent.add(key, facts)
    except OSError as error:
        raise VideoError(path, error.strerror or str(error)) from error
    return facts


def clear_video_cache() -> None:
    """Free the facts of all files, for callers that need each file only once."""
    _recent.files.clear()
    _recent.frames = 0


def _inspect(path: Video, changing: str) -> VideoFile:
    """Read the facts of a file, or those that are kept of it."""
    if not _kept or isinstance(path, Member) or not changing:  # a storage may state no version
        return _read_facts(path)
    (folder,) = _kept
    file = file_of_facts(folder, path)
    with suppress(OSError, ValueError, KeyError, TypeError, zlib.error):  # missing or damaged
        return _unpacked(zlib.decompress(file.read_bytes()))
    facts = _read_facts(path)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    with suppress(OSError):  # without space or permission, they are found again next time
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(zlib.compress(_packed(facts), level=1))
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
    return facts


def file_of_facts(folder: Path, video: Path | RemotePath) -> Path:
    """The file in `folder` for the facts of a video as it is now."""
    video = video.absolute()
    if isinstance(video, RemotePath):
        marks: tuple[int | str, ...] = video.version()
    else:
        status = video.stat()  # the second time cannot be set
        marks = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
    version = (RULES, av.__version__, str(video), *marks)
    name = hashlib.sha256(repr(version).encode()).hexdigest()[:32]
    return folder / name[:2] / name[2:]


def _packed(video: VideoFile) -> bytes:
    """A line of JSON, and the numbers of the index: of each array the differences, a tenth of the space."""
    index = {name: getattr(video.index, name) for name in video.index.__slots__}
    arrays = {name: value for name, value in index.items() if isinstance(value, np.ndarray)}
    header = {name: getattr(video, name) for name in video.__slots__} | {
        "info": astuple(video.info),
        "index": {name: value for name, value in index.items() if name not in arrays},
        "lengths": {name: len(array) for name, array in arrays.items()},
        "is_counted": isinstance(video.index, CountedIndex),
    }
    steps = [np.diff(array, prepend=np.int64(0)).astype(NUMBERS).tobytes() for array in arrays.values()]
    return json.dumps(header).encode() + b"\n" + b"".join(steps)


def _unpacked(facts: bytes) -> VideoFile:
    """Undo `_packed`."""
    header, _, numbers = facts.partition(b"\n")
    values = json.loads(header)
    index, lengths = values.pop("index"), values.pop("lengths")
    parts = np.split(np.frombuffer(numbers, dtype=NUMBERS), np.cumsum(list(lengths.values()))[:-1])
    index |= {name: np.cumsum(part, dtype=np.int64) for name, part in zip(lengths, parts, strict=True)}
    kind = CountedIndex if values.pop("is_counted") else StampedIndex
    return VideoFile(
        info=VideoInfo(*values.pop("info")),
        index=kind(**index),
        orientation=Orientation(*values.pop("orientation")),
        missing=tuple((start, end) for start, end in values.pop("missing")),
        notices=tuple(values.pop("notices")),
        **values,
    )


def _read_facts(path: Video) -> VideoFile:
    with open_stream(path) as (container, stream):
        packets, is_trusted = stamped_packets(path, container, stream)
        with decoder_errors(path):
            format_name = container.format.name
            promised = promised_seconds(path, container, stream, len(packets))
            fps = float(stream.average_rate or stream.guessed_rate or 25)
            second = float(1 / stream.time_base) if stream.time_base else 1.0
            codec, streams = stream.codec_context, container.streams.video
            # decord 0.6 reads 4:4:4 and AV1 wrong, and perhaps the wrong stream of several.
            is_old = codec.pix_fmt in ("yuv420p", "yuvj420p") and codec.codec.name not in ("av1", "libdav1d")
            for_decord = is_old and len(streams) == 1
            # The places of other formats are those of a header before the image.
            are_images = codec.name == IMAGES and format_name.startswith("mov")
            size_is_known = codec.width > 0
    survey = Survey()
    with closing(decode_frames(path, survey=survey)) as frames:
        first = next((frame for frame, _ in frames), None)
    losses = survey.losses
    if first is None:
        problem = "no frame can be decoded"
        raise VideoError(path, problem if size_is_known else f"{problem} ({DAMAGED_OR_LARGE})")
    with decoder_errors(path):
        orientation, is_slanted = orientation_of(first)
    notices = ["is turned by an angle that is no multiple of 90 degrees; the nearest is used"] * is_slanted
    if first.pts is not None and not losses:  # no player shows frames that refer to others before the file
        packets = [packet for packet in packets if packet.time >= first.pts]
    stamped = StampedIndex.of(packets, are_images=are_images) if packets else None
    if stamped is not None and are_images and not _is_image(path, stamped, first):
        stamped = replace(stamped, offsets=stamped.offsets[:0], sizes=stamped.sizes[:0])
    if stamped is not None and is_trusted:
        index, losses = stamped, []
    else:
        index, losses, repaired = count_frames(path, step=second / fps, of_decoding=format_name == "avi")
        notices += repaired.notices()
        if stamped is not None and not losses and repaired.is_sound and index.frames == stamped.frames:
            index = stamped
    if index.times.size:
        seconds = (index.times - index.times[0]) / second
        promised -= float(index.times[0]) / second
    else:
        seconds = np.arange(index.frames) / fps
    fps = frame_rate(fps, seconds)
    height, width = (first.width, first.height) if orientation.transposed else (first.height, first.width)
    # decord 0.6 finds the frames of stamped files with closed GOPs at a constant rate.
    is_plain = isinstance(index, StampedIndex) and index.order.size > 0
    is_plain = is_plain and np.unique(np.diff(index.times)).size <= 1
    return VideoFile(
        info=VideoInfo(frames=index.frames, height=height, width=width, fps=fps),
        index=index,
        orientation=orientation,
        second=second,
        decord_is_exact=for_decord and orientation == Orientation() and is_plain,
        missing=tuple(_missing(path, format_name, promised, losses, seconds, 1 / fps)),
        notices=tuple(notices),
    )


def _is_image(path: Video, index: StampedIndex, first: VideoFrame) -> bool:
    """Whether the first frame is decoded alike from its place: not if it is interlaced, for example."""
    (alone,) = decode_places(path, [(max(0, int(index.offsets[0])), int(index.sizes[0]))])
    if alone is None:
        return False
    with decoder_errors(path):
        return np.array_equal(alone.to_ndarray(format="rgb24"), first.to_ndarray(format="rgb24"))


def _missing(
    path: Video,
    format_name: str,
    promised: float,
    losses: Sequence[Loss],
    seconds: NDArray[np.float64],
    step: float,
) -> Iterator[tuple[float, float]]:
    """The parts of a video that cannot be shown, in seconds from the first frame; see `missing_end`."""
    for loss in losses:
        begin = end_before(seconds[: loss.frames], step) if loss.frames else -loss.packets * step
        if loss.frames < seconds.size:
            end = float(seconds[loss.frames])
            if loss.packets or end - begin > step / 2:
                yield begin, max(end, begin + step)
    breaks_off = bool(losses) and losses[-1].frames == seconds.size
    yield from missing_end(path, format_name, promised, seconds, step, breaks_off=breaks_off)
