import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from everest.errors import DataError
from everest.video.frame_borders import VideoTimes
from everest_workflows.annotations.bout import Bout, group_by_label
from everest_workflows.annotations.codings import read_video_annotations
from everest_workflows.annotations.formats import read_annotations, recognize_format, write_annotations
from everest_workflows.annotations.matching import VideoFinder
from everest_workflows.annotations.records import LeftOut

# Version 7, aggregated, without the lengths of the media; `arena` and `Time` are variables of the user.
AGGREGATED_7 = """\
Observation id\tObservation date\tDescription\tMedia file\tTotal length\tFPS\tarena\tTime\tSubject\t\
Behavior\tBehavioral category\tModifiers\t\
Behavior type\tStart (s)\tStop (s)\tDuration (s)\tComment start\tComment stop
day 1\t2018-12-01 23:01:31\tnest\tC:\\videos\\cage1.mp4\t4.0\t16.0\tA\tmorning\tNo focal subject\tgroom\t\t\t\
STATE\t0.500\t1.250\t0.750\t\t
day 1\t2018-12-01 23:01:31\tnest\tC:\\videos\\cage1.mp4\t4.0\t16.0\tA\tmorning\tfemale\tpeck\t\tleft\t\
POINT\t1.800\t1.800\tNA\t\t
day 1\t2018-12-01 23:01:31\tnest\tC:\\videos\\cage2.mp4\t4.0\t16.0\tA\tmorning\tfemale\tgroom\t\t\t\
STATE\t2.500\t3.000\t0.500\t\t
"""
# Version 7, events: lines about the observation first.
EVENTS_7 = """\
Observation id\tday 1\t\t\t\t\t\t\t
\t\t\t\t\t\t\t\t
Media file(s)\t\t\t\t\t\t\t\t
\t\t\t\t\t\t\t\t
Player #1\tC:\\videos\\cage1.mp4\t\t\t\t\t\t\t
\t\t\t\t\t\t\t\t
Observation date\t2018-11-27 01:57:26\t\t\t\t\t\t\t
Description\t\t\t\t\t\t\t\t
Time offset (s)\t0.0\t\t\t\t\t\t\t
\t\t\t\t\t\t\t\t
independent variables\t\t\t\t\t\t\t\t
variable\tvalue\t\t\t\t\t\t\t
arena\tA\t\t\t\t\t\t\t
\t\t\t\t\t\t\t\t
Time\tMedia file path\tTotal length\tFPS\tSubject\tBehavior\tBehavioral category\tComment\tStatus
0.500\tC:\\videos\\cage1.mp4\t2.000\t16.0\t\tgroom\t\t\tSTART
1.000\tC:\\videos\\cage1.mp4\t2.000\t16.0\tfemale\tgroom \t\t\tSTART
1.250\tC:\\videos\\cage1.mp4\t2.000\t16.0\t\tgroom\t\t\tSTOP
1.500\tC:\\videos\\cage1.mp4\t2.000\t16.0\tfemale\tgroom \t\t\tSTOP
1.800\tC:\\videos\\cage1.mp4\t2.000\t16.0\tfemale\tpeck\t\t\tPOINT
"""
# Version 8: a bout of groom runs over the border between two media at 2 s; the second player is a camera.
EVENTS_8 = """\
Observation id,Observation date,Description,Observation duration,Observation type,Source,Time offset (s),\
Media duration (s),FPS,arena,Subject,Behavior,Behavioral category,Modifier #1,Behavior type,Time,\
Media file name,Image index,Image file path,Comment
day 1,2023-05-01 10:00:00,,3.5,Media file(s),player #1:a/cage1.mp4;a/cage2.mp4|player #2:side.mp4,10.0,\
2.000;2.000|4.000,16.000;16.000|16.000,A,No focal subject,groom,body,,START,11.500,a/cage1.mp4,24,NA,automated
day 1,2023-05-01 10:00:00,,3.5,Media file(s),player #1:a/cage1.mp4;a/cage2.mp4|player #2:side.mp4,10.0,\
2.000;2.000|4.000,16.000;16.000|16.000,A,No focal subject,peck,,left,POINT,12.000,a/cage2.mp4,0,NA,
day 1,2023-05-01 10:00:00,,3.5,Media file(s),player #1:a/cage1.mp4;a/cage2.mp4|player #2:side.mp4,10.0,\
2.000;2.000|4.000,16.000;16.000|16.000,A,No focal subject,groom,body,,STOP,12.750,a/cage2.mp4,12,NA,
"""


