"""ActivityNet's JSON, which THUMOS and programs for temporal detection use too: segments in seconds.

A file has a `database` of annotated videos, or `results` of a model. A video is named by an id.

Source: activity-net.org/download.html and its evaluation code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from everest.annotations.bout import Bout, Origin, origin_in
from everest.annotations.matching import VideoNames, stem
from everest.annotations.times import VideoTimes
from everest.errors import DataError
from everest.system.json_text import json_text, read_json


def read_activitynet(path: Path, fps: float | None, videos: VideoNames) -> list[Bout]:
    """Read the annotations of the database, or the results of a model, which are automated."""
    document = read_json(path)
    default: Origin = "manual" if "database" in document else "automated"
    if "database" in document:
        by_video = {key: value["annotations"] for key, value in document["database"].items()}
    else:
        by_video = document["results"]
    return [
        Bout(
            video=video,
            start=float(entry["segment"][0]),
            end=float(entry["segment"][1]),
            label=entry["label"],
            origin=origin_in(entry.get("origin"), default),
        )
        for video, entries in by_video.items()
        for entry in entries
    ]


def activitynet_text(
    bouts: Mapping[str, Sequence[Bout]], times: Mapping[str, VideoTimes], classes: Sequence[str] = ()
) -> str:
    """A database of annotations in the subset `training`; an unknown duration is the end of the last bout."""
    database = {}
    for video, of_video in bouts.items():
        if stem(video) in database:
            raise DataError(
                f"two videos are called {stem(video)}, and this format names videos by that; rename one"
            )
        ends = max((bout.end for bout in of_video), default=0.0)
        database[stem(video)] = {
            "subset": "training",
            "duration": times[video].seconds if video in times else ends,
            "annotations": [
                {"segment": [bout.start, bout.end], "label": bout.label, "origin": bout.origin}
                for bout in of_video
            ],
        }
    return json_text(
        {"version": "everest", "taxonomy": [{"nodeName": name} for name in classes], "database": database},
        indent=1,
    )
