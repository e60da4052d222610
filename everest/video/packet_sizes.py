"""The sizes of a video's packets, read without decoding.

Where nothing moves, an encoder of constant quality writes small packets. Their sizes show when something
happens in a file of many hours, in the time that reading it takes. Only truncated ASF files, and truncated
AVI files with B-frames, are decoded, to find their last intact frame.

P packets.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from av import VideoStream
from av.container import InputContainer
from numpy.typing import NDArray

from everest.system.types import Span
from everest.video.decoding import checked_packets
from everest.video.facts import inspect_video
from everest.video.images import NO_SECONDS, image_folder
from everest.video.missing import StatedTimes
from everest.video.source import Video
from everest.video.stream import VideoError, open_stream, stated_rate
from everest.video.times import frame_rate
from everest.video.truncation import is_truncated


@dataclass(frozen=True, slots=True, eq=False)
class PacketSizes:
    """The packets of a video in the order of display."""

    seconds: NDArray[np.float64]  # (P,) when each is shown, from the first frame
    sizes: NDArray[np.int64]  # (P,) bytes
    # (P,) 0: keyframe; 1: refers to earlier frames only; 2: is decoded after a frame that is shown later
    kinds: NDArray[np.int8]
    end: float  # seconds: when the last frame ends
    missing: tuple[Span, ...]  # without intact packets


class _Packet(NamedTuple):
    """An intact packet; times in the units of its stream."""

    time: int
    size: int
    kind: int
    duration: int


def packet_sizes(path: Video) -> PacketSizes:
    """Read the packets of a file; after damage, from the next keyframe on. VideoError if none has a time."""
    if image_folder(path) is not None:
        raise VideoError(path, NO_SECONDS)
    with open_stream(path) as (container, stream):
        unit = float(stream.time_base or 1)
        packets, gaps, breaks_off = _read(path, container, stream)
        stated = StatedTimes.of(path, container, stream, len(packets))
        is_reordered = stream.codec_context.has_b_frames
    if not packets:
        raise VideoError(path, "no packet has a time")
    packets.sort(key=attrgetter("time"))
    times, sizes, kinds, durations = np.array(packets, dtype=np.int64).T
    first = int(times[0])
    seconds = (times - first) * unit
    # Packets show neither which of them are incomplete (ASF) nor when a B-frame is shown (AVI).
    if (stated.hides_truncation or (stated.of_decoding and is_reordered)) and is_truncated(path):
        missing = inspect_video(path).missing
    else:
        step = 1 / frame_rate(stated.fps, seconds)
        inside = [((begin - first) * unit, (end - first) * unit) for begin, end in gaps]
        missing = (
            *((begin, end) for begin, end in inside if end - begin > step / 2),
            *stated.missing(path, seconds, first * unit, step, breaks_off=breaks_off),
        )
    end = float(seconds[-1]) + int(durations[-1]) * unit
    return PacketSizes(seconds, sizes, kinds.astype(np.int8), end, missing)


def _read(
    path: Video, container: InputContainer, stream: VideoStream
) -> tuple[list[_Packet], list[tuple[int, int]], bool]:
    """Read the packets up to the end, or up to an error after some of them.

    Returns:
        The intact packets, the times without any between them, and whether there are none at the end.
    """
    usual_duration = round(1 / (stated_rate(stream) * float(stream.time_base or 1)))
    intact: list[_Packet] = []
    gaps: list[tuple[int, int]] = []
    passed_over: list[int] | None = None  # the times of the packets since damage
    latest = -(2**62)
    try:
        for _, packet, is_damaged, breaks_off in checked_packets(path, container, stream):
            time = packet.dts if packet.pts is None else packet.pts  # AVI has decode times only
            if is_damaged or (passed_over is not None and not packet.is_keyframe):
                passed_over = passed_over or []
                if time is not None:
                    passed_over.append(time)
                continue
            if not packet.size or packet.is_discard or time is None:
                continue
            if passed_over is not None:
                end = latest + intact[-1].duration if intact else time
                gaps.append((min([end, *passed_over]), time))
            passed_over = [] if breaks_off else None
            kind = 0 if packet.is_keyframe else 1 + (time < latest)
            intact.append(_Packet(time, packet.size, kind, packet.duration or usual_duration))
            latest = max(latest, time)
    except VideoError:
        if not intact:
            raise
        return intact, gaps, True
    return intact, gaps, passed_over is not None
