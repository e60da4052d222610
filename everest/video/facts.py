"""Facts about a video file that its frames are read by: number, size, index, orientation, damage."""

from __future__ import annotations

import struct
from contextlib import closing
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from av import VideoCodecContext, VideoFrame
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


EXIF_ORIENTATIONS: Final = {  # by the value of the tag
    2: Orientation(mirrored=True),
    3: Orientation(mirrored=True, flipped=True),
    4: Orientation(flipped=True),
    5: Orientation(transposed=True),
    6: Orientation(transposed=True, mirrored=True),
    7: Orientation(transposed=True, mirrored=True, flipped=True),
    8: Orientation(transposed=True, flipped=True),
}


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


def read_facts(path: Video) -> VideoFacts:
    """Read the packets of a file, and decode its first frame, or all if the packets do not tell enough."""
    with open_stream(path) as (container, stream):
        packets, is_trusted = stamped_packets(path, container, stream)
        stated = StatedTimes.of(path, container, stream, len(packets))
        with decoder_errors(path):
            codec = stream.codec_context
            is_sized = codec.width > 0
            # Other formats state where a header before the image is.
            are_images = codec.name == MOTION_JPEG and container.format.name.startswith("mov")
            suits_decord = _suits_decord(container, codec)
    first, losses = _first_frame(path, is_sized=is_sized)
    with decoder_errors(path):
        orientation, is_slanted = orientation_of(first)
    notices = [SLANTED] * is_slanted
    if first.pts is not None and not losses:  # no player shows frames that refer to others before the file
        packets = [packet for packet in packets if packet.time >= first.pts]
    if packets and are_images:
        are_images = _is_image_of(path, min(packets), first)  # the first one by time
    stamped = StampedIndex.of(packets, are_images=are_images) if packets else None
    if stamped is not None and is_trusted:
        index = stamped
        losses = []
    else:
        step = stated.second / stated.fps
        index, losses, repaired = count_frames(path, step=step, of_decoding=stated.of_decoding)
        notices += repaired.notices()
        if stamped is not None and not losses and repaired.are_stored and len(index) == len(stamped):
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
        missing=tuple(stated.missing(path, seconds, begin, 1 / fps, losses=losses)),
        notices=tuple(notices),
    )


def _first_frame(path: Video, *, is_sized: bool) -> tuple[VideoFrame, list[Loss]]:
    """The first frame that can be decoded, and what cannot before it."""
    survey = Survey()
    with closing(decode_frames(path, survey=survey)) as frames:
        first = next((frame for frame, _ in frames), None)
    if first is None:
        problem = "no frame can be decoded"
        raise VideoError(path, problem if is_sized else f"{problem} ({DAMAGED_OR_LARGE})")
    return first, survey.losses


def _suits_decord(container: InputContainer, codec: VideoCodecContext) -> bool:
    """Whether decord 0.6 reads pixels right: not 4:4:4 and AV1, and perhaps the wrong stream of several."""
    has_plain_pixels = codec.pix_fmt in ("yuv420p", "yuvj420p")
    is_av1 = codec.codec.name in ("av1", "libdav1d")
    return has_plain_pixels and not is_av1 and len(container.streams.video) == 1


def _is_image_of(path: Video, packet: StampedPacket, frame: VideoFrame) -> bool:
    """Whether the bytes of a packet alone give a frame: not if it is interlaced, for example."""
    (alone,) = decode_images(path, [(max(0, packet.offset), packet.size)])
    with decoder_errors(path):
        return alone is not None and np.array_equal(rgb(alone), rgb(frame))


def rgb(frame: VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8, as stored.

    By one thread: a frame ends its threads when it is freed, and a process forked before would wait forever.
    """
    return frame.to_ndarray(format="rgb24", threads=1)