GROOM_STARTS = "0.500\tC:\\videos\\cage1.mp4\t2.000\t16.0\t\tgroom\t\t\tSTART\n"


def spans(bouts: list[Bout]) -> list[tuple[Any, ...]]:
    return [(b.video, pytest.approx(b.start), pytest.approx(b.end), b.label, b.subject) for b in bouts]


def written(folder: Path, text: str, name: str = "export.tsv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def project(**changes: Any) -> dict[str, Any]:
    """A project as version 8 saves it, with two queued media of 2 s."""
    observation = {
        "file": {"1": ["D:\\v\\cage1.mp4", "D:\\v\\cage2.mp4"], "2": [], "3": []},
        "type": "MEDIA",
        "date": "2023-05-01T10:00:00",
        "description": "",
        "time offset": 0.0,
        "events": [
            [0.5, "female", "groom", "", "", 8],
            [2.5, "", "peck", "left", "", 40],
            [1.0, "female", "groom", "", "", 16],
            [1.5, "", "groom", "", "curated", 24],
            [3.0, "", "groom", "", "", 48],
        ],
        "observation time interval": [0, 0],
        "independent_variables": {"arena": "A"},
        "visualize_spectrogram": False,
        "close_behaviors_between_videos": False,
        "media_info": {
            "length": {"D:\\v\\cage1.mp4": 2.0, "D:\\v\\cage2.mp4": 2.0},
            "fps": {"D:\\v\\cage1.mp4": 16.0, "D:\\v\\cage2.mp4": 16.0},
            "hasVideo": {"D:\\v\\cage1.mp4": True},
            "hasAudio": {"D:\\v\\cage1.mp4": False},
            "offset": {"1": 0.0},
        },
        **changes,
    }
    behaviors = {
        "0": {"type": "Point event", "key": "p", "code": "peck", "description": "", "modifiers": {}},
        "1": {"type": "State event", "key": "g", "code": "groom", "description": "", "modifiers": {}},
    }
    live = {"file": [], "type": "LIVE", "time offset": 0.0, "events": [[1.0, "", "peck", "", ""]]}
    return {
        "time_format": "hh:mm:ss",
        "project_name": "cages",
        "project_format_version": "7.0",
        "behaviors_conf": behaviors,
        "subjects_conf": {"0": {"key": "f", "name": "female", "description": ""}},
        "observations": {"day 1": observation, "live": live},
    }


def test_a_table_of_version_7_needs_the_videos_if_media_are_queued(tmp_path: Path, clip_files: Path):
    file = written(tmp_path, AGGREGATED_7)
    assert recognize_format(file) == "boris-table"
    with pytest.raises(DataError, match=r"has 2 queued media, .* length of C:\\videos\\cage1.mp4 is not"):
        read_annotations(file)
    for name in ("cage1.mp4", "cage2.mp4"):
        (tmp_path / name).symlink_to(clip_files / "clip0.mp4")  # 2 s each
    videos = VideoFinder([tmp_path / "cage1.mp4", tmp_path / "cage2.mp4"])
    assert spans(read_annotations(file, videos=videos)) == [
        ("C:\\videos\\cage1.mp4", 0.5, 1.25, "groom", ""),
        ("C:\\videos\\cage1.mp4", 1.8, 1.8, "peck", "female"),
        ("C:\\videos\\cage2.mp4", 0.5, 1.0, "groom", "female"),
    ]


def test_events_of_version_7_are_paired_by_subject(tmp_path: Path):
    file = written(tmp_path, EVENTS_7)
    assert recognize_format(file) == "boris-table"
    assert spans(read_annotations(file)) == [
        ("C:\\videos\\cage1.mp4", 0.5, 1.25, "groom", ""),
        ("C:\\videos\\cage1.mp4", 1.0, 1.5, "groom", "female"),
        ("C:\\videos\\cage1.mp4", 1.8, 1.8, "peck", "female"),
    ]
    # Times run over all queued files, of which the rows may name the second only.
    player = "Player #1\tC:\\videos\\cage{}.mp4\t\t\t\t\t\t\t\n"
    second = EVENTS_7.replace("\\cage1.mp4\t2.000", "\\cage2.mp4\t2.000")
    second = second.replace(player.format(1), player.format(1) + player.format(2))
    with pytest.raises(DataError, match=r"has 2 queued media, .* length of C:\\videos\\cage1.mp4 is not"):
        read_annotations(written(tmp_path, second))


def test_times_of_version_8_run_on_over_the_media_and_contain_the_offset(tmp_path: Path):
    file = written(tmp_path, EVENTS_8, "export.csv")
    assert recognize_format(file) == "boris-table"
    left_out = LeftOut()
    bouts = read_annotations(file, left_out=left_out)
    assert left_out == {"media file of another player": 1, "modifier of an event": 1}
    assert spans(sorted(bouts, key=lambda bout: (bout.video, bout.label))) == [
        ("a/cage1.mp4", 1.5, 2.0, "groom", ""),
        ("a/cage2.mp4", 0.0, 0.75, "groom", ""),
        ("a/cage2.mp4", 0.0, 0.0, "peck", ""),
    ]
    assert {bout.label: bout.origin for bout in bouts} == {"groom": "automated", "peck": "manual"}


def test_a_project_has_the_same_bouts(tmp_path: Path):
    file = written(tmp_path, json.dumps(project()), "cages.boris")
    assert spans(read_annotations(file)) == [
        ("D:\\v\\cage1.mp4", 0.5, 1.0, "groom", "female"),
        ("D:\\v\\cage2.mp4", 0.5, 0.5, "peck", ""),
        ("D:\\v\\cage1.mp4", 1.5, 2.0, "groom", ""),
        ("D:\\v\\cage2.mp4", 0.0, 1.0, "groom", ""),
        ("live", 1.0, 1.0, "peck", ""),
    ]
    assert [bout.origin for bout in read_annotations(file)][2:4] == ["curated", "curated"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([0.5, "", "groom", "", ""], "'groom' is started at 0.500 s and not stopped; fix it in BORIS"),
        ([9, "", "peck", "", ""], "'peck' from 9.000 to 9.000 s is outside of its media, which have 4.0"),
        ({"time offset": 60.0}, "'groom' from -59.500 to -59.000 s less the time offset of 60 s is outside"),
        (
            ["nan", "", "peck", "", ""],
            "event 1: has no time; correct or delete",
        ),
        ([None, "", "peck", "", ""], "'day 1': event 1: has no time; correct or delete it in BORIS"),
        (
            [float("nan"), "", "peck", "", "", "NA"],
            "'day 1': event 1: has no time; correct or delete it in BORIS",
        ),
        ([10**400, "", "peck", "", ""], "observation 'day 1': event 1: a number is too large"),
        (["x", "", "peck", "", ""], "observation 'day 1': event 1: could not convert"),
        ([1.0, "", "peck"], "event 1: has 3 of the fields time, subject, behavior, modifiers, comment"),
        ({"events": None}, "observation 'day 1': unexpected structure; export the file again"),
    ],
)
def test_a_project_that_makes_no_sense_is_refused_in_one_line(tmp_path: Path, changes: Any, message: str):
    document = project(**(changes if isinstance(changes, dict) else {"events": [changes]}))
    file = written(tmp_path, json.dumps(document), "cages.boris")
    with pytest.raises(DataError) as error:
        read_annotations(file)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "before", "after", "message"),
    [
        (EVENTS_7, "1.800\tC", "1,8\tC", "line 20: '1,8' is no number; write decimals with a point"),
        (EVENTS_7, "POINT", "QUIT", "line 20: the status 'QUIT' is not one of START, STOP, POINT"),
        (EVENTS_7, "\t\t\tPOINT", "", "line 20: it has 6 fields, and the header 9"),
        (EVENTS_7, "1.800\tC", "1e300\tC", "line 20: from 1e+300 to 1e+300 s is no interval"),
        (AGGREGATED_7, "\t1.250", "\t0.250", "line 2: from 0.5 to 0.25 s is no interval; fix it"),
        (AGGREGATED_7, "0.500\t1.250", "UNPAIRED\tUNPAIRED", "line 2: 'groom' is UNPAIRED; fix it in BORIS"),
        (
            EVENTS_8,
            "12.750,a/cage2.mp4",
            "14.000,a/cage1.mp4",
            "at 14 s an event names a/cage1.mp4, which",
        ),
        (EVENTS_8, "peck,,left", ",,left", "line 3: it names no behavior"),
        (EVENTS_7, GROOM_STARTS, "", "observation 'day 1': 'groom' is stopped at 1.250 s and not started"),
    ],
)
def test_a_damaged_row_is_named_by_its_line(tmp_path: Path, text: str, before: str, after: str, message: str):
    assert before in text
    with pytest.raises(DataError, match=r"export\.tsv") as error:
        read_annotations(written(tmp_path, text.replace(before, after)))
    assert message in str(error.value)


