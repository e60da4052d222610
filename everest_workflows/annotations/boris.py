"""BORIS: makes bouts of the events and media of an observation; reads and writes projects (`.boris`, JSON).

An event is a press of a key; two make a state and one a point. Times run on over the queued media of an
observation: a time after the end of the first file is in the second. Times include the time offset of the
observation. Tables of BORIS have the same events: everest_workflows.annotations.boris_table.

Source: projects saved by BORIS 7 to 9 (github.com/olivierfriard/BORIS, tests/files, and issue 468 on the
offset).
"""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

from everest.errors import DataError, join_first, shorten
from everest.system.text import json_text, read_json
from everest.system.types import Span
from everest.video.frame_borders import VideoTimes
from everest.video.times import TIME_TOLERANCE
from everest_workflows.annotations.bout import (
    LATEST_TIME,
    ORIGINS,
    Bout,
    Bouts,
    merge_overlaps,
    read_origin,
    unscored_bouts,
)
from everest_workflows.annotations.matching import VideoFinder, is_sound, stem
from everest_workflows.annotations.records import NO_EVENT, LeftOut, record_errors

BLANK: Final = read_json(Path(__file__).with_name("boris_empty.json"))  # the empty parts of a project
POINT: Final = "Point event"
STATE: Final = "State event"
EVENT_FIELDS: Final = ("time", "subject", "behavior", "modifiers", "comment")  # versions add further fields
END_LEEWAY: Final = 1.0  # seconds allowed after the media end: lengths are rounded, and players stop late
FIX_UNPAIRED: Final = "fix it in BORIS (Observations, Fix unpaired events)"
OUTSIDE: Final = "bout outside the media of the player"
NO_FOCAL_SUBJECT: Final = "No focal subject"
OBSERVER_KEYS: Final = ("observer", "coder", "rater", "annotator", "scorer", "observer name")


class Event(NamedTuple):
    time: float
    end: float | None  # None: the event starts or stops a state
    behavior: str
    subject: str
    modifiers: str = ""
    comment: str = ""
    status: str = ""  # START or STOP for a state; empty: starts and stops alternate


class Observation(NamedTuple):
    """An observation, as the player with the user's videos shows it."""

    where: str  # name of the observation, for messages
    observer: str
    media: Sequence[str]  # the queued files
    borders: Sequence[float]  # borders of the media; see `media_borders`
    offset: float  # seconds that the times of the events include
    sets_time: bool = True  # whether this is the first player, whose time the events have
    is_alone: bool = True  # whether no other player may show what is outside of these media


def choose_player(players: Mapping[str, Sequence[str]], videos: VideoFinder, left_out: LeftOut) -> str:
    """The key of the first player with a video of the user, else of the first player; others are left out.

    A player of sounds counts only if no other player shows a video of the user.
    """
    keys = sorted(players)
    by_kind = sorted(keys, key=lambda key: all(map(is_sound, players[key])))
    player = next((key for key in by_kind if any(map(videos.find, players[key]))), keys[0])
    if len(keys) > 1:
        left_out["media file of another player"] += sum(len(players[key]) for key in keys if key != player)
    return player


def find_observer(variables: Mapping[str, object]) -> str:
    """The observer that an independent variable such as `Observer` names; empty without such a variable."""
    normalized = {name.strip().casefold(): value for name, value in variables.items()}
    return next((str(normalized[key]).strip() for key in OBSERVER_KEYS if normalized.get(key)), "")


def media_borders(media: Sequence[str], lengths: Sequence[float | None], videos: VideoFinder) -> list[float]:
    """When each of the queued media begins, and the end of the last, which is infinite if it is not known.

    `lengths` are in seconds; None: not stated.
    """
    seconds = [
        times.seconds if length is None and (times := videos.times(name)) is not None else length
        for name, length in zip(media, lengths, strict=True)
    ]
    if None in seconds[:-1]:
        raise ValueError(
            f"has {len(media)} queued media, and times run on over them, but the length of "
            f"{shorten(media[seconds.index(None)])} is not in the file; name the folder of the videos "
            "(--videos), or use the .boris project"
        )
    return [0.0, *accumulate(math.inf if length is None else length for length in seconds)]


