"""BORIS projects, `.boris`: one JSON file with the behaviors, and the events of each observation."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from everest.annotations.boris_events import Event, bouts_of, media_borders
from everest.annotations.bout import LONGEST, Bout, Bouts, Span, merge_overlaps, unscored_bouts
from everest.annotations.matching import VideoFinder, VideoTimes, stem
from everest.errors import DataError, shown
from everest.system.text import json_text, read_json

EMPTY: Final = read_json(Path(__file__).with_name("boris_empty.json"))  # its parts, as BORIS needs them
POINT: Final = "Point event"
STATE: Final = "State event"


def read(path: Path, fps: float | None, videos: VideoFinder) -> list[Bout]:
    """Read the bouts of all observations of a project, and the time outside their intervals.

    Time is unscored if no observation of its video includes it.
    """
    try:
        document = read_json(path)
    except ValueError as error:
        if "NaN" not in str(error):
            raise
        raise ValueError(f"{error}; an event has no time: correct or delete it in BORIS") from error
    behaviors = document["behaviors_conf"].values()
    states = {behavior["code"] for behavior in behaviors if behavior["type"].startswith(STATE)}
    bouts: list[Bout] = []
    observed: dict[str, list[Span]] = defaultdict(list)
    ends: dict[str, float] = {}  # of files whose length is stated
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
        events = []
        for time, subject, behavior, modifiers, comment, *_ in values["events"]:
            if time is None:
                raise DataError(f"{where}: an event has no time; correct or delete it in BORIS")
            stop = None if behavior in states else float(time)
            events.append(Event(float(time), stop, behavior, subject, modifiers, comment))
        start, end = (float(time or 0) for time in values.get("observation time interval") or (0, 0))
        borders = [0.0] * len(media)
        if events or start or end:  # else the lengths of the media need not be known
            borders = media_borders(media, [lengths.get(file) for file in media], videos, where=where)
        for file, border in zip(media, borders, strict=False):
            begin = border if start or end else 0.0  # an end of 0 is the end of the media
            observed[file].append((max(start - begin, 0.0), min((end or math.inf) - begin, LONGEST)))
        offset = float(values.get("time offset", 0))
        bouts += bouts_of(events, media, borders, where=where, offset=offset)
    for file in dict.fromkeys(bout.video for bout in bouts):
        bouts += unscored_bouts(file, observed[file], ends.get(file) or LONGEST)
    return bouts


def write(bouts: Bouts, times: Mapping[str, VideoTimes], classes: Sequence[str]) -> str:
    """A project with one observation for each video, and a behavior for each class, also without bouts."""
    all_bouts = [bout for video_bouts in bouts.values() for bout in video_bouts]
    labels = {bout.label for bout in all_bouts}
    points = labels - {bout.label for bout in all_bouts if bout.seconds}
    date = datetime.now().isoformat(timespec="seconds")
    subjects = sorted({bout.subject for bout in all_bouts} - {""})
    count = Counter(map(stem, bouts))
    observations = {}
    for video, video_bouts in bouts.items():
        media = str(Path(video).absolute()) if Path(video).exists() else video
        info: dict[str, Any] = {"hasVideo": {media: True}, "hasAudio": {media: False}, "offset": {"1": 0.0}}
        if video in times:
            info |= {"length": {media: times[video].seconds}, "fps": {media: times[video].fps}}
        events = _events(video_bouts, points)
        facts = {"file": {"1": [media]}, "date": date, "events": events, "media_info": info}
        observations[stem(video) if count[stem(video)] == 1 else video] = EMPTY["observation"] | facts
    document = EMPTY["project"] | {
        "project_date": date,
        "subjects_conf": {str(row): EMPTY["subject"] | {"name": name} for row, name in enumerate(subjects)},
        "behaviors_conf": {
            str(row): EMPTY["behavior"] | {"code": name, "type": POINT if name in points else STATE}
            for row, name in enumerate(sorted({*classes, *labels}))
        },
        "observations": observations,
    }
    return json_text(document, indent=1)


def _events(bouts: Iterable[Bout], points: Collection[str]) -> list[list[Any]]:
    """The events of the bouts of a video by their times; classes in `points` have point events only.

    Overlapping bouts are merged, as BORIS reads every second event of a state as its stop.
    """
    running: dict[tuple[str, str], float] = {}
    events = []
    for bout in merge_overlaps(bouts):
        key = bout.subject, bout.label
        if bout.start < running.get(key, 0):
            raise DataError(
                f"{bout.video}: bouts of '{shown(bout.label)}' with different origins overlap at "
                f"{bout.start:.3f} s, which BORIS cannot hold; remove one"
            )
        running[key] = bout.end
        comment = "" if bout.origin == "manual" else bout.origin
        for time in (bout.start,) if bout.label in points else (bout.start, bout.end):
            events.append([round(time, 3), *key, "", comment, "NA"])
    return sorted(events, key=lambda event: event[0])
