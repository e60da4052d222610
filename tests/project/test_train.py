"""`everest train`: from videos of one's own to a verdict, in one folder."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from kill_at_change import ran_until
from small_projects import FEW, NETWORK_ROW, RESULT, STEPS, moving
from small_runs import called, json_of, refused, sets
from typer.testing import CliRunner

import everest
from everest.annotations.bout import Bout
from everest.config.heads import Head
from everest.config.recipe import load_recipe
from everest.inference.timelines import Timelines
from everest.lists.classes import Classes
from everest.lists.reading import read_samples
from everest.lists.sample import Sample
from everest.metrics.names import METRICS
from everest.prepare import window_labels
from everest.project import exported as exported_accuracy
from everest.project import lists, project_plan
from everest.project.exported import measure_exported_accuracy
from everest.project.lists import check_animals, check_copies, choose_window_seconds, group_by_subject
from everest.project.project_plan import check_groups, describe_samples
from everest.project.request import Request, with_warmup
from everest.project.result import ClassTest, MeasuredTest
from everest.project.train import list_next_commands
from everest.project.verdict import judge, list_inputs, list_results
from everest.system import compute
from everest.system.events import ignore_event
from everest.system.weights_header import read_header
from everest.video.writer import write_video
from everest_cli.main import app

LISTS = ("train", "val", "test")


@pytest.fixture(scope="module")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of eight videos each, of four persons."""
    folder = tmp_path_factory.mktemp("train") / "mine"
    for number in range(8):
        for name, step in (("down", (2, 0)), ("right", (0, 2))):
            moving(folder / name / f"p{number % 4}_{number}.mp4", 16 * [step], number)
    return folder


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four recordings of 6 s, and `bouts.csv` next to their folder."""
    folder, rows = tmp_path_factory.mktemp("train") / "recordings", ["video,start,end,label"]
    steps = {"down": (2, 0), "right": (0, 2), "still": (0, 0)}
    for number in range(4):
        kinds = [("down", "right", "still")[(number + part) % 3] for part in range(6)]
        moving(folder / f"r{number}.mp4", [steps[kind] for kind in kinds for _ in range(10)], number)
        rows += [f"r{number}.mp4,{at},{at + 1},{kind}" for at, kind in enumerate(kinds) if kind != "still"]
    folder.with_name("bouts.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished project of the class folders."""
    folder = tmp_path_factory.mktemp("trained") / "project"
    called("train", class_folders, "-o", folder, "--group", r"(p\d)_", *FEW)
    return folder


def test_videos_that_are_added_to_class_folders_are_noticed(class_folders: Path, tmp_path: Path):
    videos, output = shutil.copytree(class_folders, tmp_path / "videos"), tmp_path / "project"
    request = Request(videos=str(videos))
    before = request.checksums()
    (videos / "loose.mp4").write_bytes(b"")  # has no class
    assert request.checksums() == before
    first = next((videos / "down").iterdir())
    shutil.copy(first, videos / "down" / "another.mp4")
    output.mkdir()
    (output / "project.json").write_text(json.dumps({"request": asdict(request), "files": before}))
    message = refused("train", videos, "-o", output, code=2)
    assert f"{videos}: has changed since the project in {output} began" in message


def test_lists_beside_the_named_one_and_in_a_folder_are_compared_too(tmp_path: Path):
    for name in ("x_train.csv", "x_test.csv", "test.csv", "other.csv"):
        (tmp_path / name).write_text("a.mp4 0\n")
    found = [Request(videos=str(videos)).checksums() for videos in (tmp_path / "x_train.csv", tmp_path)]
    names = [sorted(Path(path).name for path in files) for files in found]
    assert names == [["x_test.csv", "x_train.csv"], ["test.csv"]]


def test_one_folder_has_the_lists_the_recipe_the_run_and_the_page(class_folders: Path, trained: Path):
    shown = called("train", class_folders, "-o", trained, "--group", r"(p\d)_", *FEW)
    document = json_of("train", class_folders, "-o", trained, "--group", r"(p\d)_", *FEW)
    assert "already finished; use --overwrite to train again" in shown.stderr
    assert shown.stdout.startswith(f"top-1 {document['top1']:.1f}")
    assert document["report"] == str(trained / "report" / "index.html")
    assert document["checkpoint"] == str(trained / "model" / "model.safetensors")
    candidates = {each["name"]: each for each in document["candidates"]}
    names = "linear-images images-motion random-features image-mean image-change network mean"
    assert list(candidates) == names.split()
    assert document["chosen"] in {*candidates} - {"image-mean", "image-change"}
    assert candidates["linear-images"]["test"] == document["linear_pixels"]
    assert f"<p>{document['judgment']}</p>" in unescape(Path(document["report"]).read_text())
    assert document["chance"] == document["majority"] == 50 <= document["linear_pixels"] + 50 <= 150
    assert re.search(rf"(?sm)took \d+ s \(planned \d+ s\)\n.*VIDEO --checkpoint {trained}$", shown.stdout)
    assert everest.load_model(document["checkpoint"]).classes == ("down", "right")
    data = load_recipe(trained / "recipe.yaml").data
    samples_of = {name: read_samples(Path(getattr(data, name)), root=class_folders).samples for name in LISTS}
    groups = {name: {sample.group for sample in samples} for name, samples in samples_of.items()}
    assert sum(map(len, groups.values())) == len(set().union(*groups.values())) == 4
    assert all(groups.values())
    assert sum(map(len, samples_of.values())) == 16


