"""The sizes of a video's packets, read without decoding.

P packets. Where nothing moves, an encoder with a constant quality writes small packets: their sizes show when
something happens in a file of many hours, in the time that reading it takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from everest.video.decoding import judged_packets
from everest.video.reader import image_folder
from everest.video.source import Video
from everest.video.stream import VideoError, open_stream


@dataclass(frozen=True, slots=True, eq=False)
class PacketSizes:
    """The packets of a video in the order of display."""

    seconds: NDArray[np.float64]  # (P,) when each is shown, from the first frame
    sizes: NDArray[np.int64]  # (P,) bytes
    # (P,) 0: keyframe; 1: refers to earlier frames only; 2: is decoded after a frame that is shown later
    kinds: NDArray[np.int8]
    end: float  # seconds: when the last frame ends
    missing: tuple[tuple[float, float], ...]  # seconds without intact packets; inf: no end known


def packet_sizes(video: Video) -> PacketSizes:
    """Read the packets of a file; after damage, from the next keyframe on.

    Raises:
        VideoError: the file has no packet with a time, or is a folder of images.
    """
    if image_folder(video) is not None:
        raise VideoError(video, "a folder of images has no seconds; make a video of it with prepare encode")
    times, sizes, kinds, durations = [], [], [], []
    losses: list[tuple[int, int | None]] = []  # by time stamps; None: no packet follows
    latest, reason = -(2**62), "no packet has a time"
    dropped: list[int] | None = None  # the times of packets since a damage
    with open_stream(video) as (container, stream):
        unit = float(stream.time_base or 1)
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        try:
            for _, packet, is_damaged, breaks_off in judged_packets(video, container, stream):
                time = packet.dts if packet.pts is None else packet.pts  # AVI has decode times only
                if is_damaged or (dropped is not None and not packet.is_keyframe):
                    dropped = [*(dropped or ()), *([] if time is None else [time])]
                    continue
                if not packet.size or packet.is_discard or time is None:
                    continue
                if dropped is not None:
                    losses.append((min([latest + durations[-1] if times else time, *dropped]), time))
                dropped = [] if breaks_off else None
                times.append(time)
                sizes.append(packet.size)
                kinds.append(0 if packet.is_keyframe else 1 + (time < latest))
                durations.append(packet.duration or round(1 / (rate * unit)))
                latest = max(latest, time)
        except VideoError as error:
            dropped, reason = dropped or [], error.reason
    if not times:
        raise VideoError(video, reason)
    if dropped is not None:
        losses.append((min([latest + durations[-1], *dropped]), None))
    stamps = np.array(times, dtype=np.int64)
    order = np.argsort(stamps, kind="stable")
    first = stamps[order[0]]
    seconds = np.asarray((stamps[order] - first) * unit, dtype=np.float64)
    spans = [((begin - first) * unit, inf if end is None else (end - first) * unit) for begin, end in losses]
    return PacketSizes(
        seconds=seconds,
        sizes=np.array(sizes, dtype=np.int64)[order],
        kinds=np.array(kinds, dtype=np.int8)[order],
        end=float(seconds[-1]) + durations[order[-1]] * unit,
        missing=tuple((float(begin), float(end)) for begin, end in spans if end - begin > 0.5 / rate),
    )
