"""The index of a video file: where each frame is.

F frames, K keyframes. Frame number n has the n-th time stamp in ascending order. The index is made from the
packets of a file, without decoding. The packets of AVI, MPEG-TS, GIF and VP8 do not state when or whether
they show a frame: such files are counted by decoding them once, from the start.

For AVI, the format of UCF101 and HMDB51, the decoder reports which packet pushed each frame out. Two checks
decide whether frames can later be found by these stamps: the stamps rise, and a decoder that starts at any
keyframe returns the same images with the same stamps as one that starts at the first frame. All other files
are counted each time; when their frames are shown is known from the decoded frames, except for AVI, which
does not store it.

The index also decides which back-ends other than PyAV return the right frames (table in docs/data.md). Each
rule was found by reading back numbers drawn into the frames of rendered files, and by comparing with all
frames decoded in sequence.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import Final, NamedTuple

import numpy as np
from av import VideoFrame, VideoStream
from av.container import InputContainer

from everest.video.source import Video
from everest.video.stream import decode_frames, decoder_errors, packets

# AVI stores no presentation times, MPEG-TS seeks are off by frames, GIF has one keyframe.
COUNTED_FORMATS = frozenset({"avi", "mpegts", "gif"})
COUNTED_CODECS = frozenset({"vp8"})  # packets of its hidden reference frames show nothing
PUSHED_BY_END: Final = 2**62  # stamp of a frame that came out after the last packet
COMPARED: Final = 16  # frames after the second keyframe
STAMPED_FORMATS: Final = frozenset({"avi"})
EIGHT_BITS = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"})


class Packet(NamedTuple):
    """A packet that shows a frame."""

    time: int  # when it is shown, in the stream's units
    seek: int  # where to seek for it
    is_key: bool
    duration: int = 0  # how long it is shown; 0: not stated


@dataclass(frozen=True, slots=True, eq=False)
class PacketIndex:
    """The time stamps of a file. All but `counted_times` are empty if only counting is exact."""

    times: np.ndarray  # (F,) int64 ascending
    key_times: np.ndarray  # (K,) int64 ascending
    key_seeks: np.ndarray  # (K,) int64, where to seek for them
    # (F,) int64, position of each frame in decode order; empty if GOPs may be open.
    order: np.ndarray
    by_decode_stamp: bool = False  # `times` are values of `decode_stamp`, in no unit of time
    last_duration: int = 0  # how long the last frame is shown; 0: not known
    counted_times: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # of a counted file

    @property
    def display_times(self) -> np.ndarray:
        """When frames are shown, in the stream's units: (F,) int64 ascending; empty if it is not known."""
        return self.times if self.times.size and not self.by_decode_stamp else self.counted_times

    @classmethod
    def of(cls, packets: Sequence[Packet]) -> PacketIndex:
        """Make the index of a stream from the packets of `displayed_packets`."""
        keys = sorted(packet for packet in packets if packet.is_key)
        times = np.array([packet.time for packet in packets], dtype=np.int64)  # as decoded
        shown = np.argsort(times)
        # Closed: from the first on, every frame is shown after the keyframe that it follows in decode order.
        has_closed_gops, last_key = True, None
        for packet in packets:
            last_key = packet.time if packet.is_key else last_key
            has_closed_gops = has_closed_gops and last_key is not None and packet.time >= last_key
        return cls(
            times=times[shown],
            order=shown if has_closed_gops else shown[:0],
            key_times=np.array([key.time for key in keys], dtype=np.int64),
            key_seeks=np.array([key.seek for key in keys], dtype=np.int64),
            last_duration=packets[shown[-1]].duration if packets else 0,
        )

    def runs(self, wanted: list[int]) -> list[tuple[int | None, list[int]]]:
        """Split the numbers of `wanted` frames (ascending) at keyframes to which a reader can seek.

        Returns:
            Each part with the position to seek to before decoding it; None is the start of the file.
        """
        if not self.key_times.size:
            return [(None, wanted)]
        keys = np.searchsorted(self.key_times, self.times[wanted], side="right") - 1  # -1: before the first
        begins = [0, *(np.flatnonzero(np.diff(keys) > 1) + 1), len(wanted)]
        return [
            (int(self.key_seeks[keys[begin]]) if keys[begin] > 0 else None, wanted[begin:end])
            for begin, end in pairwise(begins)
        ]

    def around(self, wanted: list[int]) -> slice:
        """The frames that a reader may meet on its way to the `wanted` ones (ascending).

        These are all frames of the GOPs from the first wanted frame to the last, and of one GOP at each side.
        A clip of a file of many hours then does not cost work for all its frames.
        """
        if not self.key_times.size:
            return slice(None)
        ends = self.times[[wanted[0], wanted[-1]]]
        first, last = np.searchsorted(self.key_times, ends, side="right").tolist()  # GOP + 1
        keys = self.key_times
        start = np.searchsorted(self.times, keys[first - 2]) if first > 1 else 0
        stop = np.searchsorted(self.times, keys[last + 1]) if last + 1 < keys.size else self.times.size
        return slice(int(start), int(stop))

    def needless_and_last(self, wanted: list[int]) -> tuple[set[int], int | None]:
        """The frames that need not be decoded for the `wanted` ones.

        Returns:
            The time stamps of frames, among those `around` the wanted ones, to which no wanted frame refers,
            because they are decoded after all wanted frames of their GOP; and the time stamp of the wanted
            frame that is decoded last. Empty and None if the decode order is not known.
        """
        if not self.order.size:
            return set(), None
        near = self.around(wanted)
        times, order = self.times[near], self.order[near]
        chosen = np.array(wanted) - near.start
        gop = np.searchsorted(self.key_times, times, side="right") - 1
        last = np.full(len(self.key_times), -1)  # the last wanted frame of each GOP, in decode order
        np.maximum.at(last, gop[chosen], order[chosen])
        final = wanted[int(self.order[wanted].argmax())]
        return set(times[order > last[gop]].tolist()), int(self.times[final])


