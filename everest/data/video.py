"""Frames of a video, exactly the ones asked for. The only file that imports a decoder.

F frames, H height, W width. A "video" is a file, or a folder of pictures taken in the order of their names.
Of a file with several video streams the first is read (cover pictures do not count). Frames are chosen by
number also where the frame rate varies; `frames_between` turns seconds into numbers.

A frame is found by its time stamp, decoding from the keyframe before it; files without usable stamps
(everest.data.packet_index names them) are decoded from the start and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import torch
from av import VideoFrame, VideoStream
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from PIL import Image
from torch import Tensor

from everest.data.folders import pictures_in
from everest.data.packet_index import PacketIndex
from everest.errors import DataError, EnvironmentProblem, unknown_name

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
class _Opening:
    """What a first look at a file tells."""

    info: VideoInfo
    index: PacketIndex
    quarter_turns: int  # counter-clockwise, to be applied to every frame
    second: float  # in time stamps


def probe(path: str | Path) -> VideoInfo:
    """Number and size of the frames.

    Raises:
        VideoError: nothing can be decoded.
    """
    path = Path(path)
    if not path.is_dir():
        return _look(path).info
    with _retold(path):
        pictures = _pictures(path)
        height, width, _ = _picture(pictures[0]).shape
    return VideoInfo(frames=len(pictures), height=height, width=width, fps=None)


def read_frames(path: str | Path, ids: Sequence[int], *, decoder: str = "auto") -> Tensor:
    """The frames numbered `ids`, in this order, repetitions included; rotation tags are applied.

    Args:
        decoder: `auto` is `pyav`: exact on every file, and not slower than decord on most.
            `decord` refuses the files on which it is known to return wrong frames.
    Returns:
        (F, H, W, 3) uint8, RGB.
    Raises:
        VideoError: one of the frames does not exist or is damaged.
    """
    if decoder not in DECODERS:
        raise unknown_name("data.decoder", decoder, DECODERS)
    path = Path(path)
    wanted = sorted({int(i) for i in ids})
    count = probe(path).frames
    if not wanted or wanted[0] < 0 or wanted[-1] >= count:
        raise VideoError(path, f"frames {[int(i) for i in ids]} asked for, there are {count}")
    with _retold(path):
        found = _read_pictures(path, wanted) if path.is_dir() else DECODERS[decoder](path, wanted)
    missing = [i for i in wanted if i not in found]
    if missing:
        raise VideoError(path, f"frame {missing[0]} of {count} cannot be decoded (damaged file)")
    return torch.from_numpy(np.stack([found[int(i)] for i in ids]))


def frames_between(path: str | Path, start: float | None, end: float | None) -> tuple[int, int]:
    """Numbers of the first frame shown at or after `start` seconds and of the first at or after `end`.

    `None` stands for the video's own begin and end.

    Raises:
        VideoError: no frame is shown in between, or the video has no times.
    """
    path = Path(path)
    if path.is_dir():
        raise VideoError(path, "a folder of pictures has no seconds; use start_frame and end_frame")
    look = _look(path)
    stamps = look.index.times
    if stamps.size == 0:
        stamps = np.arange(look.info.frames) * look.second / (look.info.fps or 1)
    seconds = (stamps - stamps[0]) / look.second
    tolerance = 1e-6  # a tenth of a second has no exact binary form
    first = 0 if start is None else int(np.searchsorted(seconds, start - tolerance))
    last = seconds.size if end is None else int(np.searchsorted(seconds, end - tolerance))
    if first >= last:
        raise VideoError(path, f"no frame between {start} s and {end} s; the last is at {seconds[-1]:.2f} s")
    return first, last


def write_video(path: str | Path, frames: Tensor, fps: int, *, crf: int = 18, gop: int = 12) -> None:
    """Write (F, H, W, 3) uint8 frames as H.264, yuv420p. The same frames give the same bytes.

    Args:
        crf: x264's quality, 0 (lossless) to 51; 18 is visually close to the source.
        gop: frames from one keyframe to the next; short ones make random access cheap.
    """
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise VideoError(path, f"yuv420p needs even sizes, not {height}x{width}")
    # Macroblock-tree rate control gives small frames other bytes in every run (x264 in av 18.1).
    options = {"crf": str(crf), "g": str(gop), "x264-params": "mbtree=0"}
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 1  # threads change the rate control, and so the bytes
        for frame in frames.numpy():
            container.mux(stream.encode(VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def _look(path: Path) -> _Opening:
    try:
        status = path.stat()
    except OSError as error:
        raise VideoError(path, error.strerror or str(error)) from error
    if status.st_size == 0:
        raise VideoError(path, "empty file")
    with _retold(path):
        return _cached_look(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8192)
def _cached_look(path: Path, size: int, modified: int) -> _Opening:
    """Index a file and decode its first frame. `size` and `modified`: a rewritten file is another."""
    with _opened(path) as (container, stream):
        index = PacketIndex.of_stream(container, stream)
        fps = stream.average_rate or stream.guessed_rate
        second = 1 / stream.time_base if stream.time_base else 1
    with closing(_decoded(path)) as frames:
        first = next(frames, None)
        if first is None:
            raise VideoError(path, "no frame can be decoded")
        count = index.times.size or 1 + sum(1 for _ in frames)
    turns = round(first.rotation / 90) % 4
    height, width = (first.width, first.height) if turns % 2 else (first.height, first.width)
    info = VideoInfo(frames=count, height=height, width=width, fps=float(fps or 25))
    return _Opening(info=info, index=index, quarter_turns=turns, second=float(second))


@contextmanager
def _retold(path: Path) -> Iterator[None]:
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


def _decoded(path: Path, seek: int | None = None) -> Generator[VideoFrame]:
    """Frames in order of presentation from a seek position, or from the start, up to the first damage.

    Decoders conceal what they miss: a frame after damage looks like one, but is not what was filmed.
    """
    with _opened(path) as (container, stream):
        if seek is not None:
            container.seek(seek, stream=stream)
        for packet in container.demux(stream):
            damaged, frames = packet.is_corrupt, []
            if not damaged:
                try:
                    frames = packet.decode()
                except InvalidDataError:
                    damaged = True
            if damaged:
                frames = stream.codec_context.decode(None)  # whole ones that waited for their turn
            for frame in frames:
                if frame.is_corrupt:
                    return
                yield frame
            if damaged:
                return


def _read_pyav(path: Path, wanted: list[int]) -> dict[int, np.ndarray]:
    """Number to picture (H, W, 3) of those of the `wanted` frames (ascending) that can be decoded."""
    look = _look(path)
    found: dict[int, np.ndarray] = {}
    for seek, run in look.index.runs(wanted):
        found |= _collect(path, look, seek, run)
    missing = [i for i in wanted if i not in found]
    if missing:  # a seek may land behind its target, or behind what the target refers to
        found |= _collect(path, look, None, missing)
    return found


def _collect(path: Path, look: _Opening, seek: int | None, wanted: list[int]) -> dict[int, np.ndarray]:
    """Decode from `seek` on until the `wanted` frames were shown."""
    times = look.index.times
    numbers: dict[int | None, int] = {int(times[i]) if times.size else i: i for i in wanted}
    height, width = look.info.height, look.info.width
    if look.quarter_turns % 2:
        height, width = width, height
    scaler = VideoReformatter()  # one for all frames: making its tables costs as much as using them
    found: dict[int, np.ndarray] = {}
    with closing(_decoded(path, seek)) as frames:
        for count, frame in enumerate(frames):
            number = numbers.get(frame.pts if times.size else count)
            if number is not None:
                # Width and height: a stream may change its size on the way, a clip cannot.
                rgb = scaler.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
                found[number] = np.rot90(rgb, look.quarter_turns)
            if len(found) == len(wanted):
                break
    return found


def _read_decord(path: Path, wanted: list[int]) -> dict[int, np.ndarray]:
    try:
        import decord
    except ImportError as error:
        raise EnvironmentProblem("data.decoder: decord is not installed; use 'auto'") from error
    look = _look(path)
    if not look.index.decord_exact or look.quarter_turns:
        raise VideoError(path, "decord may return wrong frames of this file; use data.decoder 'auto'")
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        return dict(zip(wanted, reader.get_batch(wanted).asnumpy(), strict=True))
    except decord.DECORDError as error:
        raise VideoError(path, "cannot be read by decord; use data.decoder 'auto'") from error


def _pictures(folder: Path) -> list[Path]:
    pictures = pictures_in(folder)
    if not pictures:
        raise VideoError(folder, "a folder without jpg or png pictures")
    return pictures


def _picture(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))  # (H, W, 3)


def _read_pictures(folder: Path, wanted: list[int]) -> dict[int, np.ndarray]:
    files = _pictures(folder)
    found = {i: _picture(files[i]) for i in wanted}
    if len({picture.shape for picture in found.values()}) > 1:
        raise VideoError(folder, "pictures of different sizes")
    return found


DECODERS: dict[str, Callable[[Path, list[int]], dict[int, np.ndarray]]] = {
    "auto": _read_pyav,
    "pyav": _read_pyav,
    "decord": _read_decord,
}
