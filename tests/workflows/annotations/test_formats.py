import json
import os
from pathlib import Path
from typing import Any

import pytest
from frame_spans import frame_span
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everest.errors import DataError
from everest.video.frame_borders import VideoTimes
from everest_workflows.annotations.bout import ORIGINS, Bout
from everest_workflows.annotations.formats import (
    FORMATS,
    read_annotations,
    recognize_format,
    write_annotations,
)
from everest_workflows.annotations.matching import VideoFinder, stem
from everest_workflows.annotations.records import LeftOut

GROOM = {"value": {"ranges": [{"start": 5, "end": 8}], "timelinelabels": ["groom"]}, "origin": "manual"}
PECK = {"value": {"ranges": [{"start": 9, "end": 9}], "timelinelabels": ["peck"]}}
PECK |= {"type": "timelinelabels", "origin": "prediction-changed"}
BOX = {"value": {"sequence": [], "labels": ["bird"]}, "type": "videorectangle"}
SOUND = {"start": 5.0, "end": 8.0, "channel": 0, "labels": ["rear"]}  # seconds
NO_END = {"id": "q", "value": {"ranges": [{"start": 3}], "timelinelabels": ["groom"]}}
LABEL_STUDIO = [
    {
        "annotations": [
            {"result": [{"value": {"ranges": [], "timelinelabels": ["old"]}}], "was_cancelled": False},
            {"result": [GROOM | {"type": "timelinelabels"}, PECK, BOX], "was_cancelled": False},
            {"id": 13, "result": [], "was_cancelled": True},
        ],
        "predictions": [],
        "data": {"video": "/data/upload/1/0a1b2c3d-cage1.mp4"},
    }
]
ACTIVITYNET = {
    "version": "VERSION 1.3",
    "taxonomy": [{"parentName": "Root", "nodeName": "groom", "nodeId": 1, "parentId": 0}],
    "database": {
        "cage1": {
            **{"duration": 2.0, "subset": "training", "resolution": "64x48", "url": "https://example.org"},
            "annotations": [{"segment": [0.25, 0.5], "label": "groom"}],
        },
        "unseen": {"duration": 3.0, "subset": "testing", "annotations": []},
    },
}
RESULTS = {"version": "1.3", "results": {"cage1": [{"label": "groom", "score": 0.9, "segment": [0.25, 0.5]}]}}
DEEPETHOGRAM = ",background,groom,peck\n0,1,0,0\n1,0,1,0\n2,0,1,1\n3,-1,-1,-1\n"
# The features, `Low_prob_detections_0.5` and a pose of 0 and 1, are no classes; each has many more columns.
SIMBA = (
    ",Nose_x,Nose_y,Nose_p,Nose_area,Low_prob_detections_0.5,groom,peck\n"
    "0,10.5,1,0.9,0,0,0,0\n1,11.0,0,0.9,7.5,1,1,0\n2,12.0,1,1.0,1,0,1,1\n3,12.0,0,1.0,1,0,0,0\n"
)
PLAIN = "frame,groom,peck\n0,0,0\n1,1,0\n2,1,1\n3,0,0\n"
MACHINE = (
    ",Nose_x,Nose_y,Nose_p,Probability_groom,groom,Probability_peck,peck\n"
    "0,10.5,1,0.9,0,0,0.25,0\n1,11.0,0,0.9,0.9,1,1,1\n"
)
VTT = """\
WEBVTT - cages

NOTE made by hand

STYLE
::cue(.automated) { color: gray }

first
00:00.250 --> 00:00.500 align:start
groom

00:00:01.000 --> 00:00:01.500
<v female><c.curated>peck &amp; <i>look</i></c>
sit
"""
SRT = "1\r\n00:00:00,250 --> 00:00:00,500\r\ngroom\r\n\r\n2\r\n00:00:01,000 --> 00:00:01,500\r\npeck\r\n"
SRT_CUE = "1\n00:00:01,000 --> 00:00:02,000\nrun\n"
STRUCTURE = "unexpected structure; export the file again"
CSV = "video,start,end,label\ncage1.mp4,0.25,0.5,groom\n"


