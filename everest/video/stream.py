"""Opens files by PyAV and reads the packets of their video stream.

If a file has several video streams, the first one is read (cover images do not count). Playlists and other
files that refer to further files or addresses are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import av
from av import Packet, VideoStream
from av.container import InputContainer
from av.error import ArgumentError, FFmpegError, InvalidDataError
from av.stream import Disposition, Stream

from everest.errors import DataError, UserError
from everest.video.source import Video, decoder_input, open_bytes
from everest.video.truncation import MATROSKA_MARK

# FFmpeg's names of formats that are read alone, and the marks in their first bytes: ISO media (mp4, mov),
# Matroska and WebM, AVI.
KNOWN_FORMATS: Final = (("mov", 4, b"ftyp"), ("matroska", 0, MATROSKA_MARK), ("avi", 8, b"AVI "))
HEAD_BYTES: Final = 21  # bytes that show the format
WEBP_ANIMATION: Final = 2  # flag in the last of these bytes of a WebP file
LARGEST_FRAME: Final = 2**26  # pixels: 8192 x 8192, and 8K video has half as many; heuristic
DEFAULT_RATE: Final = 25  # frames per second, where a file states none: our choice
MOTION_JPEG: Final = "mjpeg"  # the codec whose packets are independent images
# FFmpeg reports both causes as one error.
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


class VideoError(DataError):
    """A video that cannot be read, and the reason."""

    def __init__(self, path: str | Video, reason: str) -> None:
        super().__init__(path, reason)  # with both, the error can be pickled in a loader's worker
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
    """Turn any error of a decoder into a VideoError. It is only for calls of decoders.

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
    """Open a local file or bytes in memory, but no file they refer to; VideoError for any other file."""
    with decoder_errors(path):
        with open_bytes(path) as file:
            head = file.read(HEAD_BYTES)
        if not head:
            raise VideoError(path, "empty file")
        if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and head[20:] and head[20] & WEBP_ANIMATION:
            raise VideoError(path, "an animated WebP, which FFmpeg does not read; convert it to mp4 or gif")
        known = next((name for name, offset, mark in KNOWN_FORMATS if head[offset:].startswith(mark)), None)
        # PyAV 18 loses some memory in each file that is opened with options, which most files do not need.
        options = INPUT_OPTIONS if known is None else {}
        try:
            # Titles may be in any encoding.
            return av.open(decoder_input(path), "r", format=known, options=options, metadata_errors="replace")
        except (InvalidDataError, ArgumentError) as error:
            reason = "no frame can be decoded (truncated or damaged file)" if known else "not a video file"
            if isinstance(error, ArgumentError):  # the format is not in the list
                reason = "not a video file, or a playlist of other files, which are to be named instead"
            raise VideoError(path, reason) from error


def decoder_options(codec: str) -> dict[str, str]:
    """Options of FFmpeg's decoders: a limit for frames larger than stated; damaged images are errors."""
    strict = {"err_detect": "explode"} if codec == MOTION_JPEG else {}
    return {"max_pixels": str(LARGEST_FRAME), **strict}


@contextmanager
def open_stream(path: Video) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its first video stream, which one thread decodes; VideoError if it has none."""
    with open_container(path) as container:
        with decoder_errors(path):
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                raise VideoError(path, "no video stream")
            codec = streams[0].codec_context
            if codec is None:
                raise VideoError(path, "no frame can be decoded (unknown codec or damaged header)")
            check_frame_size(path, (codec.height, codec.width))
            codec.options = decoder_options(codec.name)
            codec.thread_count = 1  # the loader's workers decode in parallel
        yield container, streams[0]


def stated_rate(stream: VideoStream) -> float:
    """The frames per second that the file states."""
    return float(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)


def read_packets(path: Video, container: InputContainer, *streams: Stream) -> Iterator[Packet]:
    """Yield the packets of streams, in the order of the file."""
    demuxed = container.demux(*streams)
    while True:
        with decoder_errors(path):
            try:
                packet = next(demuxed, None)
            except IndexError:  # PyAV 18 after the last packet, if a damaged end seems to begin a stream
                packet = None
        if packet is None:
            return
        yield packet