def displayed_packets(path: Video, container: InputContainer, stream: VideoStream) -> list[Packet]:
    """The packets that show a frame, in decode order; empty if only counting is exact.

    Raises:
        VideoError: a part of the file cannot be read.
    """
    if container.format.name in COUNTED_FORMATS or stream.codec_context.name in COUNTED_CODECS:
        return []
    displayed = []
    for packet in packets(path, container, stream):
        if not packet.size or packet.is_corrupt or packet.is_discard:
            continue
        if packet.pts is None:
            return []
        # mp4 seeks by decode time: in a very short GOP a display time may be after the next keyframe.
        seek = packet.pts if packet.dts is None else packet.dts
        displayed.append(Packet(packet.pts, seek, packet.is_keyframe, packet.duration or 0))
    return displayed if len({packet.time for packet in displayed}) == len(displayed) else []


def exact_backends(container: InputContainer, stream: VideoStream, index: PacketIndex) -> frozenset[str]:
    """Names of the back-ends that return the frames of PyAV, to the bit except for decord's rounding."""
    size = index.times.size
    if not size or stream.frames not in (0, size):  # counted, or damaged: frames are missing
        return frozenset()
    exact, codec = set(), stream.codec_context
    # decord 0.6: wrong frames for open GOPs, broken images for 4:4:4, wrong stream of several; no AV1.
    if (
        len(container.streams.video) == 1
        and codec.pix_fmt in ("yuv420p", "yuvj420p")
        and codec.codec.name not in ("av1", "libdav1d")
        and index.order.size
        and np.unique(np.diff(index.times)).size <= 1
    ):
        exact.add("decord")
    if codec.pix_fmt in EIGHT_BITS:  # torchcodec 0.17: other colors for more than 8 bits
        exact.add("torchcodec")
    return frozenset(exact)


class _Decoded(NamedTuple):
    """A frame as it came out of a decoder."""

    stamp: int
    checksum: int


def decode_stamp(frame: VideoFrame) -> int:
    """The decode time of the packet that pushed a frame out of the decoder."""
    return PUSHED_BY_END if frame.dts is None else frame.dts


def count_frames(path: Video, *, container: str) -> tuple[PacketIndex, int]:
    """Decode a file of a format (FFmpeg's name); returns an index, and the frame count.

    The index is by decode stamps if they can be trusted. Otherwise it has at most the display times.
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
