"""Subtitles: SubRip, `.srt`, and WebVTT, `.vtt`; a line of a cue is the class of a bout.

They have no field for the origin and the subject of a bout.

Source: w3.org/TR/webvtt1.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import mul
from pathlib import Path
from typing import Final

from everest.annotations.bout import Bout, Bouts, from_milliseconds, milliseconds
from everest.annotations.matching import VideoFinder, VideoTimes
from everest.annotations.records import LeftOut, in_line
from everest.errors import DataError, shown

_TIME: Final = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{3})"
_TIMES: Final = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s|$)")
_TIME_LINE: Final = re.compile(r"\s*\d+:[\d:.,]*\s*-->")  # also damaged times
_NO_CUE: Final = ("WEBVTT", "NOTE", "STYLE", "REGION")  # how other blocks of WebVTT begin
UNITS_MS: Final = (3_600_000, 60_000, 1000, 1)  # of an hour, a minute, a second and a millisecond
_TAG: Final = re.compile(r"</?[^>]*>")


def read(path: Path, fps: float | None, videos: VideoFinder, left_out: LeftOut) -> Iterator[Bout]:
    """Read a bout for each line of each cue; the video has the name of the file."""
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    is_vtt = lines[0].startswith("WEBVTT")
    for is_empty, block in groupby(enumerate(lines, start=1), key=lambda row: not row[1].strip()):
        if is_empty:
            continue
        rows = list(block)  # numbers and lines
        is_cue = not (is_vtt and rows[0][1].startswith(_NO_CUE))
        is_head = is_vtt and rows[0][0] == 1
        if is_head:
            rows = rows[1:]  # after the line WEBVTT
        # A number or a name may precede the times.
        place = next((place for place, (_, line) in enumerate(rows[:2]) if "-->" in line), -1)
        labels = rows[place + 1 :]
        for number, line in labels:
            with in_line(number):
                if _TIME_LINE.match(line):
                    text = shown(line.strip())
                    raise ValueError(f"'{text}' is in the text of a cue; put an empty line between cues")
        if place < 0 and not is_cue:
            if not is_head:
                left_out[f"block {rows[0][1].split()[0]}"] += 1
            continue
        number, line = rows[max(place, 0)]
        with in_line(number):
            match = _TIMES.match(line)
            if match is None:
                raise ValueError(f"'{shown(line)}' has no times such as 00:00:01.000 --> 00:00:02.000")
            numbers = [int(group or 0) for group in match.groups()]
            start, end = (sum(map(mul, part, UNITS_MS)) for part in (numbers[:4], numbers[4:]))
            start, end = from_milliseconds(start, end)
            texts = [html.unescape(_TAG.sub("", text)) if is_vtt else text for _, text in labels]
            classes = [label for text in texts if (label := text.strip())]
            if not classes:
                left_out["cue without a text"] += 1
            for label in classes:
                yield Bout(video=path.stem, start=start, end=end, label=label)


def _write(bouts: Bouts, times: Mapping[str, VideoTimes], classes: Sequence[str], *, is_vtt: bool) -> str:
    """The cues of the bouts of one video; SubRip numbers them."""
    ((_, video_bouts),) = bouts.items()
    cues = ["WEBVTT\n"] if is_vtt else []
    for number, bout in enumerate(video_bouts, start=1):
        stamps = []  # hours:minutes:seconds.milliseconds
        for time in milliseconds(bout):
            minutes, rest = divmod(time, UNITS_MS[1])
            second, thousandths = divmod(rest, UNITS_MS[2])
            point = "." if is_vtt else ","
            stamps.append(f"{minutes // 60:02}:{minutes % 60:02}:{second:02}{point}{thousandths:03}")
        head = "" if is_vtt else f"{number}\n"
        label = html.escape(bout.label, quote=False) if is_vtt else bout.label
        if _TIME_LINE.match(label):  # SubRip has no escapes
            reason = "reads as the times of a cue; rename the class, or write vtt"
            raise DataError(f"{shown(bout.video)}: the label '{shown(label)}' {reason}")
        cues.append(f"{head}{' --> '.join(stamps)}\n{label}\n")
    return "\n".join(cues)


write_srt: Final = partial(_write, is_vtt=False)
write_vtt: Final = partial(_write, is_vtt=True)
