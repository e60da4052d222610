"""BORIS projects, `.boris`: one JSON file with the behaviors, and the events of each observation."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from everest.annotations.boris_events import (
    Event,
    Observation,
    bouts_of,
    media_borders,
    observer_in,
    player_of,
)
from everest.annotations.bout import LONGEST, Bout, Bouts, Span, merge_overlaps, unscored_bouts
from everest.annotations.matching import VideoFinder, VideoTimes, stem
from everest.annotations.records import NO_EVENT, LeftOut, in_record
from everest.errors import DataError, first_names, shown
from everest.system.text import NoNumber, json_text, read_json

EMPTY: Final = read_json(Path(__file__).with_name("boris_empty.json"))  # its parts, as BORIS needs them
POINT: Final = "Point event"
STATE: Final = "State event"
EVENT: Final = ("time", "subject", "behavior", "modifiers", "comment")  # versions add further fields


def read(path: Path, fps: float | None, videos: VideoFinder, left_out: LeftOut) -> list[Bout]:
    """Read the bouts of all observations of a project, and the time outside their intervals.

    Time is unscored for an observer if none of the observer's observations of the video includes it. Of
    several players, the first that shows videos of the user counts.
    """
    try:
        document = read_json(path)
    except NoNumber as error:
        raise ValueError(f"{error}; an event has no time: correct or delete it in BORIS") from error
    types = {}
    for key, behavior in document["behaviors_conf"].items():
        with in_record(f"behavior {key} of the ethogram"):
            types[behavior["code"]] = behavior["type"]
    bouts: list[Bout] = []
    observed: dict[tuple[str, str], list[Span]] = defaultdict(list)  # by media file and observer
    ends: dict[str, float] = {}  # of files whose length is stated
    for name, values in document["observations"].items():
        where = f"{path}, observation '{shown(name)}'"
        with in_record(f"observation '{shown(name)}'"):
            if values.get("type") == "IMAGES":  # has no times
                left_out["observation of images"] += 1
                continue
            lengths = (values.get("media_info") or {}).get("length") or {}
            ends |= lengths
            # Live observations have no file, and an empty list instead of a table of players.
            players = {key: media for key, media in dict(values.get("file") or {}).items() if media}
            players = players or {"1": [name]}
            player, first = player_of(players, videos), min(players)
            media = players[player]
            if len(players) > 1:
                left_out["media file of another player"] += sum(map(len, players.values())) - len(media)
            delays = (values.get("media_info") or {}).get("offset") or {}
            delay = 0.0 if player == first else float(delays.get(player) or 0)
            offset = float(values.get("time offset") or 0)
            events = _events_of(values["events"], types)
            observer = observer_in(values.get("independent_variables") or {}) or name
            start, end = (float(time or 0) for time in values.get("observation time interval") or (0, 0))
        if not events:
            left_out[NO_EVENT] += 1
        borders = [0.0] * len(media)
        if events or start or end:  # else the lengths of the media need not be known
            borders = media_borders(media, [lengths.get(file) for file in media], videos, where=where)
        for file, border in zip(media, borders, strict=False):
            begin = border + delay if start or end else 0.0  # an end of 0 is the end of the media
            span = max(start - begin, 0.0), min((end or math.inf) - begin, LONGEST)
            observed[file, observer if events else ""].append(span)
        recording = Observation(where, observer, media, borders, offset + delay, sets_time=player == first)
        bouts += bouts_of(events, recording, left_out)
    for file, observer in dict.fromkeys((bout.video, bout.observer) for bout in bouts):
        scored = [*observed[file, observer], *observed[file, ""]]
        bouts += unscored_bouts(file, scored, ends.get(file) or LONGEST, observer=observer)
    return bouts


def _events_of(rows: Iterable[Sequence[Any]], types: Mapping[str, str]) -> list[Event]:
    """The coded events of an observation; ValueError names those that cannot be read.

    Whether an event is a point or begins a state follows from its behavior alone.
    """
    events = []
    undefined: dict[str, None] = {}
    for number, row in enumerate(rows, start=1):
        with in_record(f"event {number}"):
            if len(row) < len(EVENT):
                raise ValueError(f"has {len(row)} of the fields {', '.join(EVENT)}")
            time, subject, behavior, modifiers, comment = row[: len(EVENT)]
            if time is None:
                raise ValueError("has no time; correct or delete it in BORIS")
            if behavior not in types:
                undefined[behavior] = None
                continue
            if not types[behavior].startswith((STATE, POINT)):
                what = f"'{shown(behavior)}' is of the type '{shown(types[behavior])}' in the ethogram"
                raise ValueError(f"{what}, not a '{STATE}' or '{POINT}'")
            stop = None if types[behavior].startswith(STATE) else float(time)
            events.append(Event(float(time), stop, behavior, subject or "", modifiers or "", comment or ""))
    if undefined:
        codes = ", ".join(f"'{shown(code)}'" for code in undefined)
        known = first_names([f"'{shown(code)}'" for code in sorted(types)]) or "no behavior"
        fix = "add or rename them in BORIS (Edit project, Ethogram)"
        raise ValueError(f"events of {codes}, but the ethogram has {known}; {fix}")
    return events


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
