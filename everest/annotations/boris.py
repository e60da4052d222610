"""BORIS projects, `.boris`: one JSON file with the behaviors, and the events of each observation.

Events are presses of a key, of which two make a state and one a point. Their times run on over the queued
media of an observation: a time after the end of the first file is in the second. They contain the time offset
of the observation.

Source: projects saved by BORIS 7 to 9 (github.com/olivierfriard/BORIS, tests/files, and issue 468 on the
offset).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Literal

from everest.annotations.bout import LONGEST, Bout, Span, merge_overlaps, origin_in, unscored_bouts
from everest.annotations.matching import VideoNames, stem
from everest.annotations.times import VideoTimes
from everest.errors import DataError, shown
from everest.system.text import json_text, read_json

Status = Literal["START", "STOP", "POINT"]
LEEWAY: Final = 1.0  # seconds after the end of the media: lengths are rounded, and players stop late
FIX_UNPAIRED: Final = "fix it in BORIS (Observations, Fix unpaired events)"
NO_SUBJECT: Final = "No focal subject"
NO_TIME: Final = "an event has the time NaN; correct or delete it in BORIS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A coded event."""

    time: float
    status: Status | None  # None: unknown; every second event of a state is its stop
    behavior: str
    subject: str
    modifiers: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The media of an observation, which are played one after the other."""

    where: str  # file and name, for messages
    media: tuple[str, ...]
    seconds: tuple[float | None, ...]  # their lengths; None: not stated
    offset: float = 0.0
    interval: Span = (0.0, 0.0)  # the observed part, without the offset; an end of 0 is the end of the media

    def bouts(self, start: float, end: float, event: Event, videos: VideoNames) -> Iterator[Bout]:
        """Yield the bout of a time span in the file that is shown then; one for each file that it touches."""
        borders = self._borders(videos)
        start, end = start - self.offset, end - self.offset
        if not 0 <= start <= end or end > borders[-1] + LEEWAY:
            offset = f" less the time offset of {self.offset:g} s" if self.offset else ""
            raise DataError(
                f"{self.where}: '{shown(event.behavior)}' from {start:.3f} to {end:.3f} s{offset} is outside "
                f"of its media, which have {borders[-1]:.3f} s; check the observation in BORIS"
            )
        origin = origin_in(event.comment.strip())
        subject = "" if event.subject == NO_SUBJECT else event.subject
        for name, first, after in zip(self.media, borders, [*borders[1:-1], math.inf], strict=False):
            inside = max(start, first), min(end, after)
            if first <= start < after or inside[0] < inside[1]:
                span = {"start": inside[0] - first, "end": inside[1] - first}
                yield Bout(video=name, label=event.behavior, origin=origin, subject=subject, **span)

    def observed(self, videos: VideoNames) -> Iterator[tuple[str, Span]]:
        """Yield each file with its observed part."""
        start, end = self.interval
        borders = [0.0] * len(self.media) if self.interval == (0, 0) else self._borders(videos)
        for name, first in zip(self.media, borders, strict=False):
            yield name, (max(start - first, 0.0), min((end or math.inf) - first, LONGEST))

    def _borders(self, videos: VideoNames) -> list[float]:
        """When each file begins, and the end of the last, which is infinite if its length is not known."""
        lengths = [
            times.seconds if known is None and (times := videos.times(name)) is not None else known
            for name, known in zip(self.media, self.seconds, strict=True)
        ]
        if None in lengths[:-1]:
            raise DataError(
                f"{self.where}: has {len(self.media)} queued media, and times run on over them, but "
                f"the length of {shown(self.media[lengths.index(None)])} is not in the file; name the "
                "folder of the videos (--videos), or use the .boris project"
            )
        return [0.0, *accumulate(math.inf if length is None else length for length in lengths)]


def paired(events: Iterable[Event], where: str) -> Iterator[tuple[float, float, Event]]:
    """Yield start and end of each state and point, with its first event."""
    running: dict[tuple[str, str, str], Event] = {}
    for event in sorted(events, key=lambda event: event.time):
        key = event.subject, event.behavior, event.modifiers
        status = event.status or ("STOP" if key in running else "START")
        if status == "POINT":
            yield event.time, event.time, event
        elif status == "START" and key not in running:
            running[key] = event
        elif status == "STOP" and key in running:
            start = running.pop(key)
            yield start.time, event.time, start
        else:
            running = {key: event}
            break
    for event in running.values():
        known, missing = ("stopped", "started") if event.status == "STOP" else ("started", "stopped")
        raise DataError(
            f"{where}: '{shown(event.behavior)}' is {known} at {event.time:.3f} s and not {missing}; "
            f"{FIX_UNPAIRED}"
        )


def has_keys(document: Any) -> bool:
    """Whether a JSON document is of this kind."""
    return isinstance(document, dict) and {"observations", "behaviors_conf"} <= set(document)


def read(path: Path, fps: float | None, videos: VideoNames) -> list[Bout]:
    """Read the bouts of all observations of a project, and the time outside their intervals.

    Time is unscored if no observation of its video includes it.
    """
    try:
        document = read_json(path)
    except ValueError as error:
        if "NaN" in str(error):
            raise DataError(f"{path}: {NO_TIME}") from error
        raise
    states = {
        behavior["code"]
        for behavior in document["behaviors_conf"].values()
        if behavior["type"].startswith("State event")
    }
    bouts: list[Bout] = []
    observed: dict[str, list[Span]] = defaultdict(list)
    ends: dict[str, float] = {}
    for name, values in document["observations"].items():
        where = f"{path}, observation '{shown(name)}'"
        if values.get("type") == "IMAGES":
            raise DataError(
                f"{where}: is of images, which have no times; delete it from a copy of the project"
            )
        # Live observations have no file, and an empty list instead of a table of players.
        media = tuple(dict(values.get("file") or {}).get("1") or (name,))
        lengths = values.get("media_info", {}).get("length", {})
        ends |= lengths
        start, end = (float(time or 0) for time in values.get("observation time interval") or (0, 0))
        observation = Observation(
            where=where,
            media=media,
            seconds=tuple(lengths.get(file) for file in media),
            offset=float(values.get("time offset", 0)),
            interval=(start, end),
        )
        for file, span in observation.observed(videos):
            observed[file].append(span)
        events = [
            Event(
                time=float("nan" if time is None else time),
                status=None if behavior in states else "POINT",
                behavior=behavior,
                subject=subject,
                modifiers=modifiers,
                comment=comment,
            )
            for time, subject, behavior, modifiers, comment, *_ in values["events"]
        ]
        if not all(math.isfinite(event.time) for event in events):
            raise DataError(f"{where}: {NO_TIME}")
        for start, end, event in paired(events, where):
            bouts += observation.bouts(start, end, event, videos)
    for file in dict.fromkeys(bout.video for bout in bouts):
        bouts += unscored_bouts(file, observed[file], ends.get(file) or LONGEST)
    return bouts


def write(
    bouts: Mapping[str, Sequence[Bout]], times: Mapping[str, VideoTimes], classes: Sequence[str]
) -> str:
    """A project with one observation for each video, and a behavior for each class, also without bouts."""
    every = [bout for each in bouts.values() for bout in each]
    states = {bout.label for bout in every if bout.seconds}
    points = {bout.label for bout in every} - states
    subjects = sorted({bout.subject for bout in every} - {""})
    now = datetime.now().isoformat(timespec="seconds")
    count = Counter(map(stem, bouts))
    observations = {
        stem(video) if count[stem(video)] == 1 else video: _observation(video, each, points, times, now)
        for video, each in bouts.items()
    }
    document = {
        "time_format": "hh:mm:ss",
        "project_name": "everest",
        "project_date": now,
        "project_description": "",
        "project_format_version": "7.0",
        "subjects_conf": {
            str(number): {"key": "", "name": name, "description": ""} for number, name in enumerate(subjects)
        },
        "behaviors_conf": {
            str(number): {
                "type": "Point event" if name in points else "State event",
                "code": name,
                **dict.fromkeys(("key", "description", "category", "excluded", "coding map"), ""),
                "modifiers": {},
            }
            for number, name in enumerate(sorted({*classes, *states, *points}))
        },
        **{name: [] for name in ("behavioral_categories", "behaviors_coding_map")},
        **{name: {} for name in ("independent_variables", "coding_map", "converters")},
        "observations": observations,
    }
    return json_text(document, indent=1)


def _observation(
    video: str, bouts: Iterable[Bout], points: Collection[str], times: Mapping[str, VideoTimes], now: str
) -> dict[str, Any]:
    """The observation of a video. Overlapping bouts are merged.

    Args:
        points: the classes that have point events only.
    """
    media = str(Path(video).absolute()) if Path(video).exists() else video
    running: dict[tuple[str, str], float] = {}
    events = []
    for bout in merge_overlaps(bouts):
        key = bout.subject, bout.label
        if bout.start < running.get(key, 0):
            raise DataError(
                f"{video}: bouts of '{shown(bout.label)}' with different origins overlap at "
                f"{bout.start:.3f} s, which BORIS cannot hold; remove one"
            )
        running[key] = bout.end
        comment = "" if bout.origin == "manual" else bout.origin
        for time in (bout.start,) if bout.label in points else (bout.start, bout.end):
            events.append([round(time, 3), *key, "", comment, "NA"])
    facts = {}
    if video in times:
        facts = {"length": {media: times[video].seconds}, "fps": {media: times[video].fps}}
    return {
        "file": {"1": [media]},
        "type": "MEDIA",
        "date": now,
        "description": "",
        "time offset": 0.0,
        # BORIS orders by time, and reads every second event of a state as its stop.
        "events": sorted(events, key=lambda event: event[0]),
        "observation time interval": [0, 0],
        "independent_variables": {},
        "close_behaviors_between_videos": False,
        "scan_sampling_time": 0,
        **dict.fromkeys(("visualize_spectrogram", "visualize_waveform"), False),
        "media_info": {**facts, "hasVideo": {media: True}, "hasAudio": {media: False}, "offset": {"1": 0.0}},
    }
