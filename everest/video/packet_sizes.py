"""The sizes of a video's packets, read without decoding.

Only cut ASF files, and cut AVI files with B-frames, are decoded, to find their last intact frame.

P packets. Where nothing moves, an encoder with a constant quality writes small packets: their sizes show when
something happens in a file of many hours, in the time that reading it takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from av import VideoStream
from av.container import InputContainer
from numpy.typing import NDArray

from everest.video.cuts import is_cut
from everest.video.decoding import checked_packets
from everest.video.file import inspect_video
from everest.video.images import NO_SECONDS, image_folder
from everest.video.missing import Span, missing_end, promised_seconds
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
    missing: tuple[Span, ...]  # without intact packets


def packet_sizes(video: Video) -> PacketSizes:
    """Read the packets of a file; after damage, from the next keyframe on."""
    if image_folder(video) is not None:
        raise VideoError(video, NO_SECONDS)
    with open_stream(video) as (container, stream):
        unit = float(stream.time_base or 1)
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        packets = _read(video, container, stream, usual_duration=round(1 / (rate * unit)))
        format_name, is_reordered = container.format.name, stream.codec_context.has_b_frames
        with decoder_errors(video):
            promised = promised_seconds(video, container, stream, len(packets.times))
    if not packets.times:
        raise VideoError(video, packets.problem)
    stamps = np.array(packets.times, dtype=np.int64)
    order = np.argsort(stamps, kind="stable")
    first = int(stamps[order[0]])
    seconds = np.asarray((stamps[order] - first) * unit, dtype=np.float64)
    # Packets show neither which of them are incomplete (ASF) nor when a B-frame is shown (AVI).
    if (format_name == "asf" or (format_name == "avi" and is_reordered)) and is_cut(video):
        missing = inspect_video(video).missing
    else:
        step, promised = 1 / frame_rate(rate, seconds), promised - first * unit
        gaps = [((begin - first) * unit, (end - first) * unit) for begin, end in packets.gaps]
        breaks_off = packets.passed_over is not None
        missing = (
            *((begin, end) for begin, end in gaps if end - begin > step / 2),
            *missing_end(video, format_name, promised, seconds, step, breaks_off=breaks_off),
        )
    return PacketSizes(
        seconds=seconds,
        sizes=np.array(packets.sizes, dtype=np.int64)[order],
        kinds=np.array(packets.kinds, dtype=np.int8)[order],
        end=float(seconds[-1]) + packets.durations[order[-1]] * unit,
        missing=missing,
    )


@dataclass(slots=True)
class _Packets:
    """The intact packets of a stream in the order of the file; times in its units."""

    times: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)  # begin and end of what is passed over
    passed_over: list[int] | None = None  # the times of the packets since a damage, if there was one
    problem: str = "no packet has a time"


def _read(video: Video, container: InputContainer, stream: VideoStream, *, usual_duration: int) -> _Packets:
    """Read the packets up to the end, or up to an error."""
    found = _Packets()
    latest = -(2**62)
    try:
        for _, packet, is_damaged, breaks_off in checked_packets(video, container, stream):
            time = packet.dts if packet.pts is None else packet.pts  # AVI has decode times only
            if is_damaged or (found.passed_over is not None and not packet.is_keyframe):
                found.passed_over = found.passed_over or []
                if time is not None:
                    found.passed_over.append(time)
                continue
            if not packet.size or packet.is_discard or time is None:
                continue
            if found.passed_over is not None:
                end = latest + found.durations[-1] if found.times else time
                found.gaps.append((min([end, *found.passed_over]), time))
            found.passed_over = [] if breaks_off else None
            found.times.append(time)
            found.sizes.append(packet.size)
            found.kinds.append(0 if packet.is_keyframe else 1 + (time < latest))
            found.durations.append(packet.duration or usual_duration)
            latest = max(latest, time)
    except VideoError as error:
        found.passed_over, found.problem = found.passed_over or [], error.reason
    return found
