"""The lists and the plan of a project: its minutes, its lines, and warnings about the videos."""

import json
import re
import shutil
from pathlib import Path

from small_projects import FEW
from small_runs import called, json_of, refused, sets

from everest.config.heads import Head
from everest.lists.classes import Classes
from everest.lists.sample import Sample
from everest.lists.sources import LIST_FILES
from everest_workflows.annotations.bout import Bout
from everest_workflows.project import project_plan
from everest_workflows.project.listed_samples import check_groups, describe_samples
from everest_workflows.project.lists import check_copies, training_window_seconds


def test_a_dry_run_prints_minutes_and_writes_nothing(class_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = called("train", class_folders, "--dry-run", "--folds", "4", *FEW)
    classes = r"2 classes: down 8, right 8\n4 folds: .*\nwarning: .* only 4 videos in each fold\n(?s:.*)"
    time = r"about \d+ (?:s|min)"
    training = f"all training: {time} for 5 fine-tunings, including {time[6:]} for validations and tests\n"
    assert re.search(classes + training, shown.stdout)
    large = sets("model.backbone=vit-s", "data.size=64")  # too slow for 300 steps on any machine
    short = ("train", class_folders, "--dry-run", "--json", "--hours", "0.01", *large)
    shown = called(*short, "--model", "network")
    plan = json.loads(shown.stdout)
    (stage,) = plan["stages"]
    assert stage["seconds"] / 60 < plan["minutes"] <= 0.6  # with validations and tests
    few = r"warning: --hours 0.01 leaves \d+ steps? for finetune, so "
    fix = "; give more hours"
    assert re.search(f"{few}a model hardly learns{fix}", shown.stderr)
    shown = called(*short)
    assert re.search(f"{few}no network is trained{fix}", shown.stderr)
    assert json.loads(shown.stdout)["trainings"] == 0
    assert 0 < stage["steps"] * stage["batch_size"] / stage["clips_per_second"] <= 36
    assert plan["lists"]["test"].startswith("2 videos")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_of_linear_models_counts_the_tests_of_all_folds(class_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(project_plan, "measure_clip_seconds", lambda *_: 60.0)
    plan = ["train", class_folders, "--dry-run", "--model", "linear"]
    assert json_of(*plan)["minutes"] == 16 + 2 + 0.1  # features of all, the test of two, and the fits
    assert json_of(*plan, "--folds", 4)["minutes"] == 16 + 16 + 0.3


def test_only_groups_of_several_clips_can_show_that_each_has_one_class():
    def warnings(*labels: int, groups: str) -> list[str]:
        pairs = enumerate(zip(labels, groups, strict=True))
        return [*check_groups([Sample(path=str(n), labels=(label,), group=g) for n, (label, g) in pairs])]

    assert len(warnings(0, 0, 1, 1, groups="aabb")) == 1
    assert warnings(0, 1, 1, 1, groups="aabb") == []
    assert warnings(0, 1, 1, 0, groups="abcd") == []


def test_the_windows_are_as_long_as_the_shortest_usual_bout_and_one_behavior_is_doubted():
    classes = Classes(heads=(Head(task="single-label", outputs=2),), names=("background", "jump"))
    _, lines = describe_samples([Sample(path="a", labels=(1,))], classes, windows=True)
    only_one = "only one behavior is annotated in a; time with any other counts as time without behavior"
    assert lines[-1] == f"warning: {only_one}"
    alone = "warning: jump can be learned or tested, not both: all from one {0}; add {0}s with it, or merge "
    alone += "classes"
    assert alone.format("recording") in lines
    both = [Sample(path=path, labels=(1,), group="g") for path in "ab"]
    _, lines = describe_samples(both, classes, windows=False)
    assert alone.format("group") in lines
    _, lines = describe_samples([*both, Sample(path="c", labels=(1,), group="h")], classes, windows=False)
    assert "not both" not in "".join(lines)
    for lengths, seconds in (((1.1, 7.0), 1), ((0.1,), 0.5), ((9.0, 30.0), 2), ((), 1)):
        bouts = [Bout(video="a", start=0.0, end=length, label=str(length)) for length in lengths]
        assert training_window_seconds(bouts) == seconds


def test_unusable_videos_are_refused_in_a_line_and_leave_nothing(class_folders: Path, tmp_path: Path):
    one = tmp_path / "one"
    shutil.copytree(class_folders / "down", one / "down")
    (tmp_path / "empty").mkdir()
    output = ["-o", tmp_path / "new" / "project"]
    for source, found in ((one, "one: 8 videos, no train.csv"), (tmp_path / "empty", "empty: 0 videos")):
        assert found in refused("train", source, *output, code=4)
    assert "no such file" in refused("train", tmp_path / "none", *output, code=4)
    grouped = ["train", class_folders, *output, "--group", "(p)"]
    assert "only 1 group (p), but training and test need 2" in refused(*grouped, code=4)
    assert "1 group (p), fewer than --folds 3; check" in refused(*grouped, "--folds", 3, code=4)
    (one / "list.csv").write_text("down/p0_0.mp4 down\ndown/p1_1.mp4 down\n")
    assert "all readable videos have the same label" in refused("train", one / "list.csv", *output, code=4)
    few = tmp_path.parent / "few.csv"  # the test list needs one of two videos
    few.write_text("".join(f"{class_folders}/{name}/p0_0.mp4 {name}\n" for name in ("down", "right")))
    assert "the rarest class has too few videos" in refused("train", few, *output, code=4)
    assert "inside of the input" in refused("train", class_folders, "-o", class_folders / "project", code=2)
    assert "contains" in refused("train", class_folders, "-o", class_folders.parent, code=2)
    message = refused("train", class_folders, *output, "--latency", "inf", code=2)
    assert "--latency inf: must be a number" in message
    assert sorted(tmp_path.iterdir()) == [tmp_path / "empty", one]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    for more in ([], ["--overwrite"]):
        assert "holds other files" in refused("train", class_folders, "-o", tmp_path / "notes", *more, code=2)


def test_lists_that_are_divided_are_used_and_readable_videos_are_divided(class_folders: Path, tmp_path: Path):
    root = shutil.copytree(class_folders, tmp_path / "mine")
    rows = [f"{path.relative_to(root)} {path.parent.name}" for path in sorted(root.rglob("*.mp4"))]
    (root / "down" / "notes.mp4").write_text("no video")
    shown = called("train", root, "--dry-run", "--json", *FEW)
    assert f"left out: {root / 'down' / 'notes.mp4'}: not a video file" in shown.stderr
    assert sum(int(size.split()[0]) for size in json.loads(shown.stdout)["lists"].values()) == 16
    (root / "all.csv").write_text("\n".join(rows) + "\n")
    plan = json_of("train", root / "all.csv", "--dry-run", *FEW)
    assert [plan["lists"][name].split()[0] for name in LIST_FILES] == ["12", "2", "2"]
    (root / "train.csv").write_text("\n".join(rows[2:]) + "\n")
    assert "train.csv` divide the training list" in refused("train", root, "--dry-run", code=4)
    (root / "test.csv").write_text("\n".join([rows[0], rows[-1]]) + "\n")
    lines = json_of("train", root, "--dry-run", *FEW)["lines"]
    assert lines[:2] == ["train: 14 videos", "test: 2 videos"]
    assert f"divided by the lists in {root}: train.csv, test.csv" in lines
    assert "omit --folds" in refused("train", root, "--dry-run", "--folds", "3", code=2)


def test_copies_of_a_video_in_several_groups_are_found_by_their_bytes(tmp_path: Path):
    names = {"a": "one", "b": "one", "c": "two", "d": "no!", "e": "longer"}
    parts = {str(tmp_path / name): f"shift{number // 2}" for number, name in enumerate(names)}
    for path, text in zip(parts, names.values(), strict=True):
        Path(path).write_text(text)
    parts |= {str(tmp_path): "a folder", "s3://gone.mp4": "remote"}
    assert [*check_copies(parts)] == []  # a and b are of one group
    (warning,) = check_copies(parts | {str(tmp_path / "b"): "shift1"})
    assert f"copies of 1 video, such as {tmp_path / 'a'} and {tmp_path / 'b'}; keep one copy" in warning


def test_unlabeled_videos_that_validate_or_test_are_refused(class_folders: Path, tmp_path: Path):
    options = ["--unlabeled", class_folders, "-o", tmp_path / "project", *FEW]
    assert "of the validation or test list" in refused("train", class_folders, *options, code=2)
