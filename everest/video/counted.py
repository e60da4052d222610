"""Files whose packets do not state which frame they show: counted by decoding them once, from the start.

For AVI, the format of UCF101 and HMDB51, the decoder reports which packet pushed each frame out. Two checks
decide whether frames can later be found by these stamps: the stamps rise, and a decoder that starts at any
keyframe returns the same images with the same stamps as one that starts at the first frame. All other files
are counted each time; when their frames are shown is known from the decoded frames, except for AVI, which
does not store it.
"""

from __future__ import annotations

import zlib
from contextlib import closing
from dataclasses import replace
from itertools import islice, pairwise
from typing import Final, NamedTuple

import numpy as np
from av import VideoFrame

from everest.video.index import PacketIndex
from everest.video.source import Video
from everest.video.stream import decode_frames, decoder_errors

PUSHED_BY_END: Final = 2**62  # stamp of a frame that came out after the last packet
COMPARED: Final = 16  # frames after the second keyframe
STAMPED_FORMATS: Final = frozenset({"avi"})


class _Decoded(NamedTuple):
    """A frame as it came out of a decoder."""

    stamp: int
    checksum: int


def decode_stamp(frame: VideoFrame) -> int:
    """The decode time of the packet that pushed a frame out of the decoder."""
    return PUSHED_BY_END if frame.dts is None else frame.dts


def count_frames(path: Video, *, container: str) -> tuple[PacketIndex, int]:
    """Decode a file; returns an index, and the frame count.

    The index is by decode stamps if they can be trusted. Otherwise it has at most the display times.

    Args:
        container: FFmpeg's name of the file's format.
    """
    stamps: list[int] = []
    times: list[int | None] = []  # when frames are shown
    duration = 0  # of the last frame
    # The frame at each keyframe. After the second one, where a new start differs first, further frames too.
    starts: list[list[_Decoded]] = []
    seeks: list[int | None] = []
    trusted = container in STAMPED_FORMATS
    with closing(decode_frames(path, keys=seeks)) as frames:
        for frame in frames:
            stamps.append(decode_stamp(frame))
            times.append(frame.pts)
            duration = frame.duration
            if trusted and frame.key_frame:
                starts.append([_decoded(path, frame)])
            elif len(starts) == 2 and len(starts[1]) <= COMPARED:
                starts[1].append(_decoded(path, frame))
    rising = all(before < after for before, after in pairwise(stamps))
    shown = np.array([] if trusted or None in times else times, dtype=np.int64)
    counted = PacketIndex.of([])
    if shown.size and np.all(np.diff(shown) > 0):
        counted = replace(counted, counted_times=shown, last_duration=duration or 0)
    counted_only = counted, len(stamps)
    if not (trusted and rising and 0 < len(starts) <= len(seeks)):
        return counted_only
    for expected, seek in zip(starts, seeks, strict=False):
        if seek is None:
            return counted_only
        with closing(decode_frames(path, seek)) as frames:
            if [_decoded(path, frame) for frame in islice(frames, len(expected))] != expected:
                return counted_only
    index = PacketIndex(
        times=np.array(stamps, dtype=np.int64),
        key_times=np.array([expected[0].stamp for expected in starts], dtype=np.int64),
        key_seeks=np.array(seeks[: len(starts)], dtype=np.int64),
        order=np.zeros(0, dtype=np.int64),
        by_decode_stamp=True,
    )
    return index, len(stamps)


def _decoded(path: Video, frame: VideoFrame) -> _Decoded:
    with decoder_errors(path):
        return _Decoded(decode_stamp(frame), zlib.crc32(frame.to_ndarray(format="rgb24").tobytes()))