def make_bouts(events: Sequence[Event], observation: Observation, left_out: LeftOut) -> Iterator[Bout]:
    """Yield a bout for each state or point in each media file that was shown during it."""
    for event in events:  # bouts have no modifiers, and no comments except an origin
        if not {*event.modifiers.split("|")} <= {"", "None", "NA"}:
            left_out["modifier of an event"] += 1
        if event.comment.strip() not in ("", "NA", *ORIGINS):
            left_out["comment of an event"] += 1
    borders, offset = observation.borders, observation.offset
    for event, stop in _pair_events(events, observation, left_out):
        start, end = event.time - offset, stop - offset
        is_inside = 0 <= start <= end <= borders[-1] + END_LEEWAY
        if not (observation.sets_time and is_inside) and not observation.is_alone:
            # The media of this player may begin later or end sooner than those of another player.
            whole, start, end = end - start, max(start, 0.0), min(end, borders[-1])
            if not start <= end:
                left_out[OUTSIDE] += 1
                continue
            if end - start < whole - TIME_TOLERANCE:
                left_out[f"part of a {OUTSIDE}"] += 1
        elif not is_inside:
            less_offset = f" less the time offset of {offset:g} s" if offset else ""
            text = f"'{shorten(event.behavior)}' from {start:.3f} to {end:.3f} s{less_offset}"
            raise ValueError(
                f"{text} is outside of its media, which have {borders[-1]:.3f} s; "
                "check the observation in BORIS"
            )
        subject = "" if event.subject == NO_FOCAL_SUBJECT else event.subject
        who = {"label": event.behavior, "subject": subject, "observer": observation.observer}
        for name, (lower, upper) in zip(observation.media, pairwise([*borders[:-1], math.inf]), strict=True):
            first, last = max(start, lower), min(end, upper)
            if lower <= start < upper or first < last:
                origin = read_origin(event.comment.strip())
                yield Bout(video=name, start=first - lower, end=last - lower, origin=origin, **who)


def _pair_events(
    events: Sequence[Event], observation: Observation, left_out: LeftOut
) -> Iterator[tuple[Event, float]]:
    """Yield the first event of each state and point, and the time of its end."""
    running: dict[tuple[str, str, str], Event] = {}
    unpaired: list[Event] = []
    for event in sorted(events, key=lambda event: event.time):
        key = event.subject, event.behavior, event.modifiers
        if event.end is not None:
            yield event, event.end
        elif key in running and event.status != "START":
            yield running.pop(key), event.time
        elif key not in running and event.status != "STOP":
            running[key] = event
        else:  # the event is a stop without a start, or a second start
            unpaired.append(event)
    for event in [*unpaired, *running.values()]:
        with left_out.reading(observation.where, observation.media, observation.observer) as record:
            record.subject = "" if event.subject == NO_FOCAL_SUBJECT else event.subject
            edge, other_edge = ("stopped", "started") if event.status == "STOP" else ("started", "stopped")
            problem = f"'{shorten(event.behavior)}' is {edge} at {event.time:.3f} s and not {other_edge}"
            raise ValueError(f"{problem}; {FIX_UNPAIRED}")


def read(path: Path, fps: float | None, videos: VideoFinder, left_out: LeftOut) -> list[Bout]:
    """Read the bouts of all observations of a project, and the time outside their intervals.

    Time that no observation of an observer includes is unscored for this observer. If there are several
    players, the first that shows videos of the user counts.
    """
    document = read_json(path, nan=True)  # the time of an event of an image is NaN
    types = {str(each["code"]): str(each.get("type")) for each in document["behaviors_conf"].values()}
    bouts: list[Bout] = []
    observed: dict[tuple[str, str], list[Span]] = defaultdict(list)  # spans by media file and observer
    ends: dict[str, float] = {}  # lengths of the files for which the project states one
    for name, values in document["observations"].items():
        where = f"observation '{shorten(name)}'"
        with left_out.reading(where) as record:
            if values.get("type") == "IMAGES":  # images have no times
                left_out["observation of images"] += 1
                continue
            # Live observations have no file, and an empty list instead of a table of players.
            players = {key: media for key, media in dict(values.get("file") or {}).items() if media}
            if not players and videos.videos and values.get("type") == "LIVE":
                left_out[f"live {where}, which has no video"] += 1  # its name may be that of a video
                continue
            players = players or {"1": [name]}
            player = choose_player(players, videos, left_out)
            media, sets_time = players[player], player == min(players)
            observer = find_observer(values.get("independent_variables") or {}) or name
            record.videos, record.observer = media, observer
            info = values.get("media_info") or {}
            lengths = {file: _finite(length) for file, length in (info.get("length") or {}).items()}
            ends |= lengths
            delays = {"2": values.get("time offset second player")}  # until version 6
            delays |= info.get("offset") or {}
            delay = 0.0 if sets_time else _finite(delays.get(player) or 0)
            offset = _finite(values.get("time offset") or 0)
            events = _read_events(values["events"], types)
            start, end = (_finite(time or 0) for time in values.get("observation time interval") or (0, 0))
            if not events:
                left_out[NO_EVENT] += 1
            borders = [0.0] * len(media)
            if events or start or end:  # otherwise, the lengths of the media are not needed
                borders = media_borders(media, [lengths.get(file) for file in media], videos)
            for file, border in zip(media, borders, strict=False):
                media_start = border + delay if start or end else 0.0  # an end of 0 is the end of the media
                span = max(start - media_start, 0.0), min((end or math.inf) - media_start, LATEST_TIME)
                observed[file, observer if events else ""].append(span)
            is_alone = len(players) == 1
            observation = Observation(where, observer, media, borders, offset + delay, sets_time, is_alone)
            bouts += make_bouts(events, observation, left_out)
    for file, observer in dict.fromkeys((bout.video, bout.observer) for bout in bouts):
        scored = [*observed[file, observer], *observed[file, ""]]
        bouts += unscored_bouts(file, scored, ends.get(file) or LATEST_TIME, observer=observer)
    return bouts