def bout(start: float, end: float, label: str, origin="manual", video="cage1.mp4", **more: str) -> Bout:
    return Bout(video=video, start=start, end=end, label=label, origin=origin, **more)


def cage(start: float, end: float, label: str, origin: Any = "manual") -> Bout:
    return bout(start, end, label, origin, video="cage1")


UPLOADED = "/data/upload/1/0a1b2c3d-cage1.mp4"
MINIMAL = {"video": "cage1.mp4", "id": 1}
MINIMAL |= {"acts": [{"ranges": [{"start": 5, "end": 8}], "timelinelabels": ["groom"]}]}
UPLOADS = [bout(0.25, 0.5, "groom", video=UPLOADED), bout(0.5, 0.5625, "peck", "curated", video=UPLOADED)]
FRAMES_OF_TWO = [cage(1 / 16, 3 / 16, "groom"), cage(2 / 16, 3 / 16, "peck")]
AUTOMATED = [cage(1 / 16, 2 / 16, label, "automated") for label in ("groom", "peck")]
CUES = [cage(0.25, 0.5, "groom"), cage(1.0, 1.5, "peck & look"), cage(1.0, 1.5, "sit")]
EXPORTS: list[tuple[str, Any, str, float | None, list[Bout]]] = [
    ("tasks.json", LABEL_STUDIO, "label-studio", 16, UPLOADS),
    ("min.json", [MINIMAL], "label-studio", 16, [bout(0.25, 0.5, "groom")]),
    ("net.json", ACTIVITYNET, "activitynet", None, [cage(0.25, 0.5, "groom")]),
    ("net.json", ACTIVITYNET["database"], "activitynet", None, [cage(0.25, 0.5, "groom")]),
    ("results.json", RESULTS, "activitynet", None, [cage(0.25, 0.5, "groom", "automated")]),
    ("cage1_labels.csv", DEEPETHOGRAM, "frames", 16, [*FRAMES_OF_TWO, cage(3 / 16, 4 / 16, "unscored")]),
    ("cage1.csv", SIMBA, "frames", 16, FRAMES_OF_TWO),
    ("cage1.csv", MACHINE, "frames", 16, AUTOMATED),
    ("cage1.vtt", VTT, "vtt", None, CUES),
    ("cage1.srt", SRT, "srt", None, [cage(0.25, 0.5, "groom"), cage(1.0, 1.5, "peck")]),
    ("cage1.csv", PLAIN, "frames", 16, FRAMES_OF_TWO),
    ("cage1.csv", PLAIN.replace("peck", "groom"), "frames", 16, FRAMES_OF_TWO[:1]),
    ("bouts.csv", CSV, "csv", None, [bout(0.25, 0.5, "groom")]),
    ("bouts.tsv", CSV.replace(",", "\t"), "csv", None, [bout(0.25, 0.5, "groom")]),
    ("bouts.csv", CSV.replace(",", ";"), "csv", None, [bout(0.25, 0.5, "groom")]),
    ("bouts.csv", CSV.replace(",", " , "), "csv", None, [bout(0.25, 0.5, "groom")]),
]


