"""ActivityNet's JSON, which THUMOS and programs for temporal detection use too: segments in seconds.

A file has a `database` of annotated videos, or `results` of a model. A video is named by an id.

Source: activity-net.org/download.html and its evaluation code.
"""

from __future__ import annotations

from pathlib import Path

from everest.annotations.bout import Bout, Origin, origin_in
from everest.annotations.matching import VideoFinder
from everest.system.text import read_json


def read(path: Path, fps: float | None, videos: VideoFinder) -> list[Bout]:
    """Read the annotations of the database, or the results of a model, which are automated."""
    document = read_json(path)
    default: Origin = "manual" if "database" in document else "automated"
    if "database" in document:
        entries = {video: facts["annotations"] for video, facts in document["database"].items()}
    else:
        entries = document["results"]
    bouts = []
    for video, segments in entries.items():
        for entry in segments:
            start, end = float(entry["segment"][0]), float(entry["segment"][1])
            origin = origin_in(entry.get("origin"), default)
            bouts.append(Bout(video=video, start=start, end=end, label=entry["label"], origin=origin))
    return bouts