def _finite(value: Any) -> float:
    """A time or length of a project, which may be NaN."""
    if not math.isfinite(number := float(value)):
        raise ValueError("a time or length of its media is not a number; correct it in BORIS")
    return number


def _read_events(rows: Iterable[Sequence[Any]], types: Mapping[str, str]) -> list[Event]:
    """The coded events of an observation; ValueError names the events that cannot be read.

    Whether an event is a point or begins a state follows from its behavior alone.
    """
    events = []
    undefined: dict[str, None] = {}
    for number, row in enumerate(rows, start=1):
        with record_errors(f"event {number}"):
            if len(row) < len(EVENT_FIELDS):
                raise ValueError(f"has {len(row)} of the fields {', '.join(EVENT_FIELDS)}")
            time, subject, behavior, modifiers, comment = row[: len(EVENT_FIELDS)]
            if time is None or math.isnan(float(time)):
                raise ValueError("has no time; correct or delete it in BORIS")
            if behavior not in types:
                undefined[behavior] = None
                continue
            if not types[behavior].startswith((STATE, POINT)):
                text = f"'{shorten(behavior)}' is of the type '{shorten(types[behavior])}' in the ethogram"
                raise ValueError(f"{text}, not a '{STATE}' or '{POINT}'")
            stop = None if types[behavior].startswith(STATE) else float(time)
            events.append(Event(float(time), stop, behavior, subject or "", modifiers or "", comment or ""))
    if undefined:
        codes = ", ".join(f"'{shorten(code)}'" for code in undefined)
        behaviors = join_first([f"'{shorten(code)}'" for code in sorted(types)]) or "no behavior"
        fix = "add or rename them in BORIS (Edit project, Ethogram)"
        raise ValueError(f"events of {codes}, but the ethogram has {behaviors}; {fix}")
    return events


def write(bouts: Bouts, times: Mapping[str, VideoTimes], classes: Sequence[str]) -> str:
    """A project with an observation for each video and a behavior for each class, even without bouts."""
    all_bouts = [bout for video_bouts in bouts.values() for bout in video_bouts]
    labels = {bout.label for bout in all_bouts}
    points = labels - {bout.label for bout in all_bouts if bout.seconds}
    date = datetime.now().isoformat(timespec="seconds")
    subjects = sorted({bout.subject for bout in all_bouts} - {""})
    stems = Counter(map(stem, bouts))
    observations = {}
    for video, video_bouts in bouts.items():
        media = os.path.normpath(Path(video).absolute()) if Path(video).exists() else video
        info: dict[str, Any] = {"hasVideo": {media: True}, "hasAudio": {media: False}, "offset": {"1": 0.0}}
        if video in times:
            info |= {"length": {media: times[video].seconds}, "fps": {media: times[video].fps}}
        running: dict[tuple[str, str], float] = {}
        events: list[list[Any]] = []
        for bout in merge_overlaps(video_bouts):  # BORIS reads every second event of a state as its stop
            key = bout.subject, bout.label
            if bout.start < running.get(key, 0):
                raise DataError(
                    f"{bout.video}: bouts of '{shorten(bout.label)}' with different origins overlap at "
                    f"{bout.start:.3f} s, which BORIS cannot hold; remove one"
                )
            running[key] = bout.end
            comment = "" if bout.origin == "manual" else bout.origin
            for time in (bout.start,) if bout.label in points else (bout.start, bout.end):
                events.append([round(time, 3), *key, "", comment, "NA"])
        events.sort(key=itemgetter(0))
        entry = {"file": {"1": [media]}, "date": date, "events": events, "media_info": info}
        observations[stem(video) if stems[stem(video)] == 1 else video] = BLANK["observation"] | entry
    document = BLANK["project"] | {
        "project_date": date,
        "subjects_conf": {str(row): BLANK["subject"] | {"name": name} for row, name in enumerate(subjects)},
        "behaviors_conf": {
            str(row): BLANK["behavior"] | {"code": name, "type": POINT if name in points else STATE}
            for row, name in enumerate(sorted({*classes, *labels}))
        },
        "observations": observations,
    }
    return json_text(document, indent=1)