def written(folder: Path, name: str, content: Any) -> Path:
    file = folder / name
    file.write_text("\ufeff" + content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


@pytest.mark.parametrize(("name", "content", "kind", "fps", "bouts"), EXPORTS)
def test_exports_of_other_programs_are_recognized_and_read(tmp_path, name, content, kind, fps, bouts):
    file = written(tmp_path, name, content)
    assert recognize_format(file) == kind
    assert read_annotations(file, fps=fps) == bouts


COPY = {"value": {"sequence": [], "timelinelabels": ["groom"]}, "type": "timelinelabels"}  # of a box
OTHERS = [
    {"value": {"start": 1.0, "end": 2.0, "choices": ["sure"]}, "type": "choices"},
    {"value": {"start": 1.0, "end": 2.0, "text": ["a song"]}, "type": "textarea"},
    {"value": {"start": 1, "end": 9, "text": "a person", "labels": ["PER"]}, "type": "labels"},  # characters
    {
        "value": {"start": "0", "end": "0", "startOffset": 1, "paragraphlabels": ["Q"]},
        "type": "paragraphlabels",
    },
    {"from_id": "a", "to_id": "b", "type": "relation", "direction": "right"},
    {"value": {"ranges": [{"start": 5, "end": 8}]}, "type": "timelinelabels"},
]
MIXED = [
    {
        "data": {"clip": "https://example.org/cage1.mp4?key=1"},
        "annotations": [
            {"completed_by": 1, "result": [PECK]},
            {"completed_by": {"id": 2, "email": "bo@example.org"}, "result": [GROOM]},
            {"completed_by": 1, "result": [GROOM, BOX, COPY, *OTHERS, {"value": SOUND, "type": "labels"}]},
            {"completed_by": 3},
        ],
        "predictions": [{"result": [PECK]}],
        "drafts": [{"result": []}],
    },
    {"data": {"text": "x"}, "annotations": [{"result": OTHERS[:1]}]},
    {"data": {"video": "cage2.mp4"}},
]
MIXED_LEFT_OUT = {
    **{f"region of the kind {kind}": 1 for kind in ("textarea", "labels", "paragraphlabels", "relation")},
    **{"box": 2, "region of the kind choices": 2, "region of time without a class": 1, "draft": 1},
    **{"earlier annotation of an annotator": 1, "prediction of an annotated task": 1},
    "task without a region": 1,
}
REGIONS = "Cage Animal_1 Nose in zone,Zone_1_Animal_2_facing"
ZONES = SIMBA.replace("groom", f"light,{REGIONS},groom").replace(",0,0\n", ",1,1.0,1,0,0\n")
ZONES = ZONES.replace(",1,0\n", ",1,0.0,0,1,0\n").replace(",1,1\n", ",0,0,0,1,1\n")
ZONES_LEFT_OUT = {f"column of a region '{name}'": 1 for name in REGIONS.split(",")}
ZONES_LEFT_OUT |= {"column that is no class 'light'": 1}
WITH_TIME = "frame,time,groom,peck\n0,0.5,0,0\n1,1.5,1,0\n2,2.5,1,1\n"
NO_CUES = {"block NOTE": 1, "block STYLE": 1, "cue without a text": 1}
VIDEO = "https://example.org/cage1.mp4?key=1"
MINIMAL_OF_TWO = {"video": "cage1.mp4", "annotator": 7, "sound": [SOUND], "how": {"choices": ["a"]}}


@pytest.mark.parametrize(
    ("name", "content", "bouts", "left_out"),
    [
        (
            "tasks.json",
            MIXED,
            [
                *(bout(0.25, 0.5, "groom", video=VIDEO), bout(5, 8, "rear", video=VIDEO)),
                bout(0.25, 0.5, "groom", video=VIDEO),
            ],
            MIXED_LEFT_OUT,
        ),
        ("min.json", [MINIMAL_OF_TWO], [bout(5, 8, "rear")], {"region of the kind choices": 1}),
        (
            "list.json",
            [{"video": "cage1.mp4", "label": label, "start": 5, "end": "8"} for label in ("rear", "")],
            [bout(5, 8, "rear")],
            {"region of time without a class": 1},
        ),
        ("net.json", ACTIVITYNET, [cage(0.25, 0.5, "groom")], {"video without annotations (testing)": 1}),
        ("cage1.csv", ZONES, FRAMES_OF_TWO, ZONES_LEFT_OUT),
        ("cage1.csv", WITH_TIME, FRAMES_OF_TWO, {"column of other values than 0 and 1 'time'": 1}),
        ("cage1.vtt", VTT + "\n00:05.000 --> 00:06.000\n<c></c>\n", CUES, NO_CUES),
    ],
)
def test_what_is_no_bout_is_counted(tmp_path, name, content, bouts, left_out):
    counted = LeftOut()
    assert read_annotations(written(tmp_path, name, content), fps=16, left_out=counted) == bouts
    assert counted == left_out


def test_annotators_of_a_task_are_told_apart(tmp_path: Path):
    file = written(tmp_path, "tasks.json", MIXED)
    assert [each.observer for each in read_annotations(file, fps=16)] == ["1", "1", "bo@example.org"]
    (first, second, *others) = MIXED[0]["annotations"]
    with_truth = MIXED[0] | {"annotations": [first, second | {"ground_truth": True}, *others]}
    file = written(tmp_path, "tasks.json", [with_truth])
    assert [each.observer for each in read_annotations(file, fps=16)] == ["bo@example.org"]


def test_the_project_of_simba_names_the_classes(tmp_path: Path):
    folder = tmp_path / "csv" / "targets_inserted"
    folder.mkdir(parents=True)
    table = written(folder, "cage1.csv", ZONES)
    names = "[SML settings]\nno_targets = 2\ntarget_name_1 = peck\ntarget_name_2 = Zone_1_Animal_2_facing\n"
    written(tmp_path, "project_config.ini", names + "model_path_1 = 100%\n")
    assert {each.label for each in read_annotations(table, fps=16)} == {"peck", "Zone_1_Animal_2_facing"}
    written(tmp_path, "project_config.ini", "peck")
    with pytest.raises(DataError, match=r"project_config\.ini cannot be read: "):
        read_annotations(table, fps=16)


def test_frames_have_the_times_of_the_video(tmp_path: Path, clip_files: Path):
    (tmp_path / "cage1.mp4").symlink_to(clip_files / "clip0.mp4")  # 32 frames, 16 a second
    table = written(tmp_path, "cage1_labels.csv", DEEPETHOGRAM.replace("0,1,0,0\n", "0,1,0,0\n" * 29))
    with pytest.raises(DataError, match="rows are frames, and their times are not known; set --fps, or name"):
        read_annotations(table)
    bouts = read_annotations(table, videos=VideoFinder([tmp_path / "cage1.mp4"]))
    found = [(each.video, each.start * 16, each.end * 16, each.label) for each in bouts]
    assert found == [("cage1", 29, 31, "groom"), ("cage1", 30, 31, "peck"), ("cage1", 31, 32, "unscored")]
    short = written(tmp_path, "cage1.csv", DEEPETHOGRAM)
    with pytest.raises(DataError, match="has 4 frames, and the video 32; is it of another video"):
        read_annotations(short, videos=VideoFinder([tmp_path / "cage1.mp4"]))


HEADER = "video,start,end,label"


@pytest.mark.parametrize(
    ("header", "subject", "observer"),
    [
        ("recording,onset,offset,Behaviour,Animal,rater", "m1", "anna"),
        ("File,begin,stop,action,mouse_id,coder", "m1", "anna"),
        ("video,start,end,label,subject,mouse", "m1", ""),  # `subject` is known already
        ("video,start_time,end_time,class,animal,rat", "", ""),  # of two names, neither is taken
    ],
)
def test_usual_names_of_columns_are_read(tmp_path: Path, header: str, subject: str, observer: str):
    path = written(tmp_path, "a.csv", f"{header}\nx.mp4,1,2.5,groom,m1,anna\n")
    (bout,) = read_annotations(path)
    assert (bout.video, bout.start, bout.end, bout.label) == ("x.mp4", 1, 2.5, "groom")
    assert (bout.subject, bout.observer) == (subject, observer)


def test_a_table_without_a_label_of_one_meaning_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"its header lacks label \(it has video, start, stop, class, action"):
        read_annotations(written(tmp_path, "a.csv", "video,start,stop,class,action\n"))


