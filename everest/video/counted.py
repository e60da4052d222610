"""Files whose packets do not tell which frame they show: counted by decoding them once, from the start.

Of AVI, in which UCF101 and HMDB51 come, the decoder tells for each frame by which packet it was pushed out.
Where these stamps rise, and a decoder that starts anew at any keyframe gives the same picture with the same
stamp as the one that came from the start, frames are found by them afterwards. Others are counted each time.
"""

from __future__ import annotations

import zlib
from contextlib import closing
from itertools import islice, pairwise
from typing import Final, NamedTuple

import numpy as np
from av import VideoFrame

from everest.video.index import PacketIndex
from everest.video.source import Video
from everest.video.stream import decode_frames

PUSHED_BY_END: Final = 2**62  # stamp of a frame that came out when there were no more packets
COMPARED: Final = 16  # frames after the second keyframe
STAMPED_FORMATS: Final = frozenset({"avi"})


class _Shown(NamedTuple):
    """A frame as it came out of a decoder."""

    stamp: int
    picture: int  # checksum


def decode_stamp(frame: VideoFrame) -> int:
    """The decode time of the packet that pushed a frame out of the decoder."""
    return PUSHED_BY_END if frame.dts is None else frame.dts


def count_frames(path: Video, *, container: str) -> tuple[PacketIndex, int]:
    """An index by decode stamps, empty where they cannot be trusted, and the number of frames.

    Args:
        container: FFmpeg's name of the file's format.
    """
    stamps: list[int] = []
    begun: list[list[_Shown]] = []  # each keyframe; after the second one, where a start differs first, more
    seeks: list[int | None] = []
    trusted = container in STAMPED_FORMATS
    with closing(decode_frames(path, keys=seeks)) as frames:
        for frame in frames:
            stamps.append(decode_stamp(frame))
            if trusted and frame.key_frame:
                begun.append([_shown(frame)])
            elif len(begun) == 2 and len(begun[1]) <= COMPARED:
                begun[1].append(_shown(frame))
    rising = all(one < other for one, other in pairwise(stamps))
    trusted = trusted and rising and 0 < len(begun) <= len(seeks)
    starts = list(zip(begun, seeks, strict=False))
    if not trusted or not all(_begins(path, expected, seek) for expected, seek in starts):
        return PacketIndex.of([]), len(stamps)
    return (
        PacketIndex(
            times=np.array(stamps, dtype=np.int64),
            key_times=np.array([expected[0].stamp for expected in begun], dtype=np.int64),
            key_seeks=np.array([seek for _, seek in starts], dtype=np.int64),
            order=np.zeros(0, dtype=np.int64),
            by_decode_stamp=True,
        ),
        len(stamps),
    )


def _begins(path: Video, expected: list[_Shown], seek: int | None) -> bool:
    """Whether decoding from a keyframe on begins with the frames that came when decoding from the start."""
    if seek is None:
        return False
    with closing(decode_frames(path, seek)) as frames:
        return [_shown(frame) for frame in islice(frames, len(expected))] == expected


def _shown(frame: VideoFrame) -> _Shown:
    return _Shown(decode_stamp(frame), zlib.crc32(frame.to_ndarray(format="rgb24").tobytes()))