def test_a_table_of_any_separator_is_read_and_variables_and_cells_may_have_any_text(tmp_path: Path):
    expected = read_annotations(written(tmp_path, EVENTS_8))
    assert read_annotations(written(tmp_path, EVENTS_8.replace("arena", "Status"))) == expected
    rows = list(csv.reader(io.StringIO(EVENTS_8), delimiter="\t" if "\t" in EVENTS_8 else ","))
    rows[1][rows[0].index("Description")] = "two\tcages"
    for number, separator in enumerate("\t;,"):
        text = io.StringIO()
        csv.writer(text, delimiter=separator, lineterminator="\n").writerows(rows)
        assert read_annotations(written(tmp_path, text.getvalue(), f"{number}.csv")) == expected


def test_the_project_that_is_written_has_what_boris_reads(tmp_path: Path):
    bouts = [
        Bout(video="cage1.mp4", start=0.25, end=1, label="groom", origin="automated"),
        Bout(video="cage1.mp4", start=0.75, end=1.5, label="groom", origin="automated"),  # overlaps
        Bout(video="cage1.mp4", start=1.5, end=2, label="groom", subject="female"),
        Bout(video="cage1.mp4", start=0.5, end=0.5, label="peck", origin="curated"),
    ]
    times = {name: VideoTimes.from_rate(16, 32) for name in ("cage1.mp4", "empty.mp4")}
    file = tmp_path / "cages.boris"
    assert write_annotations(file, bouts, "boris", times=times) == [file]
    document = json.loads(file.read_text())
    saved = project()
    assert document.keys() >= saved.keys()
    assert list(document["observations"]) == ["cage1", "empty"]
    observation = document["observations"]["cage1"]
    assert observation.keys() >= saved["observations"]["day 1"].keys()
    assert observation["media_info"].keys() >= saved["observations"]["day 1"]["media_info"].keys()
    kinds = {each["code"]: each["type"] for each in document["behaviors_conf"].values()}
    assert kinds == {"groom": "State event", "peck": "Point event"}
    assert [event[:3] for event in observation["events"]] == [
        [0.25, "", "groom"],
        [0.5, "", "peck"],
        [1.5, "", "groom"],
        [1.5, "female", "groom"],
        [2.0, "female", "groom"],
    ]
    assert spans(read_annotations(file)) == [
        ("cage1.mp4", 0.5, 0.5, "peck", ""),
        ("cage1.mp4", 0.25, 1.5, "groom", ""),
        ("cage1.mp4", 1.5, 2.0, "groom", "female"),
    ]


