"""A record that cannot be read stops a command only if it may be of a chosen video, observer and subject."""

import json
from pathlib import Path
from typing import Any

import pytest

from everest.errors import DataError
from everest_workflows.annotations.codings import BoutFilter, read_video_annotations

GOOD = "video,start,end,label,observer,subject\nmouse0.mp4,1,4,groom,anna,a\n"
NAN = float("nan")
BEGINS = "Observation id,Observer,Media duration (s),Subject,Behavior,Behavior type,Media file name"
ANNA, BEN = "o,anna,30,a,groom,{},mouse0.mp4,{}\n", "p,ben,30,b,groom,{},mouse9.mp4,{}\n"
AGGREGATED = f"{BEGINS},Start (s),Stop (s)\n" + ANNA.format("STATE", "1,4")
EVENTS = f"{BEGINS},Time\n" + ANNA.format("START", 1) + ANNA.format("STOP", 4)
EAF = (
    '<ANNOTATION_DOCUMENT><HEADER><MEDIA_DESCRIPTOR MEDIA_URL="{}"/></HEADER><TIME_ORDER>'
    '<TIME_SLOT TIME_SLOT_ID="t0" TIME_VALUE="4000"/><TIME_SLOT TIME_SLOT_ID="t1" TIME_VALUE="1000"/>'
    '</TIME_ORDER><TIER TIER_ID="groom" ANNOTATOR="ben" PARTICIPANT="b"><ANNOTATION><ALIGNABLE_ANNOTATION '
    'TIME_SLOT_REF1="t0" TIME_SLOT_REF2="t1"/></ANNOTATION></TIER></ANNOTATION_DOCUMENT>'
)


def boris(**observation: Any) -> str:
    """A project with a finished observation of mouse0, and another one, which is not finished."""
    done = {"file": {"1": ["mouse0.mp4"]}, "events": [[1, "a", "groom", "", ""], [4, "a", "groom", "", ""]]}
    done |= {"independent_variables": {"Observer": "anna"}, "media_info": {"length": {"mouse0.mp4": 30}}}
    other = done | {"independent_variables": {"Observer": "ben"}, "events": [[6, "b", "groom", "", ""]]}
    document = {"behaviors_conf": {"0": {"code": "groom", "type": "State event"}}}
    return json.dumps(document | {"observations": {"done": done, "other": other | observation}})


def label_studio(video: str) -> str:
    """A task with a region that has no end."""
    region = {"value": {"start": 1, "end": None, "labels": ["groom"]}, "type": "labels"}
    annotations = [{"completed_by": "ben", "result": [region]}]
    return json.dumps([{"data": {"video": video}, "annotations": annotations}])


def activitynet(video: str) -> str:
    """Segments of mouse0, and one without an end."""
    spans = {"mouse0": [1, 4], video: [1]}
    return json.dumps(
        {name: {"annotations": [{"segment": s, "label": "groom"}]} for name, s in spans.items()}
    )


MOUSE9 = {"1": ["mouse9.mp4"]}
QUEUE = {"file": {"1": ["mouse8.mp4", "mouse9.mp4"]}, "events": [[1, "", "groom", "", ""]] * 2}
# The name of a file with a damaged record, its text, and the choice by which this record is left out.
CASES: dict[str, tuple[str, str, str]] = {
    "unfinished": ("p.boris", boris(file=MOUSE9), "video"),
    "live": ("p.boris", boris(file=[]), "video"),
    "no time": ("p.boris", boris(file=MOUSE9, events=[[NAN, "", "groom", "", ""]]), "video"),
    "no length": ("p.boris", boris(**QUEUE), "video"),
    "no number": ("p.boris", boris(file=MOUSE9, **{"time offset": NAN}), "video"),
    "unknown behavior": ("p.boris", boris(file=MOUSE9, events=[[1, "", "rear", "", ""]]), "video"),
    "observation of an observer": ("p.boris", boris(), "observer"),
    "observation of a subject": ("p.boris", boris(), "subject"),
    "unpaired row": ("t.csv", AGGREGATED + BEN.format("STATE", "UNPAIRED,UNPAIRED"), "video"),
    "unfinished row": ("t.csv", EVENTS + BEN.format("START", 6), "video"),
    "row without a time": ("t.csv", EVENTS + BEN.format("POINT", "NA"), "video"),
    "csv": ("t.csv", GOOD + "mouse9.mp4,x,4,groom,ben,b\n", "video"),
    "csv of an observer": ("t.csv", GOOD + "mouse0.mp4,x,4,groom,ben,b\n", "observer"),
    "csv of a subject": ("t.csv", GOOD + "mouse0.mp4,x,4,groom,ben,b\n", "subject"),
    "elan": ("t.eaf", EAF.format("mouse9.mp4"), "video"),
    "elan of an observer": ("t.eaf", EAF.format("mouse0.mp4"), "observer"),
    "elan of a subject": ("t.eaf", EAF.format("mouse0.mp4"), "subject"),
    "label studio": ("t.json", label_studio("mouse9.mp4"), "video"),
    "annotator": ("t.json", label_studio("mouse0.mp4"), "observer"),
    "activitynet": ("t.json", activitynet("mouse9"), "video"),
    "frames without a rate": ("mouse9_labels.csv", ",background,groom\n0,1,0\n1,0,1\n", "video"),
    "frames": ("mouse9_labels.csv", ",background,groom\n0,1,0\n1,0,2\n", "video"),
    "srt": ("mouse9.srt", "a story", "video"),
    "vtt": ("mouse9.vtt", "WEBVTT\n\n1 --> 2\nrun\n", "video"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_left_out_anyway_need_not_be_readable(tmp_path: Path, case: str):
    name, text, by = CASES[case]
    damaged, good = tmp_path / name, tmp_path / "good.csv"
    damaged.write_text(text)
    good.write_text(GOOD)
    chosen = {"observer": BoutFilter(observers=["anna"]), "subject": BoutFilter(subject="a")}
    labels = read_video_annotations([damaged, good], ["mouse0.mp4"], bout_filter=chosen.get(by, BoutFilter()))
    found = {(bout.start, bout.end, bout.label) for bout in labels.bouts["mouse0.mp4"]}
    assert found == {(1, 4, "groom")}
    counts = [n for reason, n in labels.left_out.items() if reason.startswith("not needed, and cannot be")]
    assert counts == [1]
    assert bool(labels.unmatched) == (by == "video")
    with pytest.raises(DataError, match="cannot be read as"):  # of a chosen video and person, it is an error
        read_video_annotations([damaged, good], [] if by == "video" else ["mouse0.mp4"])


def test_events_of_images_may_have_no_time(tmp_path: Path):
    (tmp_path / "p.boris").write_text(boris(type="IMAGES", events=[[NAN, "", "groom", "", ""]]))
    labels = read_video_annotations([tmp_path / "p.boris"])
    assert labels.left_out == {"observation of images": 1}


def test_subjects_are_taken_together_only_where_a_video_has_several(tmp_path: Path):
    rows = ["a.mp4,1,2,groom,anna,m1", "b.mp4,1,2,groom,anna,m2", "c.mp4,1,2,groom,anna,m2"]
    file = tmp_path / "a.csv"
    for more, merged in (([], []), (["c.mp4,3,4,groom,anna,m3"], ["m2", "m3"])):
        file.write_text("\n".join([GOOD.splitlines()[0], *rows, *more]))
        assert read_video_annotations([file]).merged_subjects == merged
