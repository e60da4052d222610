import csv
import hashlib
import json
import re
import shlex
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import called, json_of, refused, run
from task_runs import task_run

import everest
from everest.config.heads import Head
from everest.errors import DataError
from everest.lists.classes import Classes
from everest_cli.timeline import list_end_lines
from everest_workflows.annotations.bout import Bout
from everest_workflows.annotations.formats import read_annotations
from everest_workflows.recordings.bouts import BoutRules
from everest_workflows.recordings.scores import score_timelines, write_bouts
from everest_workflows.recordings.timelines import Timelines, VideoTimeline

TWO_CLASSES = Classes(heads=(Head(outputs=2),), names=("x", "y"))


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    path = tmp_path / "truth.csv"
    path.write_text("video,start,end,label\nclip1.mp4,0,0.5,0\nclip1.mp4,0.5,1.5,1\nclip2.mp4,0,2,1\n")
    return path


def test_scores_are_in_json_and_in_the_table(classifier_run: Path, clip_files: Path, truth: Path):
    videos = [clip_files / "clip1.mp4", clip_files / "clip2.mp4"]
    options = ["--window", 0.5, "-q", "--truth", truth]
    command = ("timeline", *videos, "-c", classifier_run, *options)
    document = json_of(*command)
    assert len(document["timelines"]) == document["videos"] == 2
    assert document["majority_accuracy"] == 75  # 48 of 64 frames are of class 1
    table = run(*command)
    assert "most frequent class     75.0" in table
    for title, key in (("frame accuracy", "frame_accuracy"), ("edit score", "edit"), ("mAP@0.5", "map@0.5")):
        assert f"  {title:<22}{document[key]:6.1f}" in table
    shown = called(*command, "-o", truth.with_name("bouts.csv"))
    assert shown.stdout == f"{truth.with_name('bouts.csv')}\n"
    assert "frame accuracy" in shown.stderr


def test_only_the_time_of_a_segment_is_scored(classifier_run: Path, clip_files: Path, tmp_path: Path):
    path = tmp_path / "list.csv"
    path.write_text(f"path,start,end\n{clip_files}/clip1.mp4,0.5,1.5\n")
    (tmp_path / "truth.csv").write_text(f"video,start,end,label\n{clip_files}/clip1.mp4,0,2,1\n")
    options = ["-q", "--truth", tmp_path / "truth.csv"]
    document = json_of("timeline", path, "-c", classifier_run, *options)
    assert document["frames"] == 16
    (entry,) = [entry for entry in document["classes"] if entry["name"] == "1"]
    assert entry["truth"] == {"bouts": 1, "seconds": 1.0}


TRAINED = "path,label,start,end,group\nrec/mc_day1.mp4,x,0,1,mc\nrec/md_day1.mp4,x,0,1,md\n"


def test_time_without_a_window_is_not_scored():
    starts, borders = np.array([0.0, 20.0, 30.0]), np.arange(41.0)  # the window at 10 s is damaged
    outputs = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    arrays = {"starts": starts, "ends": starts + 10, "outputs": outputs, "borders": borders}
    video = VideoTimeline(video="a", path="a", frames=(0, 40), **arrays)
    timelines = Timelines(classes=TWO_CLASSES, videos=[video])
    spans = {(0, 15): "x", (15, 30): "y", (30, 40): "x"}
    true = [Bout(video="a", start=start, end=end, label=name) for (start, end), name in spans.items()]
    scores = score_timelines(timelines, timelines.bouts(), {"a": true}, emit=lambda _: None)
    assert (scores["frame_accuracy"], scores["f1@50"], scores["unscored"]) == (100, 100, 10)


