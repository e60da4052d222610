"""Subtitles: SubRip (`.srt`) and WebVTT (`.vtt`); a line of a cue is the class of a bout.

Subtitles have no field for the origin and the subject of a bout.

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

from everest.errors import DataError, shorten
from everest.video.frame_borders import VideoTimes
from everest_workflows.annotations.bout import Bout, Bouts, from_milliseconds, to_milliseconds
from everest_workflows.annotations.matching import VideoFinder
from everest_workflows.annotations.records import LeftOut, line_errors

_TIME: Final = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{3})"
_TIMES: Final = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s|$)")
_TIME_LINE: Final = re.compile(r"\s*\d+:[\d:.,]*\s*-->")  # also matches damaged times
_NO_CUE: Final = ("WEBVTT", "NOTE", "STYLE", "REGION")  # how other blocks of WebVTT begin
UNITS_MS: Final = (3_600_000, 60_000, 1000, 1)  # ms per hour, minute, second and millisecond
_TAG: Final = re.compile(r"</?[^>]*>")


def read(path: Path, fps: float | None, videos: VideoFinder, left_out: LeftOut) -> Iterator[Bout]:
    """Read a bout for each line of each cue; the video is named like the file."""
    with left_out.reading("", [path.stem]):
        yield from _read_cues(path, left_out)


def _read_cues(path: Path, left_out: LeftOut) -> Iterator[Bout]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    is_vtt = lines[0].startswith("WEBVTT")
    for is_empty, block in groupby(enumerate(lines, start=1), key=lambda row: not row[1].strip()):
        if is_empty:
            continue
        rows = list(block)  # numbers and lines
        is_cue = not (is_vtt and rows[0][1].startswith(_NO_CUE))
        is_head = is_vtt and rows[0][0] == 1
        if is_head:
            rows = rows[1:]  # skip the line WEBVTT
        # A number or a name may precede the times.
        index = next((index for index, (_, line) in enumerate(rows[:2]) if "-->" in line), -1)
        labels = rows[index + 1 :]
        for number, line in labels:
            with line_errors(number):
                if _TIME_LINE.match(line):
                    text = shorten(line.strip())
                    raise ValueError(f"'{text}' is in the text of a cue; put an empty line between cues")
        if index < 0 and not is_cue:
            if not is_head:
                left_out[f"block {rows[0][1].split()[0]}"] += 1
            continue
        number, line = rows[max(index, 0)]
        with line_errors(number):
            match = _TIMES.match(line)
            if match is None:
                raise ValueError(f"'{shorten(line)}' has no times such as 00:00:01.000 --> 00:00:02.000")
            fields = [int(group or 0) for group in match.groups()]
            start, end = (sum(map(mul, part, UNITS_MS)) for part in (fields[:4], fields[4:]))
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
        for time in to_milliseconds(bout):
            minutes, remainder = divmod(time, UNITS_MS[1])
            seconds, thousandths = divmod(remainder, UNITS_MS[2])
            point = "." if is_vtt else ","
            stamps.append(f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}{point}{thousandths:03}")
        number_line = "" if is_vtt else f"{number}\n"
        label = html.escape(bout.label, quote=False) if is_vtt else bout.label
        if _TIME_LINE.match(label):  # SubRip has no escapes
            reason = "reads as the times of a cue; rename the class, or write vtt"
            raise DataError(f"{shorten(bout.video)}: the label '{shorten(label)}' {reason}")
        cues.append(f"{number_line}{' --> '.join(stamps)}\n{label}\n")
    return "\n".join(cues)


write_srt: Final = partial(_write, is_vtt=False)
write_vtt: Final = partial(_write, is_vtt=True)