def test_boris_cannot_hold_overlapping_bouts_of_two_origins(tmp_path: Path):
    bouts = [
        Bout(video="a.mp4", start=0, end=1, label="groom"),
        Bout(video="a.mp4", start=0.5, end=2, label="groom", origin="automated"),
    ]
    with pytest.raises(DataError, match=r"with different origins overlap at 0\.500 s"):
        write_annotations(tmp_path / "a.boris", bouts, "boris")
    assert not (tmp_path / "a.boris").exists()


@pytest.mark.parametrize("code", ["Groom", "groom ", "peck2", None])
@pytest.mark.parametrize("times", [(1.0, 2.0), (1.0, 2.0, 3.0)])
def test_a_behavior_that_the_ethogram_lacks_is_named(tmp_path: Path, code: str | None, times: tuple[float]):
    document = project(events=[[time, "", code or "groom", "", ""] for time in times])
    known = "the ethogram has 'groom', 'peck'"
    if code is None:
        document["behaviors_conf"], known = {}, "the ethogram has no behavior"
    message = f"observation 'day 1': events of '{code or 'groom'}', but {known}; add or rename them in BORIS"
    with pytest.raises(DataError, match=re.escape(message)):
        read_annotations(written(tmp_path, json.dumps(document), "cages.boris"))


