"""Facts about a video file that its frames are read by: number, size, index, orientation, damage."""

from __future__ import annotations

import struct
from contextlib import closing
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from av import VideoFrame, VideoStream
from av.container import InputContainer

from everest.video.decoding import Loss, Survey, decode_frames, decode_images
from everest.video.index import FrameIndex, StampedIndex, StampedPacket, count_frames, stamped_packets
from everest.video.missing import Span, StatedTimes
from everest.video.source import Video
from everest.video.stream import DAMAGED_OR_LARGE, MOTION_JPEG, VideoError, decoder_errors, open_stream
from everest.video.times import frame_rate

MATRIX: Final = "DISPLAYMATRIX"  # PyAV's name of nine 32-bit numbers, of which a to d are 16.16
LEAST_SLANT: Final = 0.02  # of a right angle's sine: our choice, about 1 degree
SLANTED: Final = "is turned by an angle that is no multiple of 90 degrees; the nearest is used"


class Orientation(NamedTuple):
    """What makes a picture upright, in this order.

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
    """The nearest orientation at right angles, and whether the frame's matrix is another one."""
    data = frame.side_data.get(MATRIX)
    if data is None:
        return Orientation(), False
    a, b, _, c, d, *_ = (value / 2**16 for value in struct.unpack("=9i", bytes(data)))
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    x, y = (c, b) if transposed else (a, d)  # what the new x and y are multiples of
    rest = (a, d) if transposed else (b, c)
    is_slanted = max(map(abs, rest)) > LEAST_SLANT * max(abs(x), abs(y))
    return Orientation(transposed, x < 0, y < 0), is_slanted


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Facts that are known before any frame is chosen."""

    frames: int
    height: int  # as shown, after rotation
    width: int
    fps: float | None  # None: a folder of images


@dataclass(frozen=True, slots=True, eq=False)
class VideoFacts:
    """Facts that the back-ends need to read frames of a file."""

    info: VideoInfo
    index: FrameIndex
    orientation: Orientation
    second: float  # in units of the time stamps
    decord_is_exact: bool
    missing: tuple[Span, ...]  # that cannot be shown
    notices: tuple[str, ...]  # what was repaired


@dataclass(frozen=True, slots=True, kw_only=True)
class _StatedFrames:
    """What a file states about the frames of its video."""

    are_sized: bool
    are_images: bool  # each packet is an image of its own
    suit_decord: bool

    @classmethod
    def of(cls, path: Video, container: InputContainer, stream: VideoStream) -> _StatedFrames:
        """Read what a file states."""
        codec = stream.codec_context
        with decoder_errors(path):
            # decord 0.6 reads 4:4:4 and AV1 wrong, and perhaps the wrong stream of several.
            has_plain_pixels = codec.pix_fmt in ("yuv420p", "yuvj420p")
            is_read_right = has_plain_pixels and codec.codec.name not in ("av1", "libdav1d")
            return cls(
                are_sized=codec.width > 0,
                # Other formats state where a header before the image is.
                are_images=codec.name == MOTION_JPEG and container.format.name.startswith("mov"),
                suit_decord=is_read_right and len(container.streams.video) == 1,
            )


def read_facts(path: Video) -> VideoFacts:
    """Read the packets of a file, and decode its first frame, or all if the packets do not tell enough."""
    with open_stream(path) as (container, stream):
        packets, is_trusted = stamped_packets(path, container, stream)
        stated = StatedTimes.of(path, container, stream, len(packets))
        stated_frames = _StatedFrames.of(path, container, stream)
    first, losses = _first_frame(path, are_sized=stated_frames.are_sized)
    with decoder_errors(path):
        orientation, is_slanted = orientation_of(first)
    notices = [SLANTED] * is_slanted
    if first.pts is not None and not losses:  # no player shows frames that refer to others before the file
        packets = [packet for packet in packets if packet.time >= first.pts]
    stamped = _stamped_index(path, packets, first, are_images=stated_frames.are_images)
    if stamped is not None and is_trusted:
        index = stamped
        losses = []
    else:
        step = stated.second / stated.fps
        index, losses, repaired = count_frames(path, step=step, of_decoding=stated.of_decoding)
        notices += repaired.notices()
        if stamped is not None and not losses and repaired.are_stored and index.frames == stamped.frames:
            index = stamped
    begin = 0.0
    seconds = np.arange(index.frames) / stated.fps
    if index.times.size:
        begin = float(index.times[0]) / stated.second
        seconds = (index.times - index.times[0]) / stated.second
    fps = frame_rate(stated.fps, seconds)
    height, width = orientation.exchanged((first.height, first.width))
    # decord 0.6 finds the frames of stamped files with closed GOPs at a constant rate.
    has_closed_gops = isinstance(index, StampedIndex) and index.order.size > 0
    is_plain = has_closed_gops and np.unique(np.diff(index.times)).size <= 1
    return VideoFacts(
        info=VideoInfo(frames=index.frames, height=height, width=width, fps=fps),
        index=index,
        orientation=orientation,
        second=stated.second,
        decord_is_exact=stated_frames.suit_decord and orientation == Orientation() and is_plain,
        missing=tuple(stated.missing(path, seconds, begin, 1 / fps, losses=losses)),
        notices=tuple(notices),
    )


def _first_frame(path: Video, *, are_sized: bool) -> tuple[VideoFrame, list[Loss]]:
    """The first frame that can be decoded, and what cannot before it.

    Args:
        are_sized: the file states the size of its frames.
    """
    survey = Survey()
    with closing(decode_frames(path, survey=survey)) as frames:
        first = next((frame for frame, _ in frames), None)
    if first is None:
        problem = "no frame can be decoded"
        raise VideoError(path, problem if are_sized else f"{problem} ({DAMAGED_OR_LARGE})")
    return first, survey.losses


def _stamped_index(
    path: Video, packets: list[StampedPacket], first: VideoFrame, *, are_images: bool
) -> StampedIndex | None:
    """The index by the packets, if there are any.

    It has the byte ranges of images if these give the `first` frame: not if it is interlaced, for example.
    """
    if not packets:
        return None
    if are_images:
        shown_first = min(packets)  # by time
        (alone,) = decode_images(path, [(max(0, shown_first.offset), shown_first.size)])
        with decoder_errors(path):
            are_images = alone is not None and np.array_equal(rgb(alone), rgb(first))
    return StampedIndex.of(packets, are_images=are_images)


def rgb(frame: VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8, as stored.

    By one thread: a frame ends its threads when it is freed, and a process forked before would wait forever.
    """
    return frame.to_ndarray(format="rgb24", threads=1)
