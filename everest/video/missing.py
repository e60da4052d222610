"""Missing seconds of a video: lost inside it, or cut off at its end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Final

import av
import numpy as np
from av import VideoStream
from av.container import InputContainer
from numpy.typing import NDArray

from everest.system.types import Span
from everest.video.decoding import MAX_HELD_FRAMES, LostPackets
from everest.video.source import Video
from everest.video.stream import DEFAULT_RATE, decoder_errors, open_stream, read_packets, stated_rate
from everest.video.times import TIME_TOLERANCE
from everest.video.truncation import is_truncated

DURATION_PATTERN: Final = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")  # Matroska's hours, minutes, seconds
# Heuristic: how much of the stated duration may be missing from an intact file, in seconds and as a fraction.
TOLERATED_SECONDS: Final = 1.0
TOLERATED_FRACTION: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedTimes:
    """What a file states about the times of its video."""

    fps: float
    second: float  # one second in units of the time stamps
    end: float = -inf  # end of the video in seconds after time 0; -inf: not stated
    end_may_be_audio: bool = False  # the stated end may be the end of the sound
    is_end_reliable: bool = True  # an intact file lasts until the end
    may_go_on: bool = False  # a truncated file may have gone on after the end
    hides_truncation: bool = False  # in a truncated file, the end is an estimate; packets may be incomplete
    are_decode_times: bool = False  # the time stamps are times of decoding

    @classmethod
    def of(cls, path: Video, container: InputContainer, stream: VideoStream, count: int) -> StatedTimes:
        """Read what a file states; `count` is the number of packets found in it."""
        with decoder_errors(path):
            second = float(1 / stream.time_base) if stream.time_base else 1.0
            times = partial(cls, fps=stated_rate(stream), second=second)
            end_of_file = (container.duration or 0) / av.time_base or -inf
            match container.format.name.partition(",")[0]:
                case "mov":
                    end = float((stream.duration or 0) * (stream.time_base or 0)) or -inf
                    # In a fragmented file, this is the end of the fragments that were found.
                    end = end if stream.frames >= count else -inf
                    return times(end=end, is_end_reliable=False, may_go_on=True)
                case "avi":
                    end = float(stream.frames / (stream.average_rate or DEFAULT_RATE)) or -inf
                    return times(end=end, is_end_reliable=False, are_decode_times=True)
                case "flv":
                    return times(end=end_of_file, end_may_be_audio=True)
                case "asf":
                    return times(end=end_of_file, end_may_be_audio=True, hides_truncation=True)
                case "matroska":
                    stated = DURATION_PATTERN.match(stream.metadata.get("DURATION", ""))
                    if stated is not None:
                        hours, minutes, seconds = map(float, stated.groups())
                        return times(end=hours * 3600 + minutes * 60 + seconds)
                    return times(end=end_of_file if len(container.streams) == 1 else -inf)  # may be sound
                case _:  # transport streams and other formats state no end
                    return times()

    def missing(
        self,
        path: Video,
        seconds: NDArray[np.float64],
        start: float,
        frame_duration: float,
        *,
        lost: Sequence[LostPackets] = (),
    ) -> Iterator[Span]:
        """Yield the parts of a video that cannot be shown, inside it and at its end.

        Args:
            seconds: (F,) times at which the frames are shown, after the first frame.
            start: time of the first frame in seconds after time 0.
            frame_duration: seconds that a frame is shown.
            lost: the packets that cannot be decoded.
        """
        breaks_off = False  # the last packets cannot be decoded
        for frames, packets in lost:
            gap = _end_before_gap(seconds[:frames], frame_duration) if frames else -packets * frame_duration
            if frames < seconds.size:
                next_start = float(seconds[frames])
                if packets or next_start - gap > frame_duration / 2:
                    yield gap, max(next_start, gap + frame_duration)
            else:
                breaks_off = True
        ends_early = is_truncated(path)
        is_strict = breaks_off or ends_early
        end = _end_before_gap(seconds, frame_duration) if is_strict else float(seconds[-1]) + frame_duration
        stated_end = -inf if ends_early and self.hides_truncation else self.end - start
        tolerance = (
            frame_duration / 2 if is_strict else max(TOLERATED_SECONDS, TOLERATED_FRACTION * stated_end)
        )
        is_short = stated_end - end > tolerance
        may_be_audio = self.end_may_be_audio and stated_end > -inf and (is_strict or is_short)
        if may_be_audio and _lasts_as_stated_without_video(path):
            stated_end = -inf
        if stated_end > -inf and is_short and (is_strict or self.is_end_reliable):
            yield end, stated_end
        elif breaks_off or (ends_early and (stated_end == -inf or self.may_go_on)):
            yield end, inf


def _end_before_gap(seconds: NDArray[np.float64], frame_duration: float) -> float:
    """The end of the last frame before a gap near the end of frames shown at `seconds` (F,)."""
    # Frames that the decoder still held may be shown after missing frames.
    held = range(max(seconds.size - MAX_HELD_FRAMES, 0), seconds.size - 1)
    last = next((i for i in held if seconds[i + 1] - seconds[i] > 1.5 * frame_duration), seconds.size - 1)
    return float(seconds[last]) + frame_duration


def _lasts_as_stated_without_video(path: Video) -> bool:
    """Whether a stream other than the video ends when the file is stated to end."""
    with open_stream(path) as (container, stream):
        stated_end = (container.duration or 0) / av.time_base
        others = [other for other in container.streams if other is not stream]
        return any(
            float((packet.pts + (packet.duration or 0)) * packet.time_base) > stated_end - TOLERATED_SECONDS
            for packet in (read_packets(path, container, *others) if others else ())
            if packet.pts is not None
        )


def damage_text(missing: Iterable[Span], *, within: Span = (-inf, inf)) -> str | None:
    """A sentence about the missing seconds; None if no seconds are missing.

    Args:
        within: the part of the video to describe.
    """
    merged: list[Span] = []
    for start, end in sorted(missing):
        if end <= within[0] or start >= within[1]:
            continue
        if merged and start <= merged[-1][1] + TIME_TOLERANCE:
            merged_start, merged_end = merged.pop()
            start, end = merged_start, max(merged_end, end)
        merged.append((start, end))
    if not merged:
        return None
    parts = (
        f"after {start:.2f} s" if end == inf else f"from {start:.2f} to {end:.2f} s" for start, end in merged
    )
    return f"damaged: no intact frames {', '.join(parts)}"
