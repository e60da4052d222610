"""The sizes of a video's packets, read without decoding.

P packets. Where nothing moves, an encoder with a constant quality writes small packets: their sizes show when
something happens in a file of many hours, in the time that reading it takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everest.video.reader import image_folder
from everest.video.source import Video
from everest.video.stream import VideoError, open_stream, packets


@dataclass(frozen=True, slots=True, eq=False)
class PacketSizes:
    """The packets of a video in the order of display."""

    seconds: NDArray[np.float64]  # (P,) when each is shown, from the first frame
    sizes: NDArray[np.int64]  # (P,) bytes
    # (P,) 0: keyframe; 1: refers to earlier frames only; 2: is decoded after a frame that is shown later
    kinds: NDArray[np.int8]
    end: float  # seconds: when the last frame ends
    damage: str | None  # why reading ended before the end of the file


def packet_sizes(video: Video) -> PacketSizes:
    """Read the packets of a file up to its end, or up to the first damage.

    Raises:
        VideoError: the file has no packet with a time, or is a folder of images.
    """
    if image_folder(video) is not None:
        raise VideoError(video, "a folder of images has no seconds; make a video of it with prepare encode")
    times, sizes, kinds, durations = [], [], [], []
    damage, latest = None, -(2**62)
    with open_stream(video) as (container, stream):
        unit = float(stream.time_base or 1)
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        try:
            for packet in packets(video, container, stream):
                if packet.is_corrupt:
                    damage = "a damaged packet"
                    break
                time = packet.dts if packet.pts is None else packet.pts  # AVI has decode times only
                if not packet.size or packet.is_discard or time is None:
                    continue
                times.append(time)
                sizes.append(packet.size)
                kinds.append(0 if packet.is_keyframe else 1 + (time < latest))
                durations.append(packet.duration or 0)
                latest = max(latest, time)
        except VideoError as error:
            damage = error.reason
    if not times:
        raise VideoError(video, damage or "no packet has a time")
    stamps = np.array(times, dtype=np.int64)
    order = np.argsort(stamps, kind="stable")
    seconds = np.asarray((stamps[order] - stamps[order[0]]) * unit, dtype=np.float64)
    return PacketSizes(
        seconds=seconds,
        sizes=np.array(sizes, dtype=np.int64)[order],
        kinds=np.array(kinds, dtype=np.int8)[order],
        end=float(seconds[-1]) + (durations[order[-1]] * unit or 1 / rate),
        damage=damage,
    )
