"""The frames of a file's video stream, decoded by PyAV in display order.

If a file has several video streams, the first one is read (cover images do not count). A file is read alone:
playlists and other files that name further files or addresses are refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import av
from av import Packet, VideoFrame, VideoStream
from av.container import InputContainer
from av.error import ArgumentError, FFmpegError, InvalidDataError
from av.stream import Disposition

from everest.errors import DataError, UserError
from everest.video.source import Video, decoder_input

# Their decoders apply `skip_frame` per packet; AV1's also drops frames that it had started before.
SKIPPING_CODECS = frozenset({"h264", "hevc"})
# FFmpeg's names of formats that are read alone, and the marks in their first bytes: ISO media (mp4, mov),
# Matroska and WebM, AVI.
KNOWN_FORMATS: Final = (("mov", 4, b"ftyp"), ("matroska", 0, b"\x1aE\xdf\xa3"), ("avi", 8, b"AVI "))
LARGEST_FRAME: Final = 2**26  # pixels: 8192 x 8192, and 8K video has half as many; our choice
# FFmpeg has one error for both.
DAMAGED_OR_LARGE: Final = f"damaged, or frames of more than {LARGEST_FRAME} pixels"
# FFmpeg's formats whose files name other files, addresses or devices.
REFERRING_FORMATS: Final = frozenset(
    {"alias_pix", "avisynth", "brender_pix", "concat", "dash", "hls", "image2", "imf", "lavfi"}
    | {"rtp", "rtsp", "sap", "sdp", "vapoursynth", "vobsub", "webm_dash_manifest"}
)
INPUT_OPTIONS: Final = {
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(sorted(av.formats_available - REFERRING_FORMATS)),
    "max_pixels": str(LARGEST_FRAME),
}
_DURATION: Final = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")  # of Matroska: hours, minutes, seconds


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
    """Turn the error for a file that cannot be opened or read into a VideoError."""
    try:
        yield
    except OSError as error:
        raise VideoError(path, f"cannot be read: {error.strerror or error}") from error


@contextmanager
def decoder_errors(
    path: str | Video, problem: str = "cannot be read", *, details: bool = True
) -> Iterator[None]:
    """Turn whatever a decoder raises into a VideoError. Only for calls of decoders.

    For damaged files, decoders raise errors of every kind: UnicodeDecodeError, SyntaxError, MemoryError, ….

    Args:
        problem: the beginning of the reason.
        details: whether the decoder's message follows.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        system_reason = error.strerror if isinstance(error, FFmpegError | OSError) else None
        reason = system_reason or (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, ArgumentError):
            reason += f" ({DAMAGED_OR_LARGE})"
        raise VideoError(path, f"{problem}: {reason}" if details else problem) from error


def check_frame_size(path: str | Video, size: tuple[int, int], frame: str = "frames") -> None:
    """Raise VideoError for a frame (height, width) that is too large for the memory, before it is decoded."""
    height, width = size
    if height * width > LARGEST_FRAME:
        raise VideoError(path, f"{frame} of {width} x {height} pixels, more than {LARGEST_FRAME} pixels")


def open_container(path: Video) -> InputContainer:
    """Open a file of this machine or bytes in memory, and nothing that the file names.

    Raises:
        VideoError: the file is not a video, or cannot be read.
    """
    with decoder_errors(path):
        source = decoder_input(path)
        if isinstance(source, str):
            with Path(source).open("rb") as file:
                begin = file.read(12)
        else:
            begin = source.read(12)
            source.seek(0)
        known = next((name for name, at, mark in KNOWN_FORMATS if begin[at:].startswith(mark)), None)
        # PyAV 18 loses some memory in each file that is opened with options, which most files do not need.
        options = INPUT_OPTIONS if known is None else {}
        try:
            # Titles may be in any encoding.
            return av.open(source, "r", format=known, options=options, metadata_errors="replace")
        except InvalidDataError as error:
            reason = "no frame can be decoded (truncated or damaged file)" if known else "not a video file"
            raise VideoError(path, reason) from error
        except ArgumentError as error:  # the answer to a format that is not in the list
            reason = "not a video file, or a playlist of other files, which are to be named instead"
            raise VideoError(path, reason) from error


@contextmanager
def open_stream(path: Video) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its first video stream, which one thread decodes.

    Raises:
        VideoError: there is no video stream, or it cannot be decoded.
    """
    with open_container(path) as container:
        with decoder_errors(path):
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                raise VideoError(path, "no video stream")
            codec = streams[0].codec_context
            if codec is None:
                raise VideoError(path, "no frame can be decoded (unknown codec or damaged header)")
            check_frame_size(path, (codec.height, codec.width))
            codec.options = {"max_pixels": str(LARGEST_FRAME)}  # frames may be larger than the file states
            codec.thread_count = 1  # the loader's workers decode in parallel
        yield container, streams[0]


def packets(path: Video, container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """The packets of a stream, in the order of the file.

    Raises:
        VideoError: on reaching a part that cannot be read.
    """
    demuxed = container.demux(stream)
    while True:
        with decoder_errors(path):
            packet = next(demuxed, None)
        if packet is None:
            return
        yield packet


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
    Raises:
        VideoError: the file cannot be opened, or a decoder fails other than by invalid data.
    """
    with open_stream(path) as (container, stream):
        codec = stream.codec_context
        skips = codec.name in SKIPPING_CODECS and len(unwanted) > 0
        if seek is not None:
            with decoder_errors(path):
                container.seek(seek, stream=stream)
        for number, packet in enumerate(packets(path, container, stream)):
            if skips and packet.pts in needless:
                continue
            if skips:
                codec.skip_frame = "NONREF" if packet.pts in unwanted else "DEFAULT"
            if keys is not None and packet.is_keyframe and packet.size:
                keys.append(packet.dts)
            damaged, frames = packet.is_corrupt, []
            with decoder_errors(path):
                if not damaged:
                    try:
                        frames = packet.decode()
                    except InvalidDataError:
                        damaged = True
                ends = damaged or (skips and last is not None and packet.pts == last)
                if ends:
                    frames = [*frames, *codec.decode(None)]  # complete frames that the decoder still holds
            if damaged and damages is not None:
                damages.append(number)
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
        stamp = _DURATION.match(stream.metadata.get("DURATION", ""))
        if stamp is not None:
            hours, minutes, seconds = map(float, stamp.groups())
            return hours * 3600 + minutes * 60 + seconds
        alone = len(container.streams) == 1  # else the sound may be what lasts longer
        return (container.duration or 0) / av.time_base if alone else 0.0
