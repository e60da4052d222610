"""JSON of Label Studio, and ActivityNet's, which THUMOS and programs for temporal detection use too.

Label Studio, JSON and JSON-MIN, has frames of a timeline (`TimelineLabels`), from 1, the last included. They
are of the rate that the labeling interface states (`frameRate`, 24 if it does not), which need not be the
rate of the file. ActivityNet has segments in seconds: a `database` of annotated videos, or `results` of a
model; a video is named by an id.

Source: labelstud.io/tags/video and /tags/timelinelabels; activity-net.org/download.html and its evaluation
code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, product
from pathlib import Path
from typing import Any, Final

from everest.annotations.bout import Bout, Origin, origin_in
from everest.annotations.matching import VideoFinder
from everest.errors import DataError
from everest.system.text import read_json

VIDEO_KEYS: Final = ("video", "videos", "video_url", "url", "file")
_ORIGINS: Final[dict[str, Origin]] = {"prediction": "automated", "prediction-changed": "curated"}


def read(path: Path, fps: float | None, videos: VideoFinder) -> Iterator[Bout]:
    """Read the bouts of all tasks of Label Studio.

    Of several annotations of a task the last that is not canceled counts; a task without any has the bouts
    of its last prediction, with the origin `automated`.
    """
    document = read_json(path)
    for number, task in enumerate(document if isinstance(document, list) else [document], start=1):
        if "bouts" in task:
            raise ValueError(
                "JSON of `everest timeline`, which is not read; write csv, boris or elan by --to"
            )
        data = task.get("data", task)
        names = (value for key, value in data.items() if key.lower() in VIDEO_KEYS)
        video = next((name for name in names if isinstance(name, str)), None)
        if video is None:
            raise ValueError(f"task {number} names no video (data.video)")
        values = [(result.get("value", result), result.get("origin", "")) for result in _results(task)]
        labeled = [(value, origin) for value, origin in values if value.get("timelinelabels")]
        rate = float(fps or data.get("fps") or 0)
        if labeled and not rate:
            raise DataError(
                f"{path}: its times are frames, and it does not state their rate; set --fps to the frameRate "
                "of the labeling interface (24 if it has none)"
            )
        for value, origin in labeled:
            if not isinstance(value["timelinelabels"], list):
                raise ValueError(f"task {number}: timelinelabels is no list of classes")
            for span, label in product(value["ranges"], value["timelinelabels"]):
                start, end = (span["start"] - 1) / rate, span["end"] / rate
                source = _ORIGINS.get(origin, "manual")
                yield Bout(video=video, start=start, end=end, label=label, origin=source)


def _results(task: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the results of a task; in JSON-MIN they are lists next to the video."""
    if "annotations" not in task and "predictions" not in task:
        yield from chain(*(values for values in task.values() if isinstance(values, list)))
        return
    annotations = [each for each in task.get("annotations", ()) if not each.get("was_cancelled")]
    if annotations:
        yield from annotations[-1]["result"]
    elif task.get("predictions"):
        yield from ({"origin": "prediction"} | result for result in task["predictions"][-1]["result"])


def read_activitynet(path: Path, fps: float | None, videos: VideoFinder) -> Iterator[Bout]:
    """Read the annotations of ActivityNet's database, or the results of a model, which are automated."""
    document = read_json(path)
    is_database = "database" in document
    for video, facts in document["database" if is_database else "results"].items():
        for entry in facts["annotations"] if is_database else facts:
            start, end = float(entry["segment"][0]), float(entry["segment"][1])
            origin = origin_in(entry.get("origin"), "manual" if is_database else "automated")
            yield Bout(video=video, start=start, end=end, label=entry["label"], origin=origin)
