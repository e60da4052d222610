"""The sizes of a video's packets, read without decoding.

Only cut ASF files, and cut AVI files with B-frames, are decoded, to find their last intact frame.

P packets. Where nothing moves, an encoder with a constant quality writes small packets: their sizes show when
something happens in a file of many hours, in the time that reading it takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everest.video.cuts import is_cut, missing_end, promised_seconds
from everest.video.decoding import judged_packets
from everest.video.file import inspect_video
from everest.video.reader import NO_SECONDS, image_folder
from everest.video.source import Video
from everest.video.stream import VideoError, decoder_errors, open_stream
from everest.video.times import frame_rate


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
    """Read the packets of a file; after damage, from the next keyframe on."""
    if image_folder(video) is not None:
        raise VideoError(video, NO_SECONDS)
    times, sizes, kinds, durations = [], [], [], []
    losses: list[tuple[int, int]] = []  # by time stamps
    latest, reason = -(2**62), "no packet has a time"
    dropped: list[int] | None = None  # the times of packets since a damage
    with open_stream(video) as (container, stream):
        unit = float(stream.time_base or 1)
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        try:
            for _, packet, is_damaged, breaks_off in judged_packets(video, container, stream):
                time = packet.dts if packet.pts is None else packet.pts  # AVI has decode times only
                if is_damaged or (dropped is not None and not packet.is_keyframe):
                    dropped = dropped or []
                    if time is not None:
                        dropped.append(time)
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
        name, is_reordered = container.format.name, stream.codec_context.has_b_frames
        with decoder_errors(video):
            promised = promised_seconds(video, container, stream, len(times))
    if not times:
        raise VideoError(video, reason)
    stamps = np.array(times, dtype=np.int64)
    order = np.argsort(stamps, kind="stable")
    first = int(stamps[order[0]])
    seconds = np.asarray((stamps[order] - first) * unit, dtype=np.float64)
    # Packets show neither which of them are incomplete (ASF) nor when a B-frame is shown (AVI).
    if (name == "asf" or (name == "avi" and is_reordered)) and is_cut(video):
        missing = inspect_video(video).missing
    else:
        spans = [((begin - first) * unit, (end - first) * unit) for begin, end in losses]
        step, breaks_off = 1 / frame_rate(rate, seconds), dropped is not None
        missing = (
            *((begin, end) for begin, end in spans if end - begin > step / 2),
            *missing_end(video, name, promised - first * unit, seconds, step, breaks_off=breaks_off),
        )
    return PacketSizes(
        seconds=seconds,
        sizes=np.array(sizes, dtype=np.int64)[order],
        kinds=np.array(kinds, dtype=np.int8)[order],
        end=float(seconds[-1]) + durations[order[-1]] * unit,
        missing=missing,
    )