def of_segment(segment: list) -> dict:
    return {"database": {"x": {"annotations": [{"segment": segment, "label": "a"}]}}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", f"{HEADER}\na.mp4,1,2,\n", "no bout that is read, only row without a label (1)"),
        ("a.csv", f"{HEADER}\na.mp4,0,1e308,run\n", "line 2: "),
        ("a.csv", f"{HEADER}\na.mp4,0,1e14,run\n", "needs 0 <= start <= end"),
        ("a.json", {"images": []}, "not annotations of a known kind (csv, boris, boris-table, "),
        ("a.json", {"images": [], "x": 1}, "video,start,end,label; this is JSON with images, x"),
        ("a.csv", "path,label\na.mp4,1\n", "a csv table needs the columns video,start,end,label"),
        ("a.csv", "video,type,id,start,end\n", "its header lacks label (it has video, type, id, start, end)"),
        (
            "a.csv",
            "file;no;from;to;type\n",
            "lacks start, end, label (it has file, no, from, to, type)",
        ),
        ("a.csv", "label,youtube_id,time_start\n", "for a list of Kinetics, use `everest prepare index`"),
        ("a.csv", "", "a csv table needs the columns video,start,end,label"),
        (
            "a.json",
            [{"data": {"clip": "x", "n": 1}, "annotations": [{"result": [{"value": SOUND}]}]}],
            "not clip, n",
        ),
        ("a.json", "[1, 2", "a.json: cannot be read as annotations: damaged JSON: Expecting ',' delimiter"),
        ("a.csv", f"{HEADER}\na.mp4,1\n", "line 2: it has 2 fields, and the header 4"),
        ("a.csv", f"{HEADER}\na.mp4,x,2,run\n", "line 2: 'x' is no number"),
        ("a.csv", f"{HEADER}\na.mp4,2,1,run\n", "line 2: the bout 'run' of a.mp4 starts at 2.0 s and ends "),
        ("a.csv", f"{HEADER}\na.mp4,0,1,sit\n,1,2,sit\n", "line 3: it names no video"),
        ("a.csv", f"{HEADER},origin\na.mp4,0,1,run,me\n", "line 2: the origin is 'me' and not one of"),
        ("a.json", [{"annotations": [{"result": [GROOM]}], "data": {"text": "x"}}], "task names no video"),
        ("a.json", [{"video": "a", "x": [GROOM]}, {"video": "b", "y": [NO_END]}], "task 2: region q: 'end'"),
        ("a.json", [{"video": "a", "label": "run", "start": 1}], "task 1: 'end' is missing"),
        ("a.json", [{"video": "a", "x": [SOUND | {"start": None}]}], "task 1: region 1: unexpected struct"),
        ("a.json", [{"annotations": [{"result": [BOX]}]}], "no bout that is read, only box (1)"),
        ("a.json", [{"video": "a", "act": "run"}], "no bout that is read, only task with act only (1)"),
        ("a.json", {"database": {"x": {"subset": "testing"}}}, "video without annotations (testing) (1)"),
        ("a.vtt", "WEBVTT\n\nNOTE x\n", "no bout that is read, only block NOTE (1)"),
        ("a.srt", f"{SRT_CUE[:-4]}", "no bout that is read, only cue without a text (1)"),
        ("a.csv", ",background,run,sit\n0,1,0,0\n1,0,0,2\n", "other values than 0, 1 and -1: sit"),
        ("a.json", [{"video": "a.mp4", "x": [{"timelinelabels": ["a"], "ranges": []}]}], "set --fps to the"),
        ("a.json", {"database": {"x": {"annotations": [{"label": "a"}]}}}, "video 'x': 'segment' is "),
        ("a.vtt", "WEBVTT\n\n1 --> 2\nrun\n", "line 3: '1 --> 2' has no times such as"),
        ("a.tsv", "video\tstart\tend\tlabel\na\t1,5\t2\trun\n", "line 2: '1,5' is no number; write decimals"),
        ("a.srt", "a story", "line 1: 'a story' has no times"),
        ("a.srt", SRT_CUE + "2\n" + SRT_CUE, "line 6: '00:00:01,000 --> 00:00:02,000' is in the text"),
        ("a.srt", f"{SRT_CUE}00:00:03,5 --> 00:00:04\nsit", "line 4: '00:00:03,5 --> 00:00:04' is in the"),
        ("a.vtt", "WEBVTT\nKind: x\nKey: y\n" + SRT_CUE, "line 5: '00:00:01,000 --> 00:00:02,000'"),
        ("a.srt", SRT_CUE.replace("01,000 -->", "01,000 --> " + "9" * 400), "line 2: "),
        ("a.eaf", "<html></html>", "its first element is <html>, and not <ANNOTATION_DOCUMENT>"),
        ("a.csv", "frame,run\n0,x\n", "no column of 0 and 1 at its end (columns: frame, run)"),
        ("a.boris", "[1, 2", "cannot be read as boris: damaged JSON: Expecting"),
        ("a.json", of_segment([0, 10**400]), "too large"),
        ("a.json", of_segment([0]), STRUCTURE),
        ("a.json", [{"video": "a", "x": [{"timelinelabels": "a", "ranges": []}]}], "region 1: timelinelabel"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, name: str, content: Any, message: str):
    fps = None if "--fps" in message else 10
    with pytest.raises(DataError) as error:
        read_annotations(written(tmp_path, name, content), fps=fps)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def with_changes(value: Any, draw: Any) -> Any:
    """A JSON value in which any part is replaced by a value of another type, or removed."""
    other = st.sampled_from([None, -1, 1e300, "", "x", [], {}, [None], {"z": 1}, True])
    if draw(st.integers(0, 9)) == 0:
        return draw(other)
    if isinstance(value, dict):
        return {key: with_changes(each, draw) for key, each in value.items() if draw(st.integers(0, 19))}
    if isinstance(value, list):
        return [with_changes(each, draw) for each in value]
    return value


@pytest.mark.parametrize("number", range(len(EXPORTS)))
@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_ends_in_anything_but_one_line(tmp_path: Path, number: int, data: st.DataObject):
    name, content, _, fps, _ = EXPORTS[number]
    if isinstance(content, str):
        place = data.draw(st.integers(0, len(content)))
        rest = content[place + data.draw(st.integers(0, 9)) :]
        damage = st.sampled_from(["", "\n", ",", "\t", '"', "<", "9", "\0"])
        content = content[:place] + data.draw(damage) + rest
    else:
        content = with_changes(content, data.draw)
    found, message = [], ""
    try:
        found = read_annotations(written(tmp_path, name, content), fps=fps)
    except DataError as error:
        message = str(error)
    assert "\n" not in message
    assert all(isinstance(each.label, str) for each in found)


def test_missing_files_and_other_encodings_are_named(tmp_path: Path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_annotations(tmp_path / "a.csv")
    for name in ("a.csv", "a.srt", "a.boris"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00video")
        with pytest.raises(DataError, match=rf"{name}: .*it is no text in UTF-8"):
            read_annotations(tmp_path / name)
    for start, message in (
        (b"PK\3\4", "it is a spreadsheet or an archive; export it as csv or tsv"),
        (b"\xd0\xcf\x11", "it is a spreadsheet; export it as csv or tsv"),
        (b"\x1f\x8b\b", "it is compressed; unpack it first"),
    ):
        (tmp_path / "a.xlsx").write_bytes(start)
        with pytest.raises(DataError, match=f"a.xlsx: cannot be read as annotations: {message}"):
            read_annotations(tmp_path / "a.xlsx")
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path, tmp_path / "pipe.csv"):
        with pytest.raises(DataError, match="expected a file of annotations, not a folder"):
            read_annotations(path)


FPS = (5.0, 16.0, 24000 / 1001, 25.0, 30000 / 1001, 60.0, 240.0, 500.0)
FRAMES = 2000
WRITTEN = ("csv", "boris", "elan", "srt", "vtt")
TEXT = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=8).filter(
    lambda text: text != "background"
)


@st.composite
def videos_with_bouts(draw: st.DrawFn) -> tuple[float, list[Bout]]:
    """A frame rate, and bouts between frames; those of one class and subject do not overlap or touch."""
    fps = draw(st.sampled_from(FPS))
    labels = draw(st.lists(TEXT, min_size=1, max_size=3, unique=True))
    bouts = []
    for video in draw(st.sampled_from([["one.mp4"], ["folder/one.mp4", "two.mkv"]])):
        for label in labels:
            for subject in ("", "anna"):
                frames = sorted(draw(st.sets(st.integers(0, FRAMES), max_size=6)))
                for first, after in zip(frames[::2], frames[1::2], strict=False):
                    origin = draw(st.sampled_from(ORIGINS))
                    start = first / fps
                    end = start if draw(st.booleans()) and after > first + 1 else after / fps
                    bouts.append(bout(start, end, label, origin, video=video, subject=subject))
    return fps, bouts


@pytest.mark.parametrize("kind", WRITTEN)
@given(sampled=videos_with_bouts())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bouts_come_back_from_every_kind_exact_to_the_frame(tmp_path: Path, kind: str, sampled: tuple):
    fps, bouts = sampled
    if kind in ("srt", "vtt"):
        bouts = [each for each in bouts if not each.subject]
    times = dict.fromkeys((each.video for each in bouts), VideoTimes.from_rate(fps, FRAMES))
    if not bouts:
        return
    is_file = len(times) == 1 or kind in ("csv", "boris")
    path = tmp_path / f"{stem(next(iter(times)))}{(FORMATS[kind].ending or '.csv') if is_file else ''}"
    files = write_annotations(path, bouts, kind, times=times)
    found = [each for file in files for each in read_annotations(file)]
    assert all(recognize_format(file) == kind for file in files)

    def frames(each: Bout) -> tuple[Any, ...]:
        origin = "manual" if kind in ("srt", "vtt") else each.origin
        video = times.get(each.video) or next(iter(times.values()))
        return stem(each.video), each.label, each.subject, *frame_span(video, each), origin

    assert sorted(map(frames, found)) == sorted(map(frames, bouts))
    by_key = {frames(each): each for each in found}
    for each in bouts:
        back = by_key[frames(each)]
        assert max(abs(back.start - each.start), abs(back.end - each.end)) <= 0.5 / fps
        assert back.seconds > 0 or each.seconds == 0


def test_videos_without_bouts_are_written_too(tmp_path: Path):
    times = {name: VideoTimes.from_rate(10, 20) for name in ("a.mp4", "b.mp4")}
    files = write_annotations(tmp_path / "srt", [bout(0, 1, "run", video="a.mp4")], "srt", times=times)
    assert [file.name for file in files] == ["a.srt", "b.srt"]
    assert files[1].read_text() == ""
    files = write_annotations(tmp_path / "a.vtt", [bout(3725.5, 3727.04, "run")], "vtt")
    assert "01:02:05.500 --> 01:02:07.040" in files[0].read_text()


def test_files_that_cannot_be_written_are_refused(tmp_path: Path):
    bouts = [bout(0, 1, "run", video="x/a.mp4"), bout(0, 1, "run", video="y/a.mp4")]
    with pytest.raises(DataError, match=r"their files would have the same name, a\.eaf"):
        write_annotations(tmp_path / "eaf", bouts, "elan")
    with pytest.raises(DataError, match="is no line of text"):
        write_annotations(tmp_path / "a.srt", [bout(0, 1, "run\nfast")], "srt")
    with pytest.raises(DataError, match=r"cage1\.mp4: the label '1:00 --> run' reads as the times of a cue"):
        write_annotations(tmp_path / "a.srt", [bout(0, 1, "1:00 --> run")], "srt")
    with pytest.raises(DataError, match="there is no bout and no video"):
        write_annotations(tmp_path / "a.srt", [], "srt")
    assert list(tmp_path.iterdir()) == []