def test_bouts_of_a_saved_file_follow_its_rules_and_recordings_without_a_window_are_named(tmp_path: Path):
    starts, borders = np.arange(0.0, 40.0, 10), np.arange(41.0)
    outputs = np.array([[0.9, 0.1], [0.4, 0.6], [0.9, 0.1], [0.9, 0.1]], np.float32)
    arrays = {"starts": starts, "ends": starts + 10, "outputs": outputs, "borders": borders}
    video = VideoTimeline(video="a", path="a", frames=(0, 40), **arrays)
    empty = {"starts": starts[:0], "ends": starts[:0], "outputs": outputs[:0], "borders": borders[:1]}
    videos = [video, VideoTimeline(video="b", path="b", **empty)]
    timelines = Timelines(classes=TWO_CLASSES, videos=videos)
    saved = tmp_path / "t.safetensors"
    replace(timelines, rules=BoutRules(smooth=20)).save(saved)
    shown = called("timeline", saved)
    assert "no window, so no bout, in 1 of 2 recordings: b" in shown.stderr
    for options, labels in (([], ["x"]), (["--smooth", 0], ["x", "y", "x"])):
        assert [bout["label"] for bout in json_of("timeline", saved, *options)[0]["bouts"]] == labels
    replace(timelines, rules=BoutRules(smooth=-1)).save(tmp_path / "edited.safetensors")
    with pytest.raises(DataError, match=r"edited.safetensors: damaged \(smooth: must be at least 0 seconds"):
        Timelines.load(tmp_path / "edited.safetensors")
    first, output = f"next: everest budget --timeline {saved}", f"--output {tmp_path}/checked.csv"
    assert [*list_end_lines(timelines, saved, None)][-1] == f"{first} {output} --draw 13 --window 1"
    mice = [replace(video, video=name, path=name) for name in ("ma_day1.mp4", "ma_day2.mp4", "mb_day1.mp4")]
    timelines = replace(timelines, videos=mice)
    for group, advice in (
        (r"^([^\W_]+)", rf"--group '^([^\W_]+)' {output} --draw 15 --window 1"),
        (r"^(m[ab]_day\d)", rf"--group '^(m[ab]_day\d)' {output} --draw 10 --window 1"),
        (r"(rat)", f"{output} --draw 30 --window 1"),
        (r"subject", f"{output} --draw 30 --window 1"),
    ):
        *_, hint, last = list_end_lines(timelines, saved, None, group)
        assert last == f"{first} {advice}"
        assert ("add --group PATTERN" in hint) == ("--group" not in advice)
    # A model of `train --folds --group subject`, whose recordings began with the names of their subjects.
    for name, text in (("lists/train.csv", TRAINED), ("folds/1/report/outputs.json", "{}")):
        (tmp_path / "run" / name).parent.mkdir(parents=True)
        (tmp_path / "run" / name).write_text(text)
    timelines = replace(timelines, model=str(tmp_path / "run"))
    plan = f"{first} --group '^([^\\W_]+)' --plan"
    assert [*list_end_lines(timelines, saved, None, "subject")] == [f"probabilities: {saved}", plan]
    assert [*list_end_lines(timelines, saved, None)][-1] == f"{first} --plan"


def test_bouts_that_smoothing_makes_too_improbable_are_counted():
    starts, borders = np.arange(0.0, 12.0), np.arange(13.0)
    outputs = np.array([[0.05, 0.95]] * 5 + [[0.95, 0.05]] * 2 + [[0.05, 0.95]] * 5, np.float32)
    arrays = {"starts": starts, "ends": starts + 1, "outputs": outputs, "borders": borders}
    video = VideoTimeline(video="a", path="a", frames=(0, 12), **arrays)
    for rules, count in (
        (BoutRules(smooth=2, background=0.9), 1),  # 0.65 in the two windows
        (BoutRules(smooth=2, background=0.6), 0),
        (BoutRules(smooth=6, background=0.6), 0),  # another class: what smoothing is for
        (BoutRules(smooth=2), 0),
        (BoutRules(background=0.96), 0),
    ):
        notices = Timelines(classes=TWO_CLASSES, videos=[video], rules=rules).notices
        assert len(notices) == count
        assert (
            "--background 0.9 --smooth 2: smoothing lowers 1 bout of up to 2 s below" in "".join(notices)
            or not count
        )


