"""JSON of Label Studio, and ActivityNet's, which THUMOS and programs for temporal detection use too.

Label Studio, JSON and JSON-MIN, has frames of a timeline (`TimelineLabels`), from 1, the last included. They
are of the rate that the labeling interface states (`frameRate`, 24 if it does not), which need not be the
rate of the file. `Labels` on the sound of a video are in seconds. Other regions, such as boxes, are left out.
ActivityNet has segments in seconds: a `database` of annotated videos, or `results` of a
model; a video is named by an id.

Source: labelstud.io/tags/video and /tags/timelinelabels; activity-net.org/download.html and its evaluation
code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, Final

from everest.annotations.bout import Bout, Origin, origin_in
from everest.annotations.matching import VideoFinder
from everest.annotations.records import LeftOut, in_record
from everest.errors import shown
from everest.system.text import read_json

VIDEO_KEYS: Final = ("video", "videos", "video_url", "url", "file")
KINDS: Final = ("timelinelabels", "labels", "choices", "rectanglelabels", "sequence", "text", "rating")
_ORIGINS: Final[dict[str, Origin]] = {"prediction": "automated", "prediction-changed": "curated"}


def read(path: Path, fps: float | None, videos: VideoFinder, left_out: LeftOut) -> Iterator[Bout]:
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
        name = f"task {task.get('id', number)}"
        with in_record(name):
            data = task.get("data", task)
            names = (value for key, value in data.items() if key.lower() in VIDEO_KEYS)
            video = next((name for name in names if isinstance(name, str)), None)
            regions = list(_regions(task, left_out))
            if video is None and regions:
                raise ValueError("names no video (data.video)")
        if not regions:
            left_out["task without a region"] += 1
        for region in regions:
            with in_record(name):
                yield from _bouts_of(region, str(video), float(fps or data.get("fps") or 0), left_out)


def _bouts_of(region: Mapping[str, Any], video: str, rate: float, left_out: LeftOut) -> Iterator[Bout]:
    """The bouts of a region of a time range; other regions are left out by their kind.

    Args:
        rate: of the frames of a timeline; 0: not known.
    """
    value = region.get("value", region)
    kind = region.get("type") or next((key for key in KINDS if key in value), "unknown")
    labels = value.get("timelinelabels") or value.get("labels") or []
    if not isinstance(labels, list):
        raise ValueError(f"{kind} is no list of classes")
    spans = value.get("ranges") if value.get("timelinelabels") else None
    if spans and not rate:
        raise ValueError(
            "its times are frames, and it does not state their rate; set --fps to the frameRate of the "
            "labeling interface (24 if it has none)"
        )
    if spans is not None:
        times = [((span["start"] - 1) / rate, span["end"] / rate) for span in spans]
    elif value.get("labels") and "sequence" not in value and {"start", "end"} <= value.keys():
        times = [(float(value["start"]), float(value["end"]))]
    else:
        left_out[f"region of the kind {shown(kind)}"] += 1
        return
    if not (times and labels):
        left_out[f"region of the kind {shown(kind)} without a time range or a class"] += 1
    for (start, end), label in product(times, labels):
        origin = _ORIGINS.get(region.get("origin", ""), "manual")
        yield Bout(video=video, start=start, end=end, label=label, origin=origin)


def _regions(task: Mapping[str, Any], left_out: LeftOut) -> Iterator[Mapping[str, Any]]:
    """Yield the regions of a task; in JSON-MIN they are lists next to the video, or the task is a region."""
    if "annotations" not in task and "predictions" not in task:
        if "label" in task and {"start", "end"} <= task.keys():  # a list of bouts, as CreateML has it
            yield {"value": {**task, "labels": [task["label"]]}, "type": "labels"}
            return
        for key, values in task.items():
            if isinstance(values, list):
                yield from (
                    {"type": None, **each} if isinstance(each, dict) else {"type": key} for each in values
                )
        return
    annotations = task.get("annotations") or []
    given = [each for each in annotations if not each.get("was_cancelled")]
    predictions = task.get("predictions") or []
    left_out["canceled annotation"] += len(annotations) - len(given)
    left_out["annotation before the last of its task"] += max(len(given) - 1, 0)
    left_out["prediction of an annotated task"] += len(predictions) if given else max(len(predictions) - 1, 0)
    left_out += Counter()  # drops what was not found
    if given:
        yield from given[-1].get("result") or ()
    elif predictions:
        yield from ({"origin": "prediction"} | region for region in predictions[-1].get("result") or ())


def read_activitynet(path: Path, fps: float | None, videos: VideoFinder, left_out: LeftOut) -> Iterator[Bout]:
    """Read the annotations of ActivityNet's database, or the results of a model, which are automated.

    Videos without annotations, such as those of the test set, are left out.
    """
    document = read_json(path)
    is_database = "database" in document
    for video, facts in document["database" if is_database else "results"].items():
        with in_record(f"video '{shown(video)}'"):
            entries = facts.get("annotations") if is_database else facts
            if not entries:
                subset = facts.get("subset", "") if is_database else ""
                left_out[" ".join(filter(None, ["video without annotations", subset and f"({subset})"]))] += 1
        for entry in entries or ():
            with in_record(f"video '{shown(video)}'"):
                start, end = float(entry["segment"][0]), float(entry["segment"][1])
                origin = origin_in(entry.get("origin"), "manual" if is_database else "automated")
                bout = Bout(video=video, start=start, end=end, label=entry["label"], origin=origin)
            yield bout
