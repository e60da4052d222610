"""The times of a video's packets, read without decoding.

Only truncated ASF files, and truncated AVI files with B-frames, are decoded, to find their last intact frame.

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
from everest.video.images import NO_SECONDS, image_folder
from everest.video.metadata import inspect_video
from everest.video.missing import StatedTimes
from everest.video.packets import packets_of
from everest.video.source import Video
from everest.video.stream import VideoError, open_stream, stated_rate
from everest.video.times import frame_rate
from everest.video.truncation import is_truncated


@dataclass(frozen=True, slots=True, eq=False)
class PacketTimes:
    """The packets of a video in the order of display."""

    seconds: NDArray[np.float64]  # (P,) when each packet is shown, in seconds after the first frame
    end: float  # when the last frame ends, in seconds
    missing: tuple[Span, ...]  # parts without intact packets


class _Packet(NamedTuple):
    """An intact packet; times in the units of its stream."""

    time: int
    duration: int


def packet_times(path: Video) -> PacketTimes:
    """Read the packets of a file; after damage, from the next keyframe on. VideoError without a time."""
    if image_folder(path) is not None:
        raise VideoError(path, NO_SECONDS)
    with open_stream(path) as (container, stream):
        time_base = float(stream.time_base or 1)
        packets, gaps, breaks_off = _read(path, container, stream)
        stated = StatedTimes.of(path, container, stream, len(packets))
        is_reordered = stream.codec_context.has_b_frames
    if not packets:
        raise VideoError(path, "no packet has a time")
    packets.sort(key=attrgetter("time"))
    times, durations = np.array(packets, dtype=np.int64).T
    first = int(times[0])
    seconds = (times - first) * time_base
    # Packets show neither which of them are incomplete (ASF) nor when a B-frame is shown (AVI).
    if (stated.hides_truncation or (stated.are_decode_times and is_reordered)) and is_truncated(path):
        missing = inspect_video(path).missing
    else:
        frame_duration = 1 / frame_rate(stated.fps, seconds)
        gap_spans = [((start - first) * time_base, (end - first) * time_base) for start, end in gaps]
        missing = (
            *((start, end) for start, end in gap_spans if end - start > frame_duration / 2),
            *stated.missing(path, seconds, first * time_base, frame_duration, breaks_off=breaks_off),
        )
    end = float(seconds[-1]) + int(durations[-1]) * time_base
    return PacketTimes(seconds, end, missing)


def _read(
    path: Video, container: InputContainer, stream: VideoStream
) -> tuple[list[_Packet], list[tuple[int, int]], bool]:
    """Read the packets up to the end, or up to an error after some of them.

    Returns:
        The intact packets, the (start, end) times of gaps between them, and whether the end is missing.
    """
    usual_duration = round(1 / (stated_rate(stream) * float(stream.time_base or 1)))
    packets: list[_Packet] = []
    gaps: list[tuple[int, int]] = []
    skipped_times: list[int] | None = None  # the times of the packets since damage
    latest = -(2**62)
    try:
        for _, packet, is_damaged, breaks_off in packets_of(path, container, stream).read():
            time = packet.dts if packet.pts is None else packet.pts  # AVI has decode times only
            if is_damaged or (skipped_times is not None and not packet.is_keyframe):
                skipped_times = skipped_times or []
                if time is not None:
                    skipped_times.append(time)
                continue
            if not packet.size or packet.is_discard or time is None:
                continue
            if skipped_times is not None:
                end = latest + packets[-1].duration if packets else time
                gaps.append((min([end, *skipped_times]), time))
            skipped_times = [] if breaks_off else None
            packets.append(_Packet(time, packet.duration or usual_duration))
            latest = max(latest, time)
    except VideoError:
        if not packets:
            raise
        return packets, gaps, True
    return packets, gaps, skipped_times is not None
