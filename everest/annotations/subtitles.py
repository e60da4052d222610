"""Subtitles: SubRip, `.srt`, and WebVTT, `.vtt`; a line of a cue is the class of a bout.

SubRip has no field for the origin and the subject of a bout. WebVTT has them as a class and a voice:
`<v SUBJECT><c.automated>LABEL</c>`, which players do not show.

Source: w3.org/TR/webvtt1.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from everest.annotations.bout import Bout, Origin, origin_in
from everest.annotations.matching import VideoNames
from everest.annotations.times import VideoTimes, from_milliseconds, milliseconds

_TIME: Final = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{3})"
_TIMES: Final = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}")
_PERCENT: Final = re.compile(r" \d{1,3}%$")  # after the labels that `everest predict --format srt` writes
_VOICE: Final = re.compile(r"^<v(?:\.[^ >]*)? ([^>]*)>")
_CLASS: Final = re.compile(r"<c\.([^>]*)>")
_TAG: Final = re.compile(r"</?[^>]*>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cue:
    """Lines of text that are shown for some time."""

    start: int  # milliseconds
    end: int
    lines: tuple[str, ...]


def srt_text(cues: Iterable[Cue]) -> str:
    """The SubRip file of some cues."""
    return "\n".join(
        "\n".join([str(number), f"{_stamp(cue.start, ',')} --> {_stamp(cue.end, ',')}", *cue.lines, ""])
        for number, cue in enumerate(cues, start=1)
    )


def bouts_srt_text(bouts: Mapping[str, Sequence[Bout]], times: Mapping[str, VideoTimes]) -> str:
    """The SubRip file of the bouts of one video."""
    ((_, of_video),) = bouts.items()
    spans = [(*milliseconds(bout), bout.label) for bout in of_video]
    return srt_text(Cue(start=start, end=end, lines=(label,)) for start, end, label in spans)


def bouts_vtt_text(bouts: Mapping[str, Sequence[Bout]], times: Mapping[str, VideoTimes]) -> str:
    """The WebVTT file of the bouts of one video."""
    ((_, of_video),) = bouts.items()
    blocks = ["WEBVTT\n"]
    for bout in of_video:
        start, end = milliseconds(bout)
        voice = f"<v {html.escape(bout.subject, quote=False)}>" if bout.subject else ""
        text = f"{voice}<c.{bout.origin}>{html.escape(bout.label, quote=False)}</c>"
        blocks.append(f"{_stamp(start, '.')} --> {_stamp(end, '.')}\n{text}\n")
    return "\n".join(blocks)


def read_subtitles(path: Path, fps: float | None, videos: VideoNames) -> list[Bout]:
    """Read a bout for each line of each cue; the video has the name of the file.

    If each line ends with a percentage, a model wrote it; it is removed, and the bouts are automated.
    """
    text = path.read_text(encoding="utf-8-sig")
    is_vtt = text.startswith("WEBVTT")
    lines: list[tuple[float, float, str]] = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        rows = block.strip("\n").split("\n")
        times = next((number for number, row in enumerate(rows) if _TIMES.match(row)), None)
        if times is not None:
            start, end = from_milliseconds(*_span(rows[times]))
            lines += [(start, end, row.strip()) for row in rows[times + 1 :] if row.strip()]
    if not lines and "-->" in text:
        raise ValueError("its cues have no times such as 00:00:01.000 --> 00:00:02.000")
    has_percent = bool(lines) and all(_PERCENT.search(line) for _, _, line in lines)
    bouts = []
    for start, end, line in lines:
        label, subject = _PERCENT.sub("", line) if has_percent else line, ""
        origin: Origin = "automated" if has_percent else "manual"
        if is_vtt:
            voice, known = _VOICE.search(label), _CLASS.search(label)
            subject = html.unescape(voice[1]) if voice else ""
            origin = origin_in(known[1] if known else "", origin)
            label = html.unescape(_TAG.sub("", label)).strip()
        bouts.append(Bout(video=path.stem, start=start, end=end, label=label, origin=origin, subject=subject))
    return bouts


def _span(line: str) -> tuple[int, int]:
    """Start and end of a cue in milliseconds."""
    found = _TIMES.match(line)
    assert found is not None
    numbers = [int(group or 0) for group in found.groups()]
    start, end = (
        ((hours * 60 + minutes) * 60 + seconds) * 1000 + thousandths
        for hours, minutes, seconds, thousandths in (numbers[:4], numbers[4:])
    )
    return start, end


def _stamp(time: int, point: str) -> str:
    """Format milliseconds as hours:minutes:seconds.milliseconds."""
    seconds, thousandths = divmod(time, 1000)
    minutes, second = divmod(seconds, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}{point}{thousandths:03}"
