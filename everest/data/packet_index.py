"""Where the frames of a video file are: time stamps and keyframes, from its packets, without decoding.

F frames, K keyframes. Frame number n is the n-th time stamp in ascending order. AVI, MPEG-TS, GIF and VP8,
whose packets do not tell when or whether they show a frame, have an empty index: they have to be counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from av import VideoStream
    from av.container import InputContainer

# AVI stores no presentation times, MPEG-TS seeks are off by frames, GIF has one keyframe.
COUNTED_FORMATS = frozenset({"avi", "mpegts", "gif"})
COUNTED_CODECS = frozenset({"vp8"})  # packets of its hidden reference frames show nothing


class Packet(NamedTuple):
    """A packet that shows a frame."""

    time: int  # when it is shown, in the stream's units
    seek: int  # where to seek for it
    is_key: bool


@dataclass(frozen=True, slots=True, eq=False)
class PacketIndex:
    """The time stamps of a file. All empty where only counting is exact."""

    times: np.ndarray  # (F,) int64 ascending
    key_times: np.ndarray  # (K,) int64 ascending
    key_seeks: np.ndarray  # (K,) int64, where to seek for them
    decord_exact: bool

    @classmethod
    def of_stream(cls, container: InputContainer, stream: VideoStream) -> PacketIndex:
        """Read all packets of `stream` from here on."""
        counted = container.format.name in COUNTED_FORMATS or stream.codec_context.name in COUNTED_CODECS
        packets = [] if counted else shown_packets(container, stream)
        keys = sorted(packet for packet in packets if packet.is_key)
        return cls(
            times=np.array(sorted(packet.time for packet in packets), dtype=np.int64),
            key_times=np.array([key.time for key in keys], dtype=np.int64),
            key_seeks=np.array([key.seek for key in keys], dtype=np.int64),
            decord_exact=_decord_is_exact(container, stream, packets),
        )

    def runs(self, wanted: list[int]) -> list[tuple[int | None, list[int]]]:
        """`wanted` (ascending) cut wherever a keyframe can be jumped to.

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


def shown_packets(container: InputContainer, stream: VideoStream) -> list[Packet]:
    """The packets that show a frame, in decode order; none at all when one has no time stamp of its own."""
    packets = []
    for packet in container.demux(stream):
        if not packet.size or packet.is_corrupt or packet.is_discard:
            continue
        if packet.pts is None:
            return []
        # mp4 seeks by decode time: a presentation time may lie behind the next keyframe of a very short GOP.
        seek = packet.pts if packet.dts is None else packet.dts
        packets.append(Packet(packet.pts, seek, packet.is_keyframe))
    return packets if len({packet.time for packet in packets}) == len(packets) else []


def _decord_is_exact(container: InputContainer, stream: VideoStream, packets: list[Packet]) -> bool:
    """Whether decord 0.6 hands out the right frames of a file.

    Seen to go wrong: AVI with B-frames and open GOPs (other frames), 4:4:4 (broken pictures), several video
    streams (another one), damaged files (repeated frames). It cannot open AV1.
    """
    codec = stream.codec_context
    if not packets or len(container.streams.video) > 1 or stream.frames not in (0, len(packets)):
        return False
    if codec.pix_fmt not in ("yuv420p", "yuvj420p") or codec.codec.name in ("av1", "libdav1d"):
        return False
    last_key = packets[0].time
    for packet in packets:
        if packet.time < last_key:  # shown before the keyframe that it follows: an open GOP
            return False
        last_key = packet.time if packet.is_key else last_key
    steps = np.diff(np.sort([packet.time for packet in packets]))
    return np.unique(steps).size <= 1