@pytest.mark.parametrize(
    ("kind", "ends"),
    [("State event with coding map", [1.0]), ("Point event with coding map", [0.5, 1.0]), ("state", None)],
)
def test_the_type_of_a_behavior_decides_what_an_event_is(tmp_path: Path, kind: str, ends: list | None):
    document = project(events=[[time, None, "groom", "", "", "NA"] for time in (0.5, 1.0)])
    document["behaviors_conf"]["1"]["type"] = kind
    file = written(tmp_path, json.dumps(document), "cages.boris")
    if ends is None:
        with pytest.raises(DataError, match="event 1: 'groom' is of the type 'state' in the ethogram, not a"):
            read_annotations(file)
    else:
        assert [bout.end for bout in read_annotations(file) if bout.label == "groom"] == ends


def test_what_a_project_has_besides_bouts_is_counted(tmp_path: Path):
    document = project()
    observations = document["observations"]
    for place, comment in ((0, "slow"), (2, "NA")):  # start and stop of a bout
        observations["day 1"]["events"][place][3:5] = ["head|None", comment]
    observations["day 1"]["file"]["2"] = ["side.mp4"]
    observations["photos"] = observations["live"] | {"type": "IMAGES"}
    observations["later"] = observations["live"] | {"events": []}
    file, left_out = written(tmp_path, json.dumps(document), "cages.boris"), LeftOut()
    assert len(read_annotations(file, left_out=left_out)) == 5
    assert left_out == {
        "comment of an event": 1,
        "media file of another player": 1,
        "modifier of an event": 3,
        "observation of images": 1,
        "observation without an event": 1,
    }
    labels = read_video_annotations([file], ["cage1.mp4", "cage2.mp4"])
    assert labels.left_out["live observation 'live', which has no video"] == 1
    document["observations"] = {"photos": observations["photos"]}
    with pytest.raises(DataError, match=r"has no bout that is read, only observation of images \(1\)"):
        read_annotations(written(tmp_path, json.dumps(document), "cages.boris"))


