"""JSON of Label Studio, and ActivityNet's, which THUMOS and programs for temporal detection use too.

Label Studio (JSON and JSON-MIN) has frames of a timeline (`TimelineLabels`), from 1, the last included. They
are counted at the rate of the labeling interface (`frameRate`, 24 by default), which may differ from the rate
of the file. `Labels` on the sound of a video are in seconds. So are lists of objects with a video, a
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

from everest.errors import join_first, shorten
from everest.system.text import read_json
from everest.video.folders import VIDEO_SUFFIXES
from everest_workflows.annotations.bout import Bout, Origin, read_origin
from everest_workflows.annotations.matching import SOUND_SUFFIXES, VideoFinder
from everest_workflows.annotations.records import LeftOut, record_errors

VIDEO_KEYS: Final = ("video", "videos", "video_url", "url", "file")
BOUT_FIELDS: Final = ("start", "end", "label")  # the fields of an object that is a bout
TASK_KEYS: Final = {"annotations", "predictions", "data"}  # JSON-MIN has none of these keys
# Fields of a JSON-MIN task that are not annotations.
TASK_FIELDS: Final = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "fps")
BOX_KEY: Final = "sequence"  # the field with the key frames of a moving box
# Fields that name the kind of a region without a type.
REGION_TYPES: Final = ("timelinelabels", "labels", "choices", "text", "rating", "number", "ranges")
_ORIGINS: Final[dict[str, Origin]] = {"prediction": "automated", "prediction-changed": "curated"}
# What an annotator or a model marked in a task: the annotator, the regions, and whether it was a model.
LabeledRegions = tuple[str, Sequence[Mapping[str, Any]], bool]


def read(path: Path, fps: float | None, videos: VideoFinder, left_out: LeftOut) -> Iterator[Bout]:
    """Read the bouts of all tasks of Label Studio.

    The last annotation of each annotator that is not canceled counts. If annotations are marked as ground
    truth, only these count. A task without annotations has the bouts of its last prediction, with the origin
    `automated`.
    """
    document = read_json(path)
    for i, task in enumerate(document if isinstance(document, list) else [document], start=1):
        name = f"task {task.get('id', i) if isinstance(task, dict) else i}"
        annotators: list[LabeledRegions] = []
        with left_out.reading(name) as record:
            if "bouts" in task:
                problem = "JSON of `everest timeline`, which is not read; write csv, boris or elan by --to"
                raise ValueError(problem)
            record.videos = _video_names(task)[:1]
            annotators += _regions_of_annotators(task, left_out)
            if not any(regions for _, regions, _ in annotators):
                reason = "task without a region"
                known = {*TASK_FIELDS, *VIDEO_KEYS}
                others = [key for key in task if key.lower() not in known]
                if any("result" not in annotation for annotation in task.get("annotations") or ()):
                    reason = "task with an annotation that has no result"
                elif others and not task.keys() & TASK_KEYS:
                    reason = f"task with {shorten(join_first(others))} only"
                left_out[reason] += 1
        for observer, regions, is_predicted in annotators:
            with left_out.reading(name, record.videos, observer):
                for region_index, region in enumerate(regions, start=1):
                    with record_errors(f"region {region.get('id') or region_index}"):
                        region_origin = "prediction" if is_predicted else region.get("origin", "")
                        person: Any = {"origin": _ORIGINS.get(region_origin, "manual"), "observer": observer}
                        for start, end, label in _read_spans(region, task, fps, left_out):
                            if not record.videos:
                                keys = shorten(join_first(list(map(str, task.get("data", task)))))
                                raise ValueError(f"the task names no video: name it data.video, not {keys}")
                            video = record.videos[0]
                            yield Bout(video=video, start=start, end=end, label=label, **person)


def _video_names(task: Mapping[str, Any]) -> list[str]:
    """The names of videos in the data of a task, the surest first; sounds last."""
    data = task.get("data", task)
    items = data.items() if isinstance(data, dict) else ()
    texts = [(key.lower(), text) for key, text in items if isinstance(text, str)]
    names = [text for key, text in texts if key in VIDEO_KEYS]
    for suffixes in (VIDEO_SUFFIXES, SOUND_SUFFIXES):
        names += [text for _, text in texts if Path(text.partition("?")[0]).suffix.lower() in suffixes]
    return names


def _read_spans(
    region: Mapping[str, Any], task: Mapping[str, Any], fps: float | None, left_out: LeftOut
) -> list[tuple[float, float, str]]:
    """The starts and ends in seconds, and the classes, of a region of time; other regions are left out."""
    value = region.get("value", region)
    region_type = region.get("type") or next((key for key in REGION_TYPES if key in value), "unknown")
    labels = value.get("timelinelabels") or value.get("labels") or []
    if not isinstance(labels, list):
        raise ValueError(f"{shorten(str(region_type))} is no list of classes")
    # Regions of a text have characters as times, and state the text; `choices` and texts describe a region.
    is_of_text = bool({"text", "startOffset"} & value.keys())
    is_in_seconds = "labels" in value and not is_of_text and bool({"start", "end"} & value.keys())
    if BOX_KEY in value or not ("ranges" in value or is_in_seconds):
        left_out["box" if BOX_KEY in value else f"region of the kind {shorten(str(region_type))}"] += 1
        return []
    if not labels:
        left_out["region of time without a class"] += 1
        return []
    if is_in_seconds:
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
    """Yield the regions of each annotator of a task, or the regions of its last prediction."""
    if not task.keys() & TASK_KEYS:  # JSON-MIN: regions are lists next to the video, or the object is a bout
        fields = {
            key: values if isinstance(values, list) else [values]
            for key, values in task.items()
            if isinstance(values, list) or (isinstance(values, dict) and values.keys() & {*REGION_TYPES})
        }
        regions = [
            {"type": None, **annotation} if isinstance(annotation, dict) else {"type": key}
            for key, values in fields.items()
            for annotation in values
        ]
        if not fields and task.keys() & {"start", "end"}:
            start, end, label = (task[name] for name in BOUT_FIELDS)
            value = {"start": start, "end": end, "labels": [label] if label else []}
            regions = [{"type": "label", "value": value}]
        yield str(task.get("annotator", "")), regions, False
        return
    annotations = task.get("annotations") or []
    complete = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
    valid = [annotation for annotation in complete if annotation.get("ground_truth")] or complete
    last: dict[str, Mapping[str, Any]] = {}  # by annotator, which is an e-mail address, a number, or nothing
    for annotation in valid:
        who = annotation.get("completed_by")
        who = (who.get("email") or who.get("id")) if isinstance(who, dict) else who
        last["" if who is None else str(who)] = annotation
    predictions = task.get("predictions") or []
    left_out += LeftOut(
        {
            "canceled annotation": len(annotations) - len(complete),
            "annotation that is not the ground truth": len(complete) - len(valid),
            "earlier annotation of an annotator": len(valid) - len(last),
            "prediction of an annotated task": len(predictions) if complete else 0,
            "earlier prediction": 0 if complete else max(len(predictions) - 1, 0),
            "draft": len(task.get("drafts") or ()),
        }
    )
    for annotator, annotation in last.items():
        yield annotator, annotation.get("result") or (), False
    if predictions and not complete:
        yield "", predictions[-1].get("result") or (), True


def read_activitynet(path: Path, fps: float | None, videos: VideoFinder, left_out: LeftOut) -> Iterator[Bout]:
    """Read ActivityNet's annotations, or the results of a model (origin `automated`).

    Videos without annotations, such as the videos of the test set, are left out.
    """
    document = read_json(path)
    is_database = "results" not in document
    # Files of annotated videos may lack the key `database`.
    contents = document.get("database", document) if is_database else document["results"]
    for video, content in contents.items():
        with left_out.reading(f"video '{shorten(video)}'", [video]):
            entries = content.get("annotations") if is_database else content
            if not entries:
                subset = content.get("subset", "") if is_database else ""
                left_out[" ".join(filter(None, ["video without annotations", subset and f"({subset})"]))] += 1
            for entry in entries or ():
                start, end = float(entry["segment"][0]), float(entry["segment"][1])
                origin = read_origin(entry.get("origin"), "manual" if is_database else "automated")
                yield Bout(video=video, start=start, end=end, label=entry["label"], origin=origin)
