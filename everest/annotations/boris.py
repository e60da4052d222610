"""BORIS projects, `.boris`: one JSON file with the behaviors, and the events of each observation."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from everest.annotations.boris_tables import Event, Observation, Status, paired
from everest.annotations.bout import LONGEST, Bout, Bouts, Span, merge_overlaps, unscored_bouts
from everest.annotations.matching import VideoFinder, VideoTimes, stem
from everest.errors import DataError, shown
from everest.system.text import json_text, read_json

# Keys of a project that everest leaves empty.
EMPTY_LISTS: Final = ("behavioral_categories", "behaviors_coding_map")
EMPTY_TABLES: Final = ("independent_variables", "coding_map", "converters")
EMPTY_TEXTS: Final = ("key", "description", "category", "excluded", "coding map")  # of a behavior


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
    states = {behavior["code"] for behavior in behaviors if behavior["type"].startswith("State event")}
    bouts: list[Bout] = []
    observed: dict[str, list[Span]] = defaultdict(list)
    ends: dict[str, float] = {}  # of files whose length is stated
    for name, values in document["observations"].items():
        where = f"{path}, observation '{shown(name)}'"
        if values.get("type") == "IMAGES":
            raise DataError(
                f"{where}: is of images, which have no times; delete it from a copy of the project"
            )
        lengths = values.get("media_info", {}).get("length", {})
        ends |= lengths
        # Live observations have no file, and an empty list instead of a table of players.
        media = tuple(dict(values.get("file") or {}).get("1") or (name,))
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
        events = []
        for time, subject, behavior, modifiers, comment, *_ in values["events"]:
            if time is None:
                raise DataError(f"{where}: an event has no time; correct or delete it in BORIS")
            status: Status | None = None if behavior in states else "POINT"
            events.append(Event(float(time), status, behavior, subject, modifiers, comment))
        for start, end, event in paired(events, where):
            bouts += observation.bouts(start, end, event, videos)
    for file in dict.fromkeys(bout.video for bout in bouts):
        bouts += unscored_bouts(file, observed[file], ends.get(file) or LONGEST)
    return bouts


def write(bouts: Bouts, times: Mapping[str, VideoTimes], classes: Sequence[str]) -> str:
    """A project with one observation for each video, and a behavior for each class, also without bouts."""
    every = [bout for each in bouts.values() for bout in each]
    labels = {bout.label for bout in every}
    points = labels - {bout.label for bout in every if bout.seconds}
    subjects = sorted({bout.subject for bout in every} - {""})
    now = datetime.now().isoformat(timespec="seconds")
    count = Counter(map(stem, bouts))
    behaviors = [
        {
            "type": "Point event" if name in points else "State event",
            "code": name,
            **dict.fromkeys(EMPTY_TEXTS, ""),
            "modifiers": {},
        }
        for name in sorted({*classes, *labels})
    ]
    document = {
        "time_format": "hh:mm:ss",
        "project_name": "everest",
        "project_date": now,
        "project_description": "",
        "project_format_version": "7.0",
        "subjects_conf": {
            str(number): {"key": "", "name": name, "description": ""} for number, name in enumerate(subjects)
        },
        "behaviors_conf": {str(number): behavior for number, behavior in enumerate(behaviors)},
        **{key: [] for key in EMPTY_LISTS},
        **{key: {} for key in EMPTY_TABLES},
        "observations": {
            stem(video) if count[stem(video)] == 1 else video: _observation(video, each, points, times, now)
            for video, each in bouts.items()
        },
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
        "visualize_spectrogram": False,
        "visualize_waveform": False,
        "media_info": {**facts, "hasVideo": {media: True}, "hasAudio": {media: False}, "offset": {"1": 0.0}},
    }