def test_exported_bouts_have_the_subject_that_the_model_learned(tmp_path: Path):
    video = tmp_path / "clip.mp4"
    timelines = Timelines.load(saved_timeline(tmp_path / "t.safetensors", [video], subject="m1"))
    for kind in ("csv", "boris", "elan"):
        (file,) = write_bouts(tmp_path / kind, kind, timelines, timelines.bouts(), [str(video)])
        ending = {"csv": ".csv", "boris": ".boris", "elan": ".eaf"}[kind]
        assert {bout.subject for bout in read_annotations(file.rename(file.with_suffix(ending)))} == {"m1"}


def test_windows_are_drawn_from_any_folder(clip_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("a/rec", "a/out", "b"):
        (tmp_path / name).mkdir(parents=True)
    clip = tmp_path / "a" / "rec" / "clip0.mp4"
    clip.symlink_to(clip_files / "clip0.mp4")
    saved_timeline(tmp_path / "a" / "out" / "t.safetensors", [Path("rec/clip0.mp4")])
    monkeypatch.chdir(tmp_path / "b")
    draw = ["budget", "--timeline", "../a/out/t.safetensors", "--window", "0.5", "--draw", "3", "-o", "c.csv"]
    called(*draw)
    assert Path("c.html").read_text().count("<video src") == 3
    assert Path("c.csv").read_text().count("rec/clip0.mp4,") == 3
    clip.unlink()
    message = refused(*draw, "--overwrite", code=4)
    assert (
        "its recordings are not found: rec/clip0.mp4; restore them, or run budget in the folder in" in message
    )


def test_a_truth_that_cannot_be_used_is_named(classifier_run, scores_run, clip_files, tmp_path):
    command = ["timeline", clip_files / "clip1.mp4", "-q", "--truth", tmp_path / "t.csv"]
    for lines, message in (
        ("clip1.mp4,0,x,0\n", "t.csv: cannot be read as csv: line 2: 'x' is no number"),
        ("clip1.mp4,2,1,0\n", "the bout '0' of clip1.mp4 starts at 2.0 s and ends at 1.0 s"),
        ("clip9.mp4,0,1,0\n", "t.csv: annotates none of these videos; it names clip9.mp4"),
        ("clip1.mp4,0,1,walk\n", "the annotations have no class of the model: 'walk'; known: 0, 1"),
    ):
        (tmp_path / "t.csv").write_text(f"video,start,end,label\n{lines}")
        assert message in refused(*command, "-c", classifier_run, code=4)
    (tmp_path / "t.csv").write_text("video,start,end,label\nclip1.mp4,0,1,0\nclip1.mp4,1,2,jump\n")
    shown = called(*command, "-c", classifier_run)
    assert "the model has no class 'jump' (1 labeled bout)" in shown.stderr
    assert "one head of classes" in refused(*command, "-c", scores_run, code=2)
    named = task_run(tmp_path, clip_files, "named")
    (tmp_path / "t.csv").write_text("video,start,end,label\nclip1.mp4,0,1,0\n")
    assert json_of(*command, "-c", named)["frames"] == 32


def saved_timeline(path: Path, videos: list[Path], **options: Any) -> Path:
    """A saved timeline of videos of 2 s in which the first of two classes is predicted everywhere."""
    starts = np.arange(0.0, 2, 0.5)
    arrays = {"starts": starts, "ends": starts + 0.5, "outputs": np.float32([[0.9, 0.1]] * 4)}
    arrays["borders"] = np.linspace(0, 2, 17)
    timelines = [VideoTimeline(video=str(each), path=str(each), **arrays) for each in videos]
    Timelines(classes=TWO_CLASSES, videos=timelines, **options).save(path)
    return path


def check_all(windows: Path) -> None:
    """Relabel sampled windows as a person does who saw no bout in them."""
    windows.write_text(windows.read_text().replace("to check", "checked"))


def test_the_command_that_a_budget_prints_runs(clip_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    timeline = saved_timeline(tmp_path / "t.safetensors", [clip_files / f"clip{n}.mp4" for n in range(4)])
    assert "at least 2 windows" in refused(
        "budget --timeline", timeline, "--draw", 1, "-o", "one.csv", code=2
    )
    run("budget", "--timeline", timeline, "--draw", 2, "--window", 0.5, "-o", "checked.csv")
    command = ["budget", "--timeline", timeline, "--checked", "checked.csv", "--window", 0.5]
    for name in ("checked.csv", "more.csv", "more2.csv"):
        check_all(tmp_path / name)
        shown = called(*command).stderr
        _, *command = shlex.split(re.findall(r"more windows?: (.*)", shown)[0])
        assert "--window=0.5" in command
        sampled = called(*command).stderr
        _, *command = shlex.split(re.findall(r"next: (.*)", sampled)[0])
    assert [path.name for path in sorted(tmp_path.glob("*.csv"))] == [
        *("checked.csv", "more.csv", "more2.csv", "more3.csv")
    ]


def test_the_printed_command_runs_if_all_windows_end_with_their_recordings(clip_files: Path, tmp_path: Path):
    clips = [clip_files / f"clip{number}.mp4" for number in range(4)]
    timeline, checked = saved_timeline(tmp_path / "t.safetensors", clips), tmp_path / "checked.csv"
    draw = ("--draw", 2, "--window", 10, "-o", checked)  # of recordings of 2 s
    sampled = called("budget", "--timeline", timeline, *draw).stderr
    check_all(checked)
    _, *command = shlex.split(re.findall(r"next: (.*)", sampled)[0])
    assert json_of(*command)["checked"] == 2


def test_windows_drawn_in_each_group_are_estimated_group_by_group(clip_files: Path, tmp_path: Path):
    videos = [clip_files / f"clip{number}.mp4" for number in range(4)]
    budget = ("budget", "--timeline", saved_timeline(tmp_path / "t.safetensors", videos))
    checked, more, pattern = tmp_path / "checked.csv", tmp_path / "more.csv", "(clip0|clip)"
    sampled = ["--draw", 2, "--window", 0.5, "--group", pattern, "--seed", 3, "-o", checked]
    shown = called(*budget, *sampled).stderr
    assert f"--checked {checked} --window=0.5 '--group={pattern}' --seed=3" in shown
    check_all(checked)
    with checked.open("a") as file:  # all of clip0
        file.write(f"{videos[0]},0,2,y,\n")
    document = json_of(*budget, "--checked", checked)
    amounts = {row["group"]: row["seconds"] for row in document["rows"] if row["class"] == "y"}
    assert (document["checked"], amounts) == (4, {"": 2, "clip": 0, "clip0": 2})
    assert "groups of recordings, sampled at random. The" in document["methods"]  # seed 0 gives other windows
    same_seed = json_of(*budget, "--checked", checked, "--seed", 3)["methods"]
    assert (
        "of 0.5 s, 2 in each of 2 groups of recordings, sampled at random (NumPy, seed 3). The" in same_seed
    )
    nested = json_of(*budget, "--checked", checked, "--group", r"(clip\d)")  # within the groups of the draw
    assert {row["group"] for row in nested["rows"]} == {"", *(f"clip{number}" for number in range(4))}
    for group in ("", "clip3"):
        assert sum(row["percent"] for row in nested["rows"] if row["group"] == group) == pytest.approx(100)
    assert {row["n"] for row in nested["means"]} == {4}
    printed = called(*budget, "--checked", checked).stderr
    assert "intervals half as wide need about 3 more windows in each group: everest" in printed
    other = "--group (clip): the windows were sampled with --group (clip0|clip); leave it out"
    sample_more = ("--checked", checked, "--draw", 2, "-o", more)
    assert other in refused(*budget, *sample_more, "--group", "(clip)", code=2)
    assert (
        "clip0: only 2 windows left" in called(*budget, "--checked", checked, "--draw", 3, "-o", more).stderr
    )
    assert all(line.endswith(",(clip0|clip)") for line in more.read_text().splitlines()[1:])
    check_all(more)
    assert json_of(*budget, "--checked", more)["checked"] == 9


def test_a_truth_that_nobody_corrected_and_the_rules_of_a_saved_file_are_named(
    classifier_run: Path, clip_files: Path, tmp_path: Path
):
    (tmp_path / "truth.csv").write_text("video,start,end,label,origin\nclip1.mp4,0,1,0,automated\n")
    saved, options = tmp_path / "t.safetensors", ["--smooth", 0.2, "--truth", tmp_path / "truth.csv"]
    shown = called("timeline", clip_files / "clip1.mp4", "-c", classifier_run, "--save", saved, *options)
    assert "--truth has 1 predicted bout that nobody corrected: scores on them are not acc" in shown.stderr
    assert f"probabilities: {saved} (unsmoothed; remembers --smooth 0.2)" in shown.stderr


@pytest.fixture
def budget(clip_files: Path, tmp_path: Path) -> list[object]:
    """A budget of four videos; six of their 16 windows are checked, and the first three have the class x."""
    videos = [clip_files / f"clip{number}.mp4" for number in range(4)]
    timeline, checked = saved_timeline(tmp_path / "t.safetensors", videos), tmp_path / "checked.csv"
    run("budget --timeline", timeline, "--draw", 6, "--window", 0.5, "-o", checked)
    header, *sampled = checked.read_text().splitlines()
    bouts = [line.replace("to check", "x") for line in sampled[:3]]
    checked.write_text("\n".join([header, *sampled, *bouts, ""]))
    check_all(checked)
    return ["budget", "--timeline", timeline, "--checked", checked]


def test_windows_are_drawn_to_be_checked_with_the_rules_of_the_timeline(clip_files: Path, tmp_path: Path):
    timeline, checked = tmp_path / "t.safetensors", tmp_path / "checked.csv"
    saved_timeline(timeline, [clip_files / "clip0.mp4"], rules=BoutRules(smooth=0.2))
    draw = ("budget --timeline", timeline, "--draw", 2, "--window", 0.5, "-o", checked)
    for options, rules in (([], ""), (["--overwrite", "--smooth", 0], " --smooth 0")):
        shown = called(*draw, *options).stderr
        assert f"everest budget --timeline {timeline}{rules} --checked {checked} --window=0.5\n" in shown
    assert checked.read_text().startswith("video,start,end,label\n")
    assert "2 windows are not checked" in refused(*draw[:2], "--checked", checked, code=4)
    check_all(checked)
    methods = json_of(*draw[:2], "--checked", checked)["methods"]
    (tmp_path / "model").mkdir()  # of `everest train`
    (tmp_path / "result.json").write_text('{"methods": "Trained so."}')
    timelines = replace(Timelines.load(timeline), model=str(tmp_path / "model"))
    timelines.save(timeline)
    assert json_of(*draw[:2], "--checked", checked)["methods"] == f"Trained so. {methods}"
    predicted = f"A model of everest {everest.__version__} predicted all 2.0 s of footage, with "
    assert f"{predicted}probabilities averaged over 0.2 s. " in methods


def test_a_budget_has_estimates_and_says_how_they_were_made(budget: list[object]):
    document, printed = json_of(*budget), called(*budget)
    assert (document["windows"], document["checked"], document["window"]) == (16, 6, 0.5)
    for row in document["rows"]:
        low, high = row["interval"]
        assert 0 <= low <= row["seconds"] <= high
    assert "6 of 16 windows of 0.5 s are checked" in printed.stdout
    assert re.findall("methods: (.*)\n", printed.stdout) == [document["methods"]]
    assert "watched 6 of 16 windows of 0.5 s, sampled at random (NumPy, seed 0)." in document["methods"]
    assert "few windows show where bouts begin" in printed.stderr
    assert "intervals half as wide need about 6 more windows: everest budget" in printed.stderr


def test_groups_of_recordings_have_rows_and_a_figure(budget: list[object], tmp_path: Path):
    table, figure, document = tmp_path / "table.csv", tmp_path / "fractions.svg", json_of(*budget)
    rows = json_of(*budget, "--group", r"(clip)\d", "-o", table, "--plot", figure)["rows"]
    assert "fraction of time" in "".join(figure.read_text().split("<!--"))
    half = len(rows) // 2
    for of_all, of_group in zip(rows[:half], rows[half:], strict=True):  # all recordings are in this group
        assert {**of_group, "group": ""} == {**of_all, "interval": of_group["interval"]} | of_all
    with table.open(newline="") as file:
        written = [*csv.DictReader(file)]
    assert [row["group"] for row in written] == [""] * half + ["clip"] * half
    assert float(written[0]["high"]) == document["rows"][0]["interval"][1]
    assert [float(row["bouts"]) for row in written] == [row["bouts"] for row in rows]
    page = table.with_suffix(".html").read_text()
    first = "{:.1f} ({:.1f} to {:.1f})".format(rows[0]["seconds"], *rows[0]["interval"])
    table_cells = re.findall("<td.*?>(.*?)</td>", page)
    assert table_cells[:2] == ["All recordings", first]  # a table of groups and classes
    assert page.index("Seconds (95 % CI)") < page.index("data:image/png") < page.index("<h3>clip</h3>")
    assert all(f"<h3>{name}</h3>" in page for name in ("All recordings", "clip"))
    assert document["methods"].split(" of everest")[0] in page


def test_rows_that_a_budget_cannot_count_are_named(budget: list[object]):
    checked = Path(str(budget[-1]))
    before = checked.read_text()
    video = before.splitlines()[1].split(",")[0]
    for row, code, message in (
        (f"{video},90,91,y", 0, "1 bout in no checked window: not counted"),
        (f"{video},0,1,chekced", 4, "has no class 'chekced' (1 bout); did you mean 'checked'?"),
        ("other.mp4,0,1,x", 4, "other.mp4; use the names that --draw wrote"),
    ):
        checked.write_text(f"{before}{row}\n")
        assert message in called(*budget, code=code).stderr
    of_video = ("budget --timeline", video, "--checked", checked)
    assert "write it again with `everest timeline --save`" in refused(*of_video, code=4)


def test_more_windows_are_new_and_are_checked_on_a_page(budget: list[object], tmp_path: Path):
    checked, more = Path(str(budget[-1])), tmp_path / "more.csv"
    header, *lines = checked.read_text().splitlines()
    checked.write_text("\n".join([f"{header},subject", *(f"{line}," for line in lines), f"{lines[-1]},m2"]))
    run(*budget, "--draw", 10, "-o", more)
    header, *rows = (line.split(",") for line in more.read_text().splitlines())
    assert header[-1] == "subject"
    assert [row[-2:] for row in rows].count(["x", "m2"]) == 1
    windows = [(row[0], *map(float, row[1:3])) for row in rows if row[3] in ("checked", "to check")]
    assert len(set(windows)) == len(windows) == 16
    page = more.with_suffix(".html").read_text()
    assert page.count("<video") == page.count("data:video/mp4") == 10
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page  # no other script can run
    assert all(f"data-row='{json.dumps(row)}'" in page for row in rows if row[3] == "to check")
    known = [header, *(row for row in rows if row[3] != "to check")]
    assert f"data-rows='{json.dumps(known)}'" in page


def test_wrong_options_of_a_budget_are_named(budget: list[object], tmp_path: Path):
    name, option, timeline, *checked = budget
    x = tmp_path / "x.csv"
    for options, message in (
        ([*checked, "--draw", 11, "-o", x], "only 10 windows of 0.5 s left"),
        ([*checked, "--draw", 2, "--window", 0.7, "-o", x], "windows have 0.5 s; leave it out"),
        (["--draw", 99, "--window", 0.5, "-o", x], "only 16 windows of 0.5 s; draw fewer"),
        (["--draw", 5, "--window", 10, "-o", x], "only 4 windows of 10 s; draw fewer"),
        ([*checked, "--group", "subject"], "have only names here; give a pattern"),
        (["--draw", 2, "-o", x, "--plot", tmp_path / "f.svg"], "--plot needs --checked"),
        (["--draw", 2, "--window", 0.5, "-o", timeline], "is an input of this command"),
        ([], "give --plan, --draw N"),
        (["--plan", *checked], "--plan: leave out --draw, --checked"),
    ):
        assert message in refused(name, option, timeline, *options, code=2)