@pytest.mark.parametrize("player", ["2", "8"])
@pytest.mark.parametrize(
    ("delay", "expected"),
    [
        (0.0, [("groom", 1.0, 3.5), ("peck", 0.5, 0.5)]),
        (0.75, [("groom", 0.25, 2.75)]),  # begins later, after the point event
        (-1.5, [("groom", 2.5, 4.0), ("peck", 2.0, 2.0)]),  # ends before the bout does
    ],
)
def test_the_video_may_be_shown_by_any_player_at_its_own_time(tmp_path, player, delay, expected):
    document = project(
        file={"1": ["front.mp4"], player: ["side0.mp4", "side1.mp4"]},
        events=[[at, "", name, "", ""] for at, name in ((10.5, "peck"), (11.0, "groom"), (13.5, "groom"))],
        media_info={
            "length": {"front.mp4": 9.0, "side0.mp4": 2.0, "side1.mp4": 2.0},
            "offset": {"1": 0.0, player: delay},
        },
        **{"time offset": 10.0},
    )
    file = written(tmp_path, json.dumps(document), "cages.boris")
    labels = read_video_annotations([file], ["side0.mp4", "side1.mp4"])
    found = {  # times over both files
        name: (
            min(bout.start + 2 * (bout.video == "side1.mp4") for bout in bouts),
            max(bout.end + 2 * (bout.video == "side1.mp4") for bout in bouts),
        )
        for name, bouts in group_by_label(bout for each in labels.bouts.values() for bout in each).items()
    }
    assert found == {name: (pytest.approx(start), pytest.approx(end)) for name, start, end in expected}
    assert labels.left_out["bout outside the media of the player"] == 2 - len(expected)


def test_bouts_that_only_another_player_shows_are_read_with_its_videos_alone(tmp_path):
    document = project(
        file={"1": ["front.mp4"], "2": ["side.mp4"]},
        events=[[at, "", "groom", "", ""] for at in (12.0, 15.0)],
        media_info={"length": {"front.mp4": 10.0, "side.mp4": 20.0}},
    )
    file = written(tmp_path, json.dumps(document), "cages.boris")
    with pytest.raises(DataError, match=r"of another player \(1\); give the videos of another player only$"):
        read_video_annotations([file], ["front.mp4", "side.mp4"])
    assert [*read_video_annotations([file], ["side.mp4"]).bouts] == ["side.mp4"]


@pytest.mark.parametrize("text", [EVENTS_8, EVENTS_7])
def test_a_table_states_the_media_of_all_players(tmp_path: Path, clip_files: Path, text: str):
    above = "Player #1\tC:\\videos\\cage1.mp4\t\t\t\t\t\t\t\n"
    text = text.replace(above, above + above.replace("#1\tC:\\videos\\cage1", "#2\tside"))
    side = tmp_path / "side.mp4"
    side.symlink_to(clip_files / "clip0.mp4")
    labels = read_video_annotations([written(tmp_path, text)], [str(side)])
    assert {bout.label for bout in labels.bouts[str(side)]} == {"groom", "peck"}
    assert labels.left_out["media file of another player"] == (2 if text == EVENTS_8 else 1)


ROWS = [("cage1.mp4", 0.5, 1.25), ("cage2.mp4", 0.25, 0.75), ("cage2.mp4", 1.0, 1.5)]  # seconds of each file


@pytest.mark.parametrize("separator", ",\t")
@pytest.mark.parametrize("folder", ["", "C:\\lab\\"])
@pytest.mark.parametrize("name", [None, "", "NA", "obs1"])  # of the observation; None: no column
@pytest.mark.parametrize("is_events", [True, False])
def test_rows_without_a_queue_are_of_their_files(tmp_path, clip_files, separator, folder, name, is_events):
    more = {} if name is None else {"Observation id": name}
    rows = [
        more | {"Media file name": folder + file, "Subject": "", "Behavior": "groom"} | times
        for file, start, end in ROWS
        for times in (
            [{"Time": start, "Status": "START"}, {"Time": end, "Status": "STOP"}]
            if is_events
            else [{"Behavior type": "STATE", "Start (s)": start, "Stop (s)": end}]
        )
    ]
    lines = [separator.join(map(str, row)) for row in (rows[0], *(row.values() for row in rows))]
    videos = [tmp_path / "cage1.mp4", tmp_path / "cage2.mp4"]
    for video in videos:
        video.symlink_to(clip_files / "clip0.mp4")  # 2 s
    labels = read_video_annotations([written(tmp_path, "\n".join(lines))], list(map(str, videos)))
    found = [(Path(bout.video).name, bout.start, bout.end) for each in labels.bouts.values() for bout in each]
    assert sorted(found) == ROWS