def test_the_model_is_the_one_that_the_commands_train(trained: Path, tmp_path: Path):
    recipe = trained / "recipe.yaml"
    called("finetune", "--recipe", recipe, "--init", "none", "-o", tmp_path / "run", *FEW)
    for name in ("best.safetensors", "model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (trained / "finetune" / name).read_bytes()


def test_an_exported_file_is_tested_on_one_view(class_folders: Path, trained: Path, tmp_path: Path):
    pytest.importorskip("onnxruntime")
    result, file = json.loads((trained / "result.json").read_text()), tmp_path / "line.onnx"
    shown = called("export", trained, "--to", "onnx", "--json", "-o", file)
    document = json.loads(shown.stdout)
    accuracy = document["accuracy"]
    assert (accuracy["metric"], accuracy["trained"]) == ("top1", result["top1"])
    assert f"top-1 of train {result['top1']:.1f} % (" in shown.stderr
    assert f"next: {document['next']}" in shown.stderr
    of_file = f"top-1 of train .*, of the file {accuracy['exported']:.1f} % .*on 1 view\n"
    assert re.search(of_file, shown.stderr)
    assert re.search(of_file, Path(f"{file}.CARD.md").read_text())
    speed = f"network, a clip on one CPU thread: {document['network_ms']:.3g} ms with ONNX Runtime"
    assert f"{speed} (without reading and decoding)" in shown.stderr
    int8 = ["export", trained, "--to", "onnx", "--precision", "int8", "-o", tmp_path / "int8.onnx"]
    shown = called(*int8, "--calibrate", class_folders)
    num_tested, lists = result["videos"], trained / "lists"
    warning = f"{num_tested} of 16 calibration clips are test videos, so the accuracy may be too high"
    assert f"warning: {warning}; use --calibrate {lists / 'train.csv'}\n" in shown.stderr
    assert "warning" not in called(*int8, "--calibrate", lists / "train.csv", "--overwrite").stderr
    evaluated = json_of(*shlex.split(document["next"])[1:])
    assert evaluated["top1"] == accuracy["exported"]
    assert evaluated["views"] == {"clips": 1, "crops": 1}


def test_a_project_of_another_request_is_refused_until_it_is_replaced(class_folders, trained, monkeypatch):
    before = (trained / "result.json").read_bytes()
    message = refused("train", class_folders, "-o", trained, *FEW, code=2)
    assert 'group ("(p\\\\d)_", now null); choose another folder, or use --overwrite' in message
    wrong = ["--group", "(x)", "--overwrite", *FEW]
    assert "does not match; " in refused("train", class_folders, "-o", trained, *wrong, code=4)
    assert (trained / "result.json").read_bytes() == before
    copy = shutil.copytree(trained, trained.with_name("copy"))
    notes = [copy / name / "notes.txt" for name in ("", "finetune", "lists", "report")]
    elsewhere = copy.parent / "elsewhere"
    elsewhere.mkdir()
    (copy / "lists" / "mine").mkdir()
    (copy / "link").symlink_to(elsewhere)
    for note in notes:
        note.write_text("precious")
    monkeypatch.setattr(lists, "video_info", video_info := Mock(wraps=lists.video_info))
    shown = called("train", class_folders, "-o", copy, "--overwrite", "-q", *FEW)
    assert video_info.call_count == 16  # each video once
    assert not re.search("train: |all training: |^fine-tuning|workers for each process", shown.stderr, re.M)
    assert json.loads((copy / "project.json").read_text())["request"]["group"] is None
    assert [note.read_text() for note in notes] == len(notes) * ["precious"]
    assert (copy / "lists" / "mine").is_dir()


def test_a_damaged_result_or_row_is_one_line_with_its_file_and_a_fix(class_folders, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "project")
    command = ("train", class_folders, "-o", folder, "--group", r"(p\d)_", *FEW)
    (folder / "result.json").write_text('{"top1": 50.0}')
    fix = "choose another folder, or use --overwrite"
    assert f"{folder / 'result.json'}: damaged (no 'metric'); {fix}" in refused(*command, code=2)
    (folder / "result.json").unlink()
    rows = folder / "finetune" / "metrics.jsonl"
    rows.write_text(re.sub(r', "val_loss": [\d.]+', "", rows.read_text()))
    assert f"{rows}: damaged (no 'val_loss'); restore the file" in refused(*command, code=2)


def test_a_dry_run_prints_minutes_and_writes_nothing(class_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(project_plan, "getloadavg", lambda: (99.0, 9.0, 9.0))
    shown = called("train", class_folders, "--dry-run", "--folds", "4", *FEW)
    classes = r"2 classes: down 8, right 8\n4 folds: .*\nwarning: .* only 4 videos in each fold\n(?s:.*)"
    time = r"about \d+ (?:s|min)"
    training = f"all training: {time} for 5 fine-tunings, including {time[6:]} for validations and tests"
    busy = r"; under the present load of 99\.0 on \d+ cores?, and less on an idle machine\n"
    assert re.search(classes + training + busy, shown.stdout)
    monkeypatch.setattr(project_plan, "getloadavg", lambda: (0.0, 0.0, 0.0))
    large = sets("model.backbone=vit-s", "data.size=64")  # too slow for 300 steps on any machine
    short = ("train", class_folders, "--dry-run", "--json", "--hours", "0.01", *large)
    shown = called(*short, "--model", "network")
    plan = json.loads(shown.stdout)
    (stage,) = plan["stages"]
    assert stage["seconds"] / 60 < plan["minutes"] <= 0.6  # with validations and tests
    few = r"warning: --hours 0.01 leaves \d+ steps? for finetune, so "
    fix = r"; give --hours 0\.\d+ for the 300 that it needs"
    assert re.search(f"{few}a model hardly learns{fix}", shown.stderr)
    shown = called(*short)
    assert re.search(f"{few}no network is trained{fix}", shown.stderr)
    assert json.loads(shown.stdout)["trainings"] == 0
    assert 0 < stage["steps"] * stage["batch_size"] / stage["clips_per_second"] <= 36
    assert plan["lists"]["test"].startswith("2 videos")
    assert list(tmp_path.iterdir()) == []


def test_groups_of_one_class_and_other_frame_sizes_are_named_from_the_plan_to_the_card(tmp_path: Path):
    videos, output = tmp_path / "videos", tmp_path / "project"
    for number in range(12):
        name, size = (("jam", (48, 32)), ("ok", (32, 32)))[number % 2]
        (videos / name).mkdir(parents=True, exist_ok=True)
        clip = torch.randint(0, 256, (4, *size, 3), generator=torch.Generator().manual_seed(number))
        path = videos / name / f"shift{number % 6}_{number}.mp4"
        write_video(path, clip.to(torch.uint8), fps=10)
    shown = called(
        *("train", videos, "-o", output, "--group", r"(shift\d)_", "--folds", 3, "--model", "linear"),
        *sets("data.frames=1", "train.workers=0", "data.size=32", "model.tubelet=[1,8,8]"),
        *sets("model.input=frames", "pretrain.camera_motion=0"),
    )
    plan, verdict = shown.stderr, shown.stdout
    assert "2 classes: jam 6 (3 groups), ok 6 (3 groups)\n" in plan
    assert re.search(r"fold 1 of 3\n(?s:.*)fold 2 of 3, about \d+ (?:s|min) left at the speed so far\n", plan)
    assert "frame size and rate alone 100.0 %, a linear model on small images" in verdict
    assert load_recipe(output / "recipe.yaml").data.frames == 1
    assert "# by --set: train.workers: 0\n" in (output / "recipe.yaml").read_text()
    result = json.loads((output / "result.json").read_text())
    groups, sizes = result["warnings"]
    assert groups.startswith("every group has clips of one class only, so a model may learn the light")
    assert sizes.startswith("classes differ in frame size: mostly 32x48 in 'jam', 32x32 in 'ok'; a model may")
    assert sizes.endswith(
        "; record all classes alike, or shrink all to the smallest by everest prepare encode"
    )
    called("export", output, "--to", "onnx", "-o", tmp_path / "line.onnx")
    card, page = tmp_path / "line.onnx.CARD.md", output / "report" / "index.html"
    for text in (plan, verdict, unescape(page.read_text()), card.read_text()):
        assert all(f"warning: {warning}" in text for warning in result["warnings"])
    names = {each["name"] for each in result["candidates"]}
    assert {"images-edges", "size-rate"} < names
    assert not any(word in text for word in ("motion", "change") for text in (verdict, *names))


def test_only_groups_of_several_clips_can_show_that_each_has_one_class():
    def warnings(*labels: int, groups: str) -> list[str]:
        pairs = enumerate(zip(labels, groups, strict=True))
        return [*check_groups([Sample(path=str(n), labels=(label,), group=g) for n, (label, g) in pairs])]

    assert len(warnings(0, 0, 1, 1, groups="aabb")) == 1
    assert warnings(0, 1, 1, 1, groups="aabb") == []
    assert warnings(0, 1, 1, 0, groups="abcd") == []


def test_copies_of_a_video_in_several_groups_are_found_by_their_bytes(tmp_path: Path):
    names = {"a": "one", "b": "one", "c": "two", "d": "no!", "e": "longer"}
    parts = {str(tmp_path / name): f"shift{number // 2}" for number, name in enumerate(names)}
    for path, text in zip(parts, names.values(), strict=True):
        Path(path).write_text(text)
    parts |= {str(tmp_path): "a folder", "s3://gone.mp4": "remote"}
    assert [*check_copies(parts)] == []  # a and b are of one group
    (warning,) = check_copies(parts | {str(tmp_path / "b"): "shift1"})
    assert f"copies of 1 video, such as {tmp_path / 'a'} and {tmp_path / 'b'}; keep one copy" in warning


def test_a_plan_of_linear_models_counts_the_tests_of_all_folds(class_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(project_plan, "measure_clip_seconds", lambda *_: 60.0)
    monkeypatch.setattr(project_plan, "getloadavg", lambda: (0.0, 0.0, 0.0))
    plan = ["train", class_folders, "--dry-run", "--model", "linear"]
    assert json_of(*plan)["minutes"] == 16 + 2 + 0.1  # features of all, the test of two, and the fits
    assert json_of(*plan, "--folds", 4)["minutes"] == 16 + 16 + 0.3


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
    assert [plan["lists"][name].split()[0] for name in LISTS] == ["12", "2", "2"]
    (root / "train.csv").write_text("\n".join(rows[2:]) + "\n")
    assert "train.csv` divide the training list" in refused("train", root, "--dry-run", code=4)
    (root / "test.csv").write_text("\n".join([rows[0], rows[-1]]) + "\n")
    lines = json_of("train", root, "--dry-run", *FEW)["lines"]
    assert lines[:2] == ["train: 14 videos", "test: 2 videos"]
    assert f"divided by the lists in {root}: train.csv, test.csv" in lines
    assert "omit --folds" in refused("train", root, "--dry-run", "--folds", "3", code=2)


def test_annotated_recordings_give_timelines(recordings: Path, tmp_path: Path, monkeypatch):
    bouts = Path(shutil.copy(recordings.with_name("bouts.csv"), tmp_path))
    header, *rows = bouts.read_text().split()
    noted = [f"{header},subject", *(f"{row},m{i % 2}" for i, row in enumerate(rows)), "r0.mp4,0,1,,m0"]
    (tmp_path / "noted.csv").write_text("\n".join(noted))
    plan = json_of("train", recordings, "--annotations", tmp_path / "noted.csv", "--dry-run", *FEW)
    assert plan["left_out"] == [{"reason": "row without a label", "count": 1}]
    assert {
        "left out of the annotations: row without a label (1)",
        "bouts of 2 subjects (m0, m1) are taken together; see --subject",
    } <= set(plan["lines"])
    read = Mock(wraps=window_labels.read_video_annotations)
    monkeypatch.setattr(window_labels, "read_video_annotations", read)
    command = ("train", recordings, "--annotations", bouts, "-o", tmp_path / "project", *FEW)
    document = json_of(*command)
    chooses = document["chosen"] == "network"  # how much to smooth, on the validation list
    assert read.call_count == 2 + chooses  # for the lists, the test, and perhaps the validation
    assert 0 <= document["mean_class_accuracy"] <= 100
    assert {"frame_accuracy", "f1@50", "top1", "interval", "linear_pixels"} <= document.keys()
    assert re.search(
        r"^Windows of 1 s every 0\.5 s \(16 frames\) were classified by (the mean of )?a linear .*\. On 11 "
        r"windows of 1 group held out of training and choice, top-1 was .*\. Baselines: chance .*, a linear "
        r"model on small images .*\. With probabilities averaged over .* of "
        r"the frames were right\. Software: everest ",
        document["methods"],
    )
    (video,) = (saved := Timelines.load(document["timeline"])).videos
    assert document["recordings"] == [video.video]
    assert Path(video.path).parent == recordings
    rows = json_of("timeline", video.path, "-c", tmp_path / "project")
    assert [each["windows"] for each in rows] == [each["windows"] for each in saved.to_rows()]
    first = rf"bouts\"></div>(?s:.*)</th></tr>\n<tr><th>{METRICS[document['metric']].title}</th>"
    assert re.search(first, Path(document["report"]).read_text())  # as in the verdict, below the picture
    data = load_recipe(tmp_path / "project" / "recipe.yaml").data
    samples = [read_samples(Path(getattr(data, name)), root=Path(data.root)).samples for name in LISTS]
    assert [len({sample.path for sample in of_list}) for of_list in samples] == [2, 1, 1]
    assert all((sample.end or 0) - (sample.start or 0) <= 1 for sample in samples[0])
    other = tmp_path / "other.csv"
    other.write_text("video,start,end,label\nz.mp4,0,1,down\n")
    message = refused("train", recordings, "--annotations", other, "-o", tmp_path / "other", code=4)
    assert "annotates none of these videos; it names z.mp4" in message
    assert not (tmp_path / "other").exists()
    bouts.write_text(f"{bouts.read_text()}r0.mp4,5.5,6,down\n")
    assert f"{bouts}: has changed since the project" in refused(*command, code=2)
    project, test = tmp_path / "project" / "project.json", Path(video.path).stem
    assert json.loads(project.read_text())["tested"] == [test]
    other = "r0" if test != "r0" else "r1"
    for name, told in (("gone", "because the recordings have changed"), (other, "another --output divides")):
        project.write_text(re.sub(r'(?<="tested": \[\n    ")\w+', name, project.read_text()))
        shown = called(*command, "--overwrite", "--dry-run")
        assert re.search(f"tested on {name}, as before[,;] {told}", shown.stderr)
    plan = rf"test: \d+ windows of 1 video \({other}\)\n3 .*\n4 groups: r0, r1, r2, …\n\d+ .*'background'"
    assert re.search(plan, shown.stdout)


def _bouts(**subject_of: str) -> dict[str, list[Bout]]:
    return {
        f"/v/{name}.mp4": [Bout(video=name, start=0, end=1, label="up", subject=subject)]
        for name, subject in subject_of.items()
    }


@pytest.mark.parametrize(
    ("subject_of", "warning"),
    [
        ({"m1_day1": "", "m1_day2": "", "m2_day1": ""}, r"m1_day1.mp4, m1_day2.mp4 .*'\^\(\[\^\\W_\]\+\)'"),
        ({"0103_m1": "", "0104_m1": "", "0105_m2": ""}, r"0103_m1.mp4, 0104_m1.mp4 may .*--group '\(\["),
        ({"r0": "", "r1": "", "r2": ""}, None),
        ({"rec_1": "", "rec_2": ""}, None),
        ({"___": "", "-": ""}, None),
        ({"_a_1": "", "_a_2": "", "_b_1": ""}, None),
        ({"2024-01": "", "2024-02": "", "2025-01": ""}, None),
        ({"a": "m1", "b": "m2", "c": "m1"}, "a.mp4, c.mp4 share subjects; .*--group subject"),
        ({"a": "m1", "b": "m1"}, "not new animals"),
        ({"a": "m1", "b": "m2"}, None),
    ],
)
def test_recordings_that_seem_to_show_one_animal_are_named(subject_of, warning):
    found = check_animals(_bouts(**subject_of))
    assert found is None if warning is None else re.match(f"{warning}|.*{warning}", found or "")


def test_recordings_that_share_a_subject_are_one_group():
    bouts = _bouts(a="m1", b="m2", c="m3", d="", e="m4")
    bouts["/v/b.mp4"] += _bouts(b="m3")["/v/b.mp4"]
    groups = group_by_subject(bouts)
    assert groups["/v/b.mp4"] == groups["/v/c.mp4"] == "m2+m3"
    assert len(set(groups.values())) == 4


def test_group_subject_keeps_the_recordings_of_an_animal_together(recordings, class_folders, tmp_path):
    header, *rows = recordings.with_name("bouts.csv").read_text().split()
    animal = {"r0": "m1", "r1": "m2", "r2": "m1", "r3": "m3"}
    noted = [f"{header},subject", *(f"{row},{animal[row.partition('.')[0]]}" for row in rows)]
    (tmp_path / "noted.csv").write_text("\n".join(noted))
    command = ("train", recordings, "--annotations", tmp_path / "noted.csv", "--dry-run", *FEW)
    assert "--group subject" in called(*command).stderr
    shown = called(*command, "--group", "subject")
    assert "--group subject" not in shown.stderr
    assert re.search("3 groups: ", shown.stdout)
    plain = recordings.with_name("bouts.csv")
    without = ("train", recordings, "--annotations", plain, "--dry-run", *FEW, "--group", "subject")
    assert "no annotation names a subject" in refused(*without, code=4)
    column = refused(*without[:-1], "column:animal", code=2)
    assert "--group column:animal: annotations have no columns; give 'subject' or a pattern" in column
    assert "needs --annotations" in refused("train", class_folders, "--group", "subject", code=2)


def test_folds_test_every_group_and_the_last_model_learns_from_all(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    header, *bouts = recordings.with_name("bouts.csv").read_text().splitlines(keepends=True)
    annotations = []
    for number in range(2):  # annotated in several files, one bout in both
        (tmp_path / f"{number}.csv").write_text("".join([header, bouts[0], *bouts[1 + number :: 2]]))
        annotations += ["--annotations", tmp_path / f"{number}.csv"]
    output = tmp_path / "project"
    document = json_of("train", recordings, *annotations, "-o", output, "--folds", 4, *FEW)
    assert len(document["folds"]) == document["groups"] == 4
    assert document["videos"] == sum(fold["videos"] for fold in document["folds"]) == 44
    mean = sum(fold["top1"] * fold["videos"] for fold in document["folds"]) / 44
    assert document["top1"] == pytest.approx(mean, abs=1e-3)
    for value, key in ((document["top1"], "interval"), (mean - document["linear_pixels"], "difference")):
        assert document[key][0] <= value <= document[key][1]
    frames = sum(fold["frame_accuracy"] for fold in document["folds"]) / 4  # of recordings of equal length
    assert document["frame_accuracy"] == pytest.approx(frames, abs=1e-3)
    data = load_recipe(output / "recipe.yaml").data
    assert len(read_samples(Path(str(data.train)), root=Path(data.root)).samples) == 44
    assert (data.val, data.test) == (None, None)
    assert document["checkpoint"] == str(output / "model" / "model.safetensors")
    page, of_fold = (Path(each["report"]) for each in (document, document["folds"][1]))
    assert page == output / "report" / "index.html"
    assert f"<p>{document['judgment']}</p>" in unescape(page.read_text())
    assert (page.parent / re.findall('href="([^"]*)">fold 2<', page.read_text())[0]).samefile(of_fold)
    assert (of_fold.parent / re.findall('href="([^"]*)">The verdict', of_fold.read_text())[0]).samefile(page)
    title = "<h1>Test of fold 2 of 4</h1>"
    assert f"{title}\n<p>top-1 {document['folds'][1]['top1']:.1f} % on" in of_fold.read_text()
    assert "<h1>Test of project, all folds together</h1>" in page.read_text()
    assert "95 % interval of the recall" in page.read_text()
    num_wrong = round(44 * (1 - document["top1"] / 100))
    assert page.read_text().count('<figure class="mistake">') == min(num_wrong, 12) > 0
    assert re.search(r'class="path">/.*r\d\.mp4', page.read_text())
    assert "windows</th><td>44, from 4 groups" in page.read_text()
    assert not re.search(r">[^<]*videos", page.read_text().replace("label videos of more groups", ""))
    assert {each["name"] for each in document["candidates"]} >= {"image-mean", "image-change"}
    accuracy = measure_exported_accuracy(Path("none.onnx"), Path(document["checkpoint"]), ignore_event)
    assert (accuracy.trained, accuracy.exported) == (document["top1"], None)
    assert "has learned from all videos" in str(accuracy)
    file = tmp_path / "line.onnx"
    exported = json_of("export", output, "--to", "onnx", "-o", file)
    assert exported["network_ms"] > 0
    assert exported["clip"]["seconds"] > 0
    assert exported["next"].endswith("--data NEW_CLIPS --set data.test=.")
    card = Path(f"{file}.CARD.md").read_text()
    assert f"top-1 {document['top1']:.1f} %" in card
    assert "in 4 folds; this model has learned from all videos" in card
    calibrated = ["--precision", "int8", "--calibrate", output / "lists" / "train.csv"]
    shown = called("export --to onnx", output, *calibrated, "--json", "-q", "-o", tmp_path / "int8.onnx")
    in_folds = json.loads(shown.stdout)["accuracy"]
    assert (in_folds["trained"], in_folds["videos"], in_folds["folds"]) == (document["top1"], 44, 4)
    assert in_folds["exported"] == pytest.approx(
        document["top1"], abs=1e-3
    )  # images have nothing to quantize
    assert in_folds["checkpoint"] == in_folds["exported"]
    assert "in 4 folds), of a file for each fold, exported in the same way, " in shown.stderr
    assert re.search(r"on 1 view; the same models before the export [\d.]+ % \(\+0 points\)", shown.stderr)
    assert "window 1" not in shown.stderr
    values = r"fold \d of 4: top-1 int8 [\d.]+ %, before [\d.]+ %"
    assert len(re.findall(values, shown.stderr)) == 4
    assert len(re.findall(r"about [\d.]+ (s|min) left", shown.stderr)) == 3
    assert re.search(r"^top-1 on 44 videos +([\d.]+ %) +\1$", shown.stderr, flags=re.M)
    assert "take fp32: int8 is not clearly faster" in shown.stderr
    assert "- take fp32" in (tmp_path / "int8.onnx.CARD.md").read_text()
    (of_third,) = (output / "folds" / "3" / "report").glob("export-*.json")
    of_third.unlink()
    again = ("export", output, "--to", "onnx", *calibrated, "--json", "-o", tmp_path / "again.onnx")
    with monkeypatch.context() as patch:

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(exported_accuracy, "_test_fold", interrupted)
        CliRunner().invoke(app, [str(word) for word in again])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("again", "."))]
    shown = called(*again)
    assert re.findall(r"fold (\d) of 4: export and test", shown.stderr) == ["3"]
    assert json.loads(shown.stdout)["accuracy"] == in_folds
    text = page.read_text()
    (output / "result.json").unlink()
    again = json_of("train", recordings, *annotations, "-o", output, "--folds", 4, *FEW)
    assert (again["folds"], page.read_text()) == (document["folds"], text)


@pytest.mark.slow  # from image weights: fast, below
def test_unlabeled_videos_are_trained_on_first(class_folders: Path, tmp_path: Path):
    unlabeled = tmp_path / "unlabeled"
    for number in range(4):
        moving(unlabeled / f"{number}.mp4", 16 * [(1, 1)], 20 + number)
    few = [*FEW, *sets("pretrain.steps=2", "pretrain.warmup_steps=1", "pretrain.batch_size=4")]
    called("train", class_folders, "--unlabeled", unlabeled, "-o", tmp_path / "project", *few)
    start = json.loads((tmp_path / "project" / "finetune" / "env.json").read_text())["init"]
    assert start == str(tmp_path / "project" / "pretrain" / "model.safetensors")


def test_unlabeled_videos_that_validate_or_test_are_refused(class_folders: Path, tmp_path: Path):
    options = ["--unlabeled", class_folders, "-o", tmp_path / "project", *FEW]
    assert "of the validation or test list" in refused("train", class_folders, *options, code=2)


def test_pretraining_keeps_the_license_of_image_weights(class_folders, image_file, tmp_path, monkeypatch):
    monkeypatch.setattr(compute, "BUSY", 0)
    unlabeled, name = tmp_path / "unlabeled", f"timm:vit_tiny_patch16_224={image_file}"
    for number in range(4):
        moving(unlabeled / f"{number}.mp4", 16 * [(1, 1)], 20 + number)
    few = [*STEPS, *sets("pretrain.steps=2", "pretrain.batch_size=4", "data.size=32", "data.frames=2")]
    project = tmp_path / "project"
    options = ["--init", name, "--unlabeled", unlabeled, "--model", "network", "-o", project, *few]
    options += ["--latency", 0.01]
    shown = called("train", class_folders, *options)
    limit = r"more than 0.0075 of 0.01 ms; histograms of motion may take the rest"
    too_slow = rf"warning: vit-tiny, .*, one view: [\d.e+]+ ms .* \({limit}\); omit --init, or name smaller"
    assert re.search(too_slow, shown.stderr)
    assert re.search(r"other programs use the CPU, so a clip takes [\d.e+]+ ms now; plan on", shown.stderr)
    too_slow = "(above the limit of 0.01: export int8, or train with a lower --latency), and "
    assert f"ms in the network by PyTorch {too_slow}" in shown.stdout
    document = json_of("train", class_folders, *options)
    time, page = document["clip_time"], Path(document["report"]).read_text()
    assert min(time["network_ms"], time["reading_ms"]) > time["limit_ms"] == 0.01
    assert "a clip on one CPU thread: " in page
    recipe = load_recipe(project / "recipe.yaml")
    assert (recipe.eval.clips, recipe.eval.crops) == (1, 1)  # as an exported file
    assert "frozen-features" in {each["name"] for each in document["candidates"]}
    recipe = load_recipe(project / "pretrain" / "recipe.yaml")
    assert (recipe.model.attention, recipe.pretrain.camera_motion) == ("slice", 0)
    start = read_header(project / "model" / "model.safetensors").origin
    assert start["file"] == str(project / "pretrain" / "model.safetensors")
    assert (start["origin"]["file"], start["origin"]["licence"]) == (name, "apache-2.0")


@pytest.mark.parametrize(("task", "metric"), [("multi-label", "map"), ("regression", "mae")])
def test_other_tasks_are_measured_by_their_metric(class_folders, tmp_path, task, metric):
    root = shutil.copytree(class_folders, tmp_path / "mine")
    labels = (
        {"down": "down|both", "right": "right|both"} if task == "multi-label" else {"down": 1, "right": 2}
    )
    rows = [f"{path.relative_to(root)},{labels[path.parent.name]}" for path in sorted(root.rglob("*.mp4"))]
    (root / "all.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    options = ["--task", task, "-o", tmp_path / "project", *FEW]
    document = json_of("train", root / "all.csv", *options)
    assert document["metric"] == metric
    assert min(document[metric], document["linear_pixels"]) >= 0
    assert document["majority"] is None
    assert METRICS[metric].title in called("train", root / "all.csv", *options).stdout
    folds = ["train", root / "all.csv", *options[:2], "-o", tmp_path / "folds", "--folds", "3", *FEW]
    if task == "regression":
        assert "needs classes, but the labels are numbers" in refused(*folds, code=2)
        return
    document = json_of(*folds)
    assert sum(fold["videos"] for fold in document["folds"]) == document["videos"] == 16
    assert document["interval"][0] <= document[metric] <= document["interval"][1]
    behaviors = {row["name"]: row for row in document["behaviors"]}
    prevalence = {name: row["prevalence"] for name, row in behaviors.items()}
    assert prevalence == {"both": 100, "down": 50, "right": 50}
    mean = sum(row["ap"] for row in behaviors.values()) / len(behaviors)
    assert document[metric] == pytest.approx(mean, abs=1e-3)
    for row in behaviors.values():
        assert row["interval"] is None or row["interval"][0] <= row["ap"] <= row["interval"][1]
    line = r"^down: average precision [\d.]+ % .*present in 50.0 % of the videos"
    assert re.search(line, called(*folds).stdout, re.M)


@pytest.mark.slow
def test_a_killed_call_goes_on_where_it_was(class_folders: Path, trained: Path, tmp_path: Path):
    whole = json.loads((trained / "result.json").read_text())
    for change in (2, 7, 12, 20, 40, 60, 90):
        folder = tmp_path / str(change)
        command = ["train", class_folders, "-o", folder, "--group", r"(p\d)_", *FEW]
        if ran_until(change, command, folder):
            break
        called(*command)
        document = json.loads((folder / "result.json").read_text())
        assert document["top1"] == whole["top1"], change
        assert document["linear_pixels"] == whole["linear_pixels"]
        for name in ("model/model.safetensors", "finetune/best.safetensors"):
            assert (folder / name).read_bytes() == (trained / name).read_bytes(), (change, name)


@pytest.mark.slow
def test_ctrl_c_between_two_stages_says_that_the_same_command_resumes(class_folders: Path, tmp_path: Path):
    folder = tmp_path / "project"
    command = [sys.executable, "-m", "everest_cli", "train", str(class_folders), "-o", str(folder), *FEW]
    reset = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background job ignores it
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=reset) as process:
        for line in process.stderr:
            if line.startswith("features of"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.endswith(f"SIGINT: saved in {folder}; the same command resumes\n")
    called("train", class_folders, "-o", folder, *FEW)


def test_a_full_disk_ends_a_call_which_can_be_repeated(class_folders: Path, small_disk: Path):
    command = ["train", class_folders, "-o", small_disk / "project", *FEW]
    assert "disk is full" in refused(*command, code=5)
    assert (small_disk / "project" / "project.json").exists()


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
        assert choose_window_seconds(bouts) == seconds


def test_a_model_that_is_no_better_than_a_simple_answer_is_told_so():
    numbers = RESULT | {"metric": "mae", "mae": 1.0, "chance": 2.0, "majority": None, "majority_class": None}
    numbers |= {"linear_pixels": 1.5, "interval": [0.5, 1.5], "groups": 20}
    for result, sentence in (
        (RESULT | {"top1": 60.0}, "always predicting 'run' (60.0 %)"),
        (RESULT | {"top1": 70.0}, "a linear model on small images (70.0 %)"),
        (RESULT | {"top1": 70.0, "candidates": [NETWORK_ROW]}, ", or train longer (--set finetune.steps)"),
        (RESULT | {"top1": 70.0, "groups": 2}, "--folds 5 and a new --output"),
        (RESULT, "clearly better than a linear model on small images (70.0 %): the interval is 80 to 97"),
        (RESULT | {"difference": [-2.0, 30.0]}, "the interval of the difference is -2 to 30; test on all"),
        (RESULT | {"groups": 5}, "(70.0 %): only 5 groups; test on all videos with --folds 5"),
        (RESULT | {"interval": [59.0, 99.0]}, "the interval includes"),
        (RESULT | {"interval": None, "groups": 1}, "has only one group; test on all videos with --folds 5"),
        (RESULT | {"interval": None}, "no interval: a class has fewer than 5 videos in the test; label"),
        (RESULT | {"interval": None, "difference": [1.0, 9.0]}, "clearly better than a linear model"),
        (RESULT | {"majority": 100.0, "top1": 100.0}, "the test has videos of 'run' only: test on all"),
        (numbers | {"mae": 2.0}, "no better than guessing (2): label"),
    ):
        assert sentence in judge(MeasuredTest.of(result), possible_folds=5)
    linear_only = judge(MeasuredTest.of(RESULT | {"top1": 70.0}), possible_folds=5)
    assert linear_only.endswith("the rarest classes first")
    one_group = MeasuredTest.of(RESULT | {"interval": None, "groups": 1})
    assert "one group; label videos of more groups" in judge(one_group, possible_folds=None)


def test_a_class_names_the_group_where_most_of_its_videos_are_missed():
    facts: dict[str, Any] = {"recall": 98.2, "precision": 100.0, "interval": None, "prevalence": 51.2}
    row = ClassTest(name="franka", **facts, worst_group="shift09", worst=[6, 7])
    assert row.line("videos").startswith("franka: 98.2 % found, worst shift09 (6 of 7), 100.0 % of its")


def test_the_verdict_says_which_input_is_enough():
    def lines(
        mean: list[float], change: list[float], metric: str = "top1", others: Sequence[dict[str, Any]] = ()
    ) -> str:
        rows = [
            {"name": name, "metric": metric, "validation": value, "test": value, "interval": None}
            for name, value in (("image-mean", 70.0), ("image-change", 60.0))
        ]
        rows += others
        gains = [{"name": "image-mean", "gain": mean}, {"name": "image-change", "gain": change}]
        document = RESULT | {"metric": metric, metric: 90.0, "candidates": rows, "inputs": gains}
        return "".join(list_inputs(MeasuredTest.of(document)))

    assert list_inputs(MeasuredTest.of(RESULT)) == []
    assert (
        lines([-1.0, 2.0], [3.0, 9.0])
        == "motion: still images alone reach 70.0 % (image-mean), change alone 60.0 % (image-change); still "
        "images are enough, so try image weights (--init) with --set data.frames=1: motion adds -1 to 2 "
        "points; change alone loses 3 to 9 points"
    )
    of_images = lines([-1.0, 2.0], [3.0, 9.0], others=[NETWORK_ROW | {"name": "frozen-mean"}])
    assert "so try --set data.frames=1: motion adds -1 to 2 points" in of_images
    of_network = lines([-1.0, 2.0], [3.0, 9.0], others=[NETWORK_ROW])
    assert "; change alone (model.input: differences) loses 3 to 9 points" in of_network
    assert "still images may be enough: motion adds -1 to 20 points; label more groups" in lines(
        [-1.0, 20.0], [-3.0, 9.0]
    )
    assert "still images may be enough: motion adds -1 to 2; label more groups" in lines(
        [-1.0, 2.0], [-3.0, 9.0], "mae"
    )
    assert lines([4.0, 20.0], [-3.0, 9.0]).endswith("; the model needs motion: motion adds 4 to 20 points")


def test_the_next_command_writes_the_kind_of_the_annotations_and_folds_name_the_members_of_a_mean(tmp_path):
    (tmp_path / "b.boris").write_text('{"observations": {}, "behaviors_conf": {}}')
    (tmp_path / "t.csv").write_text("video,start,end,label\n")
    timelines = {"frame_accuracy": 1.0, "majority_accuracy": 1.0, "mean_class_accuracy": 1.0, "f1@50": None}
    timelines |= {"recordings": [], "figure": "", "smooth": 2.0}
    mean = {"chosen": "mean", "members": ["linear-images", "network"]}
    test, recipe = MeasuredTest.of(RESULT | timelines | mean), load_recipe("small")
    for names, file in ((["b.boris"], "bouts.boris"), (["b.boris", "t.csv"], "bouts.csv")):
        request = Request(videos="", annotations=[str(tmp_path / name) for name in names])
        (command,) = list_next_commands(request, test, recipe, Path("runs/r"))
        assert command.endswith(f"--smooth 2 --output {file}")
    of_cpu = list_next_commands(
        Request(videos="", latency=40), MeasuredTest.of(RESULT), recipe, Path("runs/r")
    )
    assert ["int8" in command for command in of_cpu] == [False, True]
    assert test.choice == "mean of linear-images and network"
    assert MeasuredTest.of(RESULT).choice == "network"


def test_the_verdict_says_once_what_all_intervals_are_about():
    few = list_results(MeasuredTest.of(RESULT | {"groups": 5}))
    assert few[1].endswith("places or cameras; wide, because 5 groups are few")
    assert sum("are few" in line for line in few) == 1
    many = list_results(MeasuredTest.of(RESULT | {"groups": 12}))
    assert many[1].endswith("groups like these, not over other kinds of animals, places or cameras")
    alone = list_results(MeasuredTest.of(RESULT | {"interval": None}))
    assert not any(line.startswith("intervals") for line in alone)
    found: dict[str, Any] = {"name": "run", "prevalence": 50.0, "recall": 100.0, "precision": 90.0}
    perfect = list_results(MeasuredTest.of(RESULT | {"behaviors": [found | {"interval": [69.0, 100.0]}]}))
    assert "wider for a class without a mistake, where it is that of the binomial distribution" in perfect[1]
    of_frames = list_results(MeasuredTest.of(RESULT | {"frames": 1, "warnings": ["classes differ"]}))
    assert of_frames[2].endswith("a linear model on small images 70.0 % (of the same 1 frame)")
    assert of_frames[3] == "warning: classes differ"
    compared = list_results(MeasuredTest.of(RESULT | {"candidates": [NETWORK_ROW | {"validation": 75.0}]}))
    assert any(line.endswith("looks too good to publish") for line in compared)


def test_a_project_is_a_checkpoint_and_steps_bring_their_warm_up(trained: Path, class_folders: Path):
    video = next((class_folders / "down").glob("*.mp4"))
    by_project, by_model = (json_of("predict", video, "-c", each) for each in (trained, trained / "model"))
    assert by_project == by_model
    assert with_warmup(["finetune.steps=250"]) == ["finetune.steps=250", "finetune.warmup_steps=25"]
    given = ["finetune.steps=250", "finetune.warmup_steps=3"]
    assert with_warmup(given) == given
    assert with_warmup(["finetune={steps: 250}"]) == ["finetune={steps: 250}", "finetune.warmup_steps=25"]
    for steps in ("finetune.steps=9", "finetune={steps: 9}", " finetune.steps=9"):
        refusal = refused("train", class_folders, "--hours", "1", f"--set={steps}", "--dry-run", code=2)
        assert "--hours and --set finetune.steps=9 both set the number of steps" in refusal
    wrong = ["--dry-run", *sets("finetune.stepps=3", "finetune.steps=many", "finetune.best=mae")]
    shown = (
        "finetune.steps: must be an integer, not 'many'\nfinetune.stepps: unknown key; did you mean 'steps'?"
    )
    assert refused("train", class_folders, *wrong, code=2) == f"error: {shown}\n"  # before videos are read
