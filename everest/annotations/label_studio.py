"""JSON of Label Studio, and ActivityNet's, which THUMOS and programs for temporal detection use too.

Label Studio, JSON and JSON-MIN, has frames of a timeline (`TimelineLabels`), from 1, the last included. They
are of the rate that the labeling interface states (`frameRate`, 24 if it does not), which need not be the
rate of the file. `Labels` on the sound of a video are in seconds, as are lists of objects with a video, a
label, a start and an end (CreateML). Other regions, such as boxes and texts, are left out.
ActivityNet has segments in seconds: a `database` of annotated videos, or `results` of a model; a video is
named by an id.

Source: labelstud.io/guide/export, /tags/video, /tags/timelinelabels and /tags/audio;
activity-net.org/download.html and its evaluation code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final

from everest.annotations.bout import Bout, Origin, origin_in
from everest.annotations.matching import VideoFinder
from everest.annotations.records import LeftOut, in_record
from everest.errors import first_names, shown
from everest.system.text import read_json
from everest.video.folders import VIDEO_SUFFIXES

VIDEO_KEYS: Final = ("video", "videos", "video_url", "url", "file")
MARKED: Final = ("start", "end", "label")  # the fields of an object that is a bout itself
TASK_KEYS: Final = {"annotations", "predictions", "data"}  # of no JSON-MIN
# Fields of JSON-MIN about a task, which are no annotation.
ABOUT: Final = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "fps")
BOX: Final = "sequence"  # the key frames of a box that moves
# Fields that name the kind of a region without a type.
KINDS: Final = ("timelinelabels", "labels", "choices", "text", "rating", "number", "ranges")
_ORIGINS: Final[dict[str, Origin]] = {"prediction": "automated", "prediction-changed": "curated"}
# What one annotator, or a model, marked in a task: the annotator, the regions, and whether a model did.
LabeledRegions = tuple[str, Sequence[Mapping[str, Any]], bool]


def read(path: Path, fps: float | None, videos: VideoFinder, left_out: LeftOut) -> Iterator[Bout]:
    """Read the bouts of all tasks of Label Studio.

    Of several annotations of a task by one annotator the last that is not canceled counts, and of all only
    those marked as ground truth, if any is. A task without any has the bouts of its last prediction, with
    the origin `automated`.
    """
    document = read_json(path)
    for number, task in enumerate(document if isinstance(document, list) else [document], start=1):
        with in_record(f"task {task.get('id', number) if isinstance(task, dict) else number}"):
            if "bouts" in task:
                problem = "JSON of `everest timeline`, which is not read; write csv, boris or elan by --to"
                raise ValueError(problem)
            marked = list(_regions_of_annotators(task, left_out))
            if not any(regions for _, regions, _ in marked):
                reason = "task without a region"
                known = {*ABOUT, *VIDEO_KEYS}
                others = [key for key in task if key.lower() not in known]
                if any("result" not in each for each in task.get("annotations") or ()):
                    reason = "task with an annotation that has no result"
                elif others and not task.keys() & TASK_KEYS:
                    reason = f"task with {shown(first_names(others))} only"
                left_out[reason] += 1
            for observer, regions, is_predicted in marked:
                for place, region in enumerate(regions, start=1):
                    with in_record(f"region {region.get('id') or place}"):
                        made = "prediction" if is_predicted else region.get("origin", "")
                        who: Any = {"origin": _ORIGINS.get(made, "manual"), "observer": observer}
                        for start, end, label in _spans(region, task, fps, left_out):
                            yield Bout(video=_video(task), start=start, end=end, label=label, **who)


def _video(task: Mapping[str, Any]) -> str:
    """The name of the video of a task."""
    data = task.get("data", task)
    texts = [(key.lower(), text) for key, text in data.items() if isinstance(text, str)]
    names = [text for key, text in texts if key in VIDEO_KEYS]
    names += [text for _, text in texts if Path(text.partition("?")[0]).suffix.lower() in VIDEO_SUFFIXES]
    if not names:
        raise ValueError("the task names no video (data.video)")
    return names[0]


def _spans(
    region: Mapping[str, Any], task: Mapping[str, Any], fps: float | None, left_out: LeftOut
) -> list[tuple[float, float, str]]:
    """The starts and ends in seconds and the classes of a region of time; other regions are left out."""
    value = region.get("value", region)
    kind = region.get("type") or next((key for key in KINDS if key in value), "unknown")
    labels = value.get("timelinelabels") or value.get("labels") or []
    if not isinstance(labels, list):
        raise ValueError(f"{shown(str(kind))} is no list of classes")
    # Regions of a text have characters for times, and state the text; `choices` and texts describe a region.
    is_of_text = bool({"text", "startOffset"} & value.keys())
    is_seconds = "labels" in value and not is_of_text and bool({"start", "end"} & value.keys())
    if BOX in value or not ("ranges" in value or is_seconds):
        left_out["box" if BOX in value else f"region of the kind {shown(str(kind))}"] += 1
        return []
    if not labels:
        left_out["region of time without a class"] += 1
        return []
    if is_seconds:
        times = [(float(value["start"]), float(value["end"]))]
    else:
        rate = float(fps or task.get("data", task).get("fps") or 0)
        if not rate:
            raise ValueError(
                "its times are frames, and it does not state their rate; set --fps to the frameRate of the "
                "labeling interface (24 if it has none)"
            )
        times = [((span["start"] - 1) / rate, span["end"] / rate) for span in value["ranges"]]
    if not times:
        left_out["region of time without a range"] += 1
    return [(*span, label) for span, label in product(times, labels)]


def _regions_of_annotators(task: Mapping[str, Any], left_out: LeftOut) -> Iterator[LabeledRegions]:
    """Yield the regions of each annotator of a task, or of its last prediction."""
    if not task.keys() & TASK_KEYS:  # JSON-MIN: regions are lists next to the video, or the object is a bout
        fields = {
            key: values if isinstance(values, list) else [values]
            for key, values in task.items()
            if isinstance(values, list) or (isinstance(values, dict) and values.keys() & {*KINDS})
        }
        plain = [
            {"type": None, **each} if isinstance(each, dict) else {"type": key}
            for key, values in fields.items()
            for each in values
        ]
        if not fields and task.keys() & {"start", "end"}:
            start, end, label = (task[name] for name in MARKED)
            value = {"start": start, "end": end, "labels": [label] if label else []}
            plain = [{"type": "label", "value": value}]
        yield str(task.get("annotator", "")), plain, False
        return
    annotations = task.get("annotations") or []
    given = [each for each in annotations if not each.get("was_cancelled")]
    true = [each for each in given if each.get("ground_truth")] or given
    last: dict[str, Mapping[str, Any]] = {}  # by annotator: an e-mail address, a number, or nothing
    for each in true:
        who = each.get("completed_by")
        who = (who.get("email") or who.get("id")) if isinstance(who, dict) else who
        last["" if who is None else str(who)] = each
    predictions = task.get("predictions") or []
    left_out += LeftOut(
        {
            "canceled annotation": len(annotations) - len(given),
            "annotation that is not the ground truth": len(given) - len(true),
            "earlier annotation of an annotator": len(true) - len(last),
            "prediction of an annotated task": len(predictions) if given else 0,
            "earlier prediction": 0 if given else max(len(predictions) - 1, 0),
            "draft": len(task.get("drafts") or ()),
        }
    )
    for annotator, each in last.items():
        yield annotator, each.get("result") or (), False
    if predictions and not given:
        yield "", predictions[-1].get("result") or (), True


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