def test_bouts_that_only_another_player_shows_are_left_out(tmp_path: Path):
    events = [[at, "", "groom", "", ""] for at in (1.0, 4.0, 8.0, 12.0, 14.0, 15.0)]
    info = {"length": {"cam1.mp4": 10.0, "cam2.mp4": 20.0}, "offset": {"1": 0.0, "2": 2.0}}
    media = {"1": ["cam1.mp4"], "2": ["cam2.mp4"]}
    file = written(tmp_path, json.dumps(project(file=media, events=events, media_info=info)), "cages.boris")
    for name, expected, counted in (
        ("cam1.mp4", [(1, 4), (8, 10)], {"bout outside": 1, "part of a bout outside": 1}),
        ("cam2.mp4", [(0, 2), (6, 10), (12, 13)], {"part of a bout outside": 1}),
    ):
        labels = read_video_annotations([file], [name])
        assert [(bout.start, bout.end) for bout in labels.bouts[name]] == expected
        counted = {f"{reason} the media of the player": count for reason, count in counted.items()}
        counted["live observation 'live', which has no video"] = counted["media file of another player"] = 1
        assert labels.left_out == counted
    alone = project(file={"1": ["cam1.mp4"]}, events=events, media_info=info)
    with pytest.raises(DataError, match="outside of its media, which have 10"):
        read_annotations(written(tmp_path, json.dumps(alone), "cages.boris"))


@pytest.mark.parametrize("names", [["cage1.mp4"], ["cage1.mp4", "cage1.mov"]])
def test_a_player_of_the_sound_gives_way_to_that_of_the_video(tmp_path: Path, names: list[str]):
    info = {"length": {"cage1.wav": 20.0, "cage1.mp4": 20.0}}
    events = [[at, "", "groom", "", ""] for at in (3.0, 5.0)]
    old = {"time offset second player": 2.0}  # until version 6; later, the offset is one of media_info
    for more, offset in ((old, {}), ({}, {"offset": {"1": 0.0, "2": 2.0}})):
        document = project(
            file={"1": ["cage1.wav"], "2": ["cage1.mp4"]}, events=events, media_info=info | offset, **more
        )
        labels = read_video_annotations([written(tmp_path, json.dumps(document), "cages.boris")], names)
        assert [(bout.start, bout.end) for bout in labels.bouts["cage1.mp4"]] == [(1.0, 3.0)]


def test_a_live_observation_is_of_no_video(tmp_path: Path):
    document = project()
    document["observations"]["cage2"] = document["observations"].pop("live") | {
        "events": [[1.0, "", "groom", "", ""]]
    }
    file = written(tmp_path, json.dumps(document), "cages.boris")
    labels = read_video_annotations([file], ["cage1.mp4", "cage2.mp4"])
    assert {bout.observer for bouts in labels.bouts.values() for bout in bouts} == {"day 1"}
    assert labels.left_out["live observation 'cage2', which has no video"] == 1


@pytest.mark.parametrize(
    ("kind", "names"),
    [("Live observation", ["a/cage1.mp4"]), ("From pictures", []), ("From pictures", ["a/cage1.mp4"])],
)
def test_rows_of_an_observation_without_media_are_of_no_video(tmp_path: Path, kind: str, names: list[str]):
    row = f"cage1,2023-05-01 10:00:00,,3.5,{kind},NA,0.0,NA,NA,A,,rear,,,START,{{}},NA,NA,NA,\n"
    text = EVENTS_8 + row.format("2.0" if kind.startswith("Live") else "NA")
    labels = read_video_annotations([written(tmp_path, text)], names)
    assert "rear" not in {bout.label for bouts in labels.bouts.values() for bout in bouts}
    assert labels.left_out[f"row of 'cage1' ({kind}), which has no video"] == 1
