"""Where the frames of a video file are: time stamps and keyframes, from its packets, without decoding.

F frames, K keyframes. Frame number n is the n-th time stamp in ascending order. AVI, MPEG-TS, GIF and VP8,
whose packets do not tell when or whether they show a frame, are counted (everest.video.counted); their
index is empty, or by other stamps.

Which back-ends beside PyAV return the right frames of a file.

What they get wrong is tabled in docs/data.md. Each rule was found by reading back numbers burnt into the
frames of rendered files, and by comparing with all frames decoded in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    # (F,) int64, when each is decoded; empty where a keyframe may not begin anew (open GOP).
    order: np.ndarray
    by_decode_stamp: bool = False  # `times` are those of everest.data.counted_files, in no unit of time

    @classmethod
    def of(cls, packets: Sequence[Packet]) -> PacketIndex:
        """The index of a stream from what `displayed_packets` found."""
        keys = sorted(packet for packet in packets if packet.is_key)
        times = np.array([packet.time for packet in packets], dtype=np.int64)  # as decoded
        shown = np.argsort(times)
        return cls(
            times=times[shown],
            order=shown if has_closed_gops(packets) else shown[:0],
            key_times=np.array([key.time for key in keys], dtype=np.int64),
            key_seeks=np.array([key.seek for key in keys], dtype=np.int64),
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

    def decoding(self, wanted: list[int]) -> tuple[set[int], int | None]:
        """What to decode for `wanted` frames.

        Returns:
            The time stamps of frames that nothing wanted refers to, as they come after all that is wanted
            up to the next keyframe; and that of the wanted frame that is decoded last. Empty and None where
            the file does not tell.
        """
        if not self.order.size:
            return set(), None
        gop = np.searchsorted(self.key_times, self.times, side="right") - 1  # (F,)
        last = np.full(len(self.key_times), -1)  # what is decoded last of each GOP
        np.maximum.at(last, gop[wanted], self.order[wanted])
        final = wanted[int(self.order[wanted].argmax())]
        return set(self.times[self.order > last[gop]].tolist()), int(self.times[final])


def has_closed_gops(packets: Sequence[Packet]) -> bool:
    """Whether no frame is shown before the keyframe that it follows in decode order, the first included."""
    last_key = None
    for packet in packets:
        last_key = packet.time if packet.is_key else last_key
        if last_key is None or packet.time < last_key:
            return False
    return bool(packets)


def displayed_packets(container: InputContainer, stream: VideoStream) -> list[Packet]:
    """The packets that show a frame, in decode order; none at all where only counting is exact."""
    if container.format.name in COUNTED_FORMATS or stream.codec_context.name in COUNTED_CODECS:
        return []
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


EIGHT_BITS = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"})


def exact_backends(
    container: InputContainer, stream: VideoStream, packets: Sequence[Packet]
) -> frozenset[str]:
    """Names of the back-ends that give the same frames as PyAV, to the bit but for decord's rounding.

    Args:
        packets: those that show a frame, in decode order; empty where only counting is exact.
    """
    if not packets or stream.frames not in (0, len(packets)):  # counted, or damaged: frames are missing
        return frozenset()
    rules = {"decord": _decord, "torchcodec": _torchcodec}
    return frozenset(name for name, is_exact in rules.items() if is_exact(container, stream, packets))


def _decord(container: InputContainer, stream: VideoStream, packets: Sequence[Packet]) -> bool:
    """decord 0.6: wrong frames of open GOPs, broken pictures of 4:4:4, another of several streams; no AV1."""
    codec = stream.codec_context
    if len(container.streams.video) > 1:
        return False
    if codec.pix_fmt not in ("yuv420p", "yuvj420p") or codec.codec.name in ("av1", "libdav1d"):
        return False
    if not has_closed_gops(packets):
        return False
    steps = np.diff(np.sort([packet.time for packet in packets]))
    return np.unique(steps).size <= 1


def _torchcodec(container: InputContainer, stream: VideoStream, packets: Sequence[Packet]) -> bool:
    """torchcodec 0.17 in exact mode: other colours where a sample has more than 8 bits."""
    return stream.codec_context.pix_fmt in EIGHT_BITS
