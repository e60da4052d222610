"""The frames of a file's video stream, decoded by PyAV in display order.

If a file has several video streams, the first one is read (cover images do not count).
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av import VideoFrame, VideoStream
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.stream import Disposition

from everest.errors import DataError
from everest.video.source import Video, decoder_input, video_bytes

# Their decoders apply `skip_frame` per packet; AV1's also drops frames that it had started before.
SKIPPING_CODECS = frozenset({"h264", "hevc"})
CONTAINER_MARKS = {4: b"ftyp", 0: b"\x1aE\xdf\xa3"}  # ISO media (mp4, mov), Matroska and WebM


class VideoError(DataError):
    """A video that cannot be read, and the reason."""

    def __init__(self, path: str | Video, reason: str) -> None:
        super().__init__(path, reason)  # both, so that the error can be pickled out of a loader's worker
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@contextmanager
def as_video_error(path: Video) -> Iterator[None]:
    """Turn the libraries' errors for an unreadable file into a VideoError."""
    try:
        yield
    except (FFmpegError, OSError) as error:
        raise VideoError(path, f"cannot be read: {error.strerror or error}") from error


@contextmanager
def open_stream(path: Video) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its first video stream, which one thread decodes."""
    try:
        container = av.open(decoder_input(path), "r")
    except InvalidDataError as error:
        if isinstance(path, Path):
            with path.open("rb") as file:
                begin = file.read(12)
        else:
            begin = video_bytes(path)[:12]
        known = any(begin[at:].startswith(mark) for at, mark in CONTAINER_MARKS.items())
        reason = "no frame can be decoded (truncated or damaged file)" if known else "not a video file"
        raise VideoError(path, reason) from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise VideoError(path, "no video stream")
        if streams[0].codec_context is None:
            raise VideoError(path, "no frame can be decoded (unknown codec or damaged header)")
        streams[0].codec_context.thread_count = 1  # the loader's workers decode in parallel
        yield container, streams[0]


def decode_frames(
    path: Video,
    seek: int | None = None,
    *,
    unwanted: Collection[int] = (),
    needless: Collection[int] = (),
    last: int | None = None,
    keys: list[int | None] | None = None,
    damages: list[int] | None = None,
) -> Generator[VideoFrame]:
    """Decode frames in display order from a seek position, or from the start, up to the first damage.

    Decoders conceal missing data: a frame after the damage looks valid, but is not the recorded one.

    Args:
        unwanted: time stamps of frames that may be skipped if no other frame refers to them.
        needless: time stamps of frames that can always be skipped.
        last: time stamp of the frame whose packet is the last to be read.
        keys: receives the decode times of the packets with keyframes.
        damages: receives the number of the packet, from 0, whose damage ended the reading.
    """
    with open_stream(path) as (container, stream):
        codec = stream.codec_context
        skips = codec.name in SKIPPING_CODECS and len(unwanted) > 0
        if seek is not None:
            container.seek(seek, stream=stream)
        for number, packet in enumerate(container.demux(stream)):
            if skips and packet.pts in needless:
                continue
            if skips:
                codec.skip_frame = "NONREF" if packet.pts in unwanted else "DEFAULT"
            if keys is not None and packet.is_keyframe and packet.size:
                keys.append(packet.dts)
            damaged, frames = packet.is_corrupt, []
            if not damaged:
                try:
                    frames = packet.decode()
                except InvalidDataError:
                    damaged = True
            if damaged and damages is not None:
                damages.append(number)
            ends = damaged or (skips and last is not None and packet.pts == last)
            if ends:
                frames = [*frames, *codec.decode(None)]  # complete frames that the decoder still holds
            for frame in frames:
                if frame.is_corrupt:
                    if damages is not None:
                        damages.append(number)
                    return
                yield frame
            if ends:
                return


def declared_seconds(path: Video) -> float:
    """The duration of the video that a Matroska or WebM file declares, in seconds; 0 if there is none.

    Only the duration shows that such a file was truncated: it has no frame count, and its packets are intact.
    """
    with open_stream(path) as (container, stream):
        if "matroska" not in container.format.name:
            return 0.0
        stamp = stream.metadata.get("DURATION")
        if stamp is not None:
            hours, minutes, seconds = map(float, stamp.split(":"))
            return hours * 3600 + minutes * 60 + seconds
        alone = len(container.streams) == 1  # else the sound may be what lasts longer
        return (container.duration or 0) / av.time_base if alone else 0.0
