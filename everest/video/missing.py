"""Which seconds of a video cannot be shown: lost inside it, or missing at its end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Final

import av
import numpy as np
from av import VideoStream
from av.container import InputContainer
from numpy.typing import NDArray

from everest.video.cuts import is_cut
from everest.video.decoding import MOST_HELD, Loss
from everest.video.source import Video
from everest.video.stream import open_stream, packets
from everest.video.times import TIME_TOLERANCE

DURATION: Final = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")  # of Matroska: hours, minutes, seconds
# Our choice: how much of the stated duration may be missing from an intact file, in seconds and as a share.
CUT_SECONDS: Final = 1.0
CUT_SHARE: Final = 0.1

Span = tuple[float, float]  # begin and end in seconds from the first frame; inf: no end known


def promised_seconds(path: Video, container: InputContainer, stream: VideoStream, count: int) -> float:
    """The end of the video after time 0, in seconds, that a file states; -inf if it states none.

    Of FLV and ASF, it may be the end of the sound.

    Args:
        count: packets of the stream that were found.
    """
    name = container.format.name
    of_file = (container.duration or 0) / av.time_base or -inf
    if name == "avi":
        return float(stream.frames / (stream.average_rate or 25)) or -inf
    if name.startswith("mov"):
        if stream.frames < count:  # in fragments: the duration is that of those that were found
            return -inf
        return float((stream.duration or 0) * (stream.time_base or 0)) or -inf
    if name in ("flv", "asf"):
        # FFmpeg replaces the end that an ASF file states by an estimate if the file is cut.
        return -inf if name == "asf" and is_cut(path) else of_file
    if not name.startswith("matroska"):  # transport streams and others state none
        return -inf
    stated = DURATION.match(stream.metadata.get("DURATION", ""))
    if stated is not None:
        hours, minutes, seconds = map(float, stated.groups())
        return hours * 3600 + minutes * 60 + seconds
    return of_file if len(container.streams) == 1 else -inf  # else the sound may be what lasts longer


def missing_spans(
    path: Video,
    format_name: str,
    promised: float,
    seconds: NDArray[np.float64],
    step: float,
    *,
    losses: Sequence[Loss] = (),
    breaks_off: bool = False,
) -> Iterator[Span]:
    """Yield the parts of a video that cannot be shown, inside it and at its end.

    Args:
        promised: the end that the file states, from the first frame; -inf if it states none.
        seconds: when its frames are shown, (F,).
        step: seconds that a frame is shown.
        losses: what cannot be decoded.
        breaks_off: the last packets cannot be decoded, whatever the losses are.
    """
    for loss in losses:
        begin = _end_before_gap(seconds[: loss.frames], step) if loss.frames else -loss.packets * step
        if loss.frames < seconds.size:
            end = float(seconds[loss.frames])
            if loss.packets or end - begin > step / 2:
                yield begin, max(end, begin + step)
        else:
            breaks_off = True
    cut = is_cut(path)
    is_strict = breaks_off or cut
    end = _end_before_gap(seconds, step) if is_strict else float(seconds[-1]) + step
    least = step / 2 if is_strict else max(CUT_SECONDS, CUT_SHARE * promised)
    is_short = promised - end > least
    may_be_of_sound = format_name in ("flv", "asf") and promised > -inf
    if may_be_of_sound and (is_strict or is_short) and _lasts_as_stated_without_video(path):
        promised, is_short = -inf, False
    if is_short and (is_strict or not format_name.startswith(("mov", "avi"))):
        yield end, promised
    elif breaks_off or (cut and (promised == -inf or format_name.startswith("mov"))):
        yield end, inf


def _end_before_gap(seconds: NDArray[np.float64], step: float) -> float:
    """The end of the last frame before a gap near the end of frames shown at `seconds` (F,)."""
    # Frames that the decoder still held may be shown after missing ones.
    held = range(max(seconds.size - MOST_HELD, 0), seconds.size - 1)
    last = next((i for i in held if seconds[i + 1] - seconds[i] > 1.5 * step), seconds.size - 1)
    return float(seconds[last]) + step


def _lasts_as_stated_without_video(path: Video) -> bool:
    """Whether a stream other than the video ends when the file is stated to end."""
    with open_stream(path) as (container, stream):
        stated = (container.duration or 0) / av.time_base
        others = [other for other in container.streams if other is not stream]
        return any(
            float((packet.pts + (packet.duration or 0)) * packet.time_base) > stated - CUT_SECONDS
            for packet in (packets(path, container, *others) if others else ())
            if packet.pts is not None
        )


def damage_text(missing: Iterable[Span], *, within: Span = (-inf, inf)) -> str | None:
    """A sentence about the seconds that are missing; None if none are.

    Args:
        within: the part of the video to describe.
    """
    merged: list[Span] = []
    for begin, end in sorted(missing):
        if end <= within[0] or begin >= within[1]:
            continue
        if merged and begin <= merged[-1][1] + TIME_TOLERANCE:
            earlier, until = merged.pop()
            begin, end = earlier, max(until, end)
        merged.append((begin, end))
    if not merged:
        return None
    parts = (
        f"after {begin:.2f} s" if end == inf else f"from {begin:.2f} to {end:.2f} s" for begin, end in merged
    )
    return f"damaged: no intact frames {', '.join(parts)}"
