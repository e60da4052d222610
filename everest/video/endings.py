"""Which seconds are missing at the end of a file: by the end that it states, and by how it breaks off."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import inf
from typing import Final

import av
import numpy as np
from av import VideoStream
from av.container import InputContainer
from numpy.typing import NDArray

from everest.video.cuts import is_cut
from everest.video.source import Video
from everest.video.stream import open_stream, packets

MOST_HELD: Final = 16  # frames that a decoder holds back
DURATION: Final = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")  # of Matroska: hours, minutes, seconds
# Our choice: how much of the stated duration may be missing from an intact file, in seconds and as a share.
CUT_SECONDS: Final = 1.0
CUT_SHARE: Final = 0.1


def promised_seconds(path: Video, container: InputContainer, stream: VideoStream, count: int) -> float:
    """The end of the video after time 0, in seconds, that a file states; -inf if it states none.

    Of FLV and ASF, it may be the end of the sound.

    Args:
        count: packets of the stream that were found.
    """
    name = container.format.name
    whole = (container.duration or 0) / av.time_base or -inf
    if name == "avi":
        return float(stream.frames / (stream.average_rate or 25)) or -inf
    if name.startswith("mov"):
        if stream.frames < count:  # in fragments: the duration is that of those that were found
            return -inf
        return float((stream.duration or 0) * (stream.time_base or 0)) or -inf
    if name in ("flv", "asf"):
        # FFmpeg replaces the end that an ASF file states by an estimate if the file is cut.
        return -inf if name == "asf" and is_cut(path) else whole
    if not name.startswith("matroska"):  # transport streams and others state none
        return -inf
    stamp = DURATION.match(stream.metadata.get("DURATION", ""))
    if stamp is not None:
        hours, minutes, seconds = map(float, stamp.groups())
        return hours * 3600 + minutes * 60 + seconds
    return whole if len(container.streams) == 1 else -inf  # else the sound may be what lasts longer


def _sound_lasts(path: Video) -> bool:
    """Whether another stream than the video reaches the end that a file states."""
    with open_stream(path) as (container, stream):
        promised = (container.duration or 0) / av.time_base
        others = [other for other in container.streams if other is not stream]
        return any(
            float((packet.pts + (packet.duration or 0)) * packet.time_base) > promised - CUT_SECONDS
            for packet in (packets(path, container, *others) if others else ())
            if packet.pts is not None
        )


def end_before(seconds: NDArray[np.float64], step: float) -> float:
    """Return the end of the last frame before a gap near the end of frames shown at `seconds` (F,)."""
    # Frames that the decoder still held may be shown after missing ones.
    held = range(max(seconds.size - MOST_HELD, 0), seconds.size - 1)
    last = next((i for i in held if seconds[i + 1] - seconds[i] > 1.5 * step), seconds.size - 1)
    return float(seconds[last]) + step


def missing_end(
    path: Video,
    format_name: str,
    promised: float,
    seconds: NDArray[np.float64],
    step: float,
    *,
    breaks_off: bool,
) -> Iterator[tuple[float, float]]:
    """Yield what is missing at the end, in seconds from the first frame, if anything is; inf: no end known.

    Args:
        promised: the end that the file states, from the first frame; -inf if it states none.
        seconds: when its frames are shown, (F,).
        step: seconds that a frame is shown.
        breaks_off: the last packets cannot be decoded.
    """
    cut = is_cut(path)
    is_strict = breaks_off or cut
    end = end_before(seconds, step) if is_strict else float(seconds[-1]) + step
    least = step / 2 if is_strict else max(CUT_SECONDS, CUT_SHARE * promised)
    is_short = promised - end > least
    if format_name in ("flv", "asf") and (is_strict or is_short) and promised > -inf and _sound_lasts(path):
        promised, is_short = -inf, False  # that of the sound
    if is_short and (is_strict or not format_name.startswith(("mov", "avi"))):
        yield end, promised
    elif breaks_off or (cut and (promised == -inf or format_name.startswith("mov"))):
        yield end, inf
