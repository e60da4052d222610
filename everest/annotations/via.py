"""VIA 3, the VGG Image Annotator for video: a project in JSON with temporal segments in seconds.

Source: projects saved by VIA 3.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from everest.annotations.bout import ORIGINS, Bout, origin_in
from everest.annotations.matching import VideoNames, media_path
from everest.annotations.times import VideoTimes
from everest.system.json_text import json_text, read_json

_SEGMENTS: Final = "FILE1_Z2_XY0"  # an attribute of a time span of one file, without a region
_VIDEO, _LOCAL, _SELECT, _TEXT = 4, 1, 4, 1  # codes of VIA
_ORIGIN: Final = "origin"  # a second attribute, which everest writes


def read_via(path: Path, fps: float | None, videos: VideoNames) -> list[Bout]:
    """Read the temporal segments; regions of single frames are left out."""
    document = read_json(path)
    attributes = document["attribute"]
    files, views = document["file"], document["view"]
    bouts = []
    for entry in document["metadata"].values():
        if len(entry["z"]) != 2 or entry["xy"]:
            continue
        values = {
            attributes[key]["aname"]: _value(attributes[key], value)
            for key, value in entry["av"].items()
            if key in attributes
        }
        # The user may have an attribute of this name, too.
        has_origin = any(values.get(_ORIGIN) == [origin] for origin in ORIGINS)
        origin = origin_in(values.pop(_ORIGIN)[0]) if has_origin else origin_in("")
        file = files[str(views[str(entry["vid"])]["fid_list"][0])]
        start, end = map(float, entry["z"])
        bouts += [
            Bout(
                video=file["src"] or file["fname"],
                start=start,
                end=end,
                label=label,
                origin=origin,
            )
            for labels in values.values()
            for label in labels
        ]
    return bouts


def _value(attribute: Mapping[str, Any], value: str) -> list[str]:
    """The labels of a value: options are named by their keys, several of a checkbox are joined by commas."""
    options = attribute.get("options", {})
    if value in options:
        return [options[value]]
    keys = value.split(",")
    return [options[key] for key in keys] if all(key in options for key in keys) else [value] if value else []


def via_text(bouts: Mapping[str, Sequence[Bout]], times: Mapping[str, VideoTimes]) -> str:
    """A project in which each class is an option of the attribute TEMPORAL-SEGMENTS."""
    numbers = {video: str(number) for number, video in enumerate(bouts, start=1)}
    labels = sorted({bout.label for each in bouts.values() for bout in each})
    options = {label: str(number) for number, label in enumerate(labels, start=1)}
    metadata = {
        f"{numbers[video]}_{place:08}": {
            "vid": numbers[video],
            "flg": 0,
            "z": [bout.start, bout.end],
            "xy": [],
            "av": {"1": options[bout.label], "2": bout.origin},
        }
        for video, each in bouts.items()
        for place, bout in enumerate(each)
    }
    segment = {"anchor_id": _SEGMENTS, "desc": "", "default_option_id": ""}
    names = {number: key for key, number in options.items()}
    return json_text(
        {
            "project": {
                "pid": "__VIA_PROJECT_ID__",
                "rev": "__VIA_PROJECT_REV_ID__",
                "rev_timestamp": "__VIA_PROJECT_REV_TIMESTAMP__",
                "pname": "everest",
                "creator": "everest",
                "created": 0,
                "vid_list": list(numbers.values()),
            },
            "config": {
                "file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}},
                "ui": {
                    "file_content_align": "center",
                    "file_metadata_editor_visible": True,
                    "spatial_metadata_editor_visible": True,
                    "temporal_segment_metadata_editor_visible": True,
                    "spatial_region_label_attribute_id": "",
                    "gtimeline_visible_row_count": "4",
                },
            },
            "attribute": {
                "1": {"aname": "TEMPORAL-SEGMENTS", "type": _SELECT, "options": names, **segment},
                "2": {"aname": _ORIGIN, "type": _TEXT, "options": {}, **segment},
            },
            "file": {
                number: {
                    "fid": number,
                    "fname": Path(video).name,
                    "type": _VIDEO,
                    "loc": _LOCAL,
                    "src": media_path(video),
                }
                for video, number in numbers.items()
            },
            "view": {number: {"fid_list": [number]} for number in numbers.values()},
            "metadata": metadata,
        },
        indent=1,
    )
