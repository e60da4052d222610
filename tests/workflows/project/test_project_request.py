"""What is asked of a project, and what happens when it is asked again."""

import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
from kill_at_change import ran_until
from small_projects import BY_PERSON, FEW
from small_runs import called, refused, sets

from everest_workflows.project import lists
from everest_workflows.project.request import Request, with_warmup


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


def test_a_number_of_steps_brings_its_warm_up():
    assert with_warmup(["finetune.steps=250"]) == ["finetune.steps=250", "finetune.warmup_steps=25"]
    given = ["finetune.steps=250", "finetune.warmup_steps=3"]
    assert with_warmup(given) == given
    assert with_warmup(["finetune={steps: 250}"]) == ["finetune={steps: 250}", "finetune.warmup_steps=25"]


@pytest.mark.parametrize("steps", ["finetune.steps=9", "finetune={steps: 9}", " finetune.steps=9"])
def test_hours_and_steps_are_refused(class_folders: Path, steps: str):
    refusal = refused("train", class_folders, "--hours", "1", f"--set={steps}", "--dry-run", code=2)
    assert "--hours and --set finetune.steps=9 both set the number of steps" in refusal


def test_overrides_are_checked_before_videos_are_read(class_folders: Path):
    wrong = ["--dry-run", *sets("finetune.stepps=3", "finetune.steps=many", "finetune.best=mae")]
    problem = "finetune.steps: must be an integer, not 'many'"
    unknown = "finetune.stepps: unknown key; did you mean 'steps'?"
    assert refused("train", class_folders, *wrong, code=2) == f"error: {problem}\n{unknown}\n"


def test_a_project_of_another_request_is_refused(class_folders: Path, trained: Path):
    before = (trained / "result.json").read_bytes()
    message = refused("train", class_folders, "-o", trained, *FEW, code=2)
    assert 'group ("(p\\\\d)_", now null); choose another folder, or use --overwrite' in message
    wrong = ["--group", "(x)", "--overwrite", *FEW]
    assert "does not match; " in refused("train", class_folders, "-o", trained, *wrong, code=4)
    assert (trained / "result.json").read_bytes() == before


def test_a_project_is_replaced_and_a_users_files_stay(class_folders, trained, tmp_path, monkeypatch):
    project = shutil.copytree(trained, tmp_path / "project")
    notes = [project / name / "notes.txt" for name in ("", "finetune", "lists", "report")]
    for note in notes:
        note.write_text("precious")
    (tmp_path / "elsewhere").mkdir()
    (project / "link").symlink_to(tmp_path / "elsewhere")
    (project / "lists" / "mine").mkdir()
    monkeypatch.setattr(lists, "video_info", video_info := Mock(wraps=lists.video_info))
    shown = called("train", class_folders, "-o", project, "--overwrite", "-q", *FEW)
    assert video_info.call_count == 16  # each video once
    assert not re.search("train: |all training: |^fine-tuning|workers for each process", shown.stderr, re.M)
    assert json.loads((project / "project.json").read_text())["request"]["group"] is None
    assert [note.read_text() for note in notes] == len(notes) * ["precious"]
    assert (project / "lists" / "mine").is_dir()


def test_a_damaged_result_or_row_is_one_line_with_its_file_and_a_fix(class_folders, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "project")
    command = ("train", class_folders, "-o", folder, *BY_PERSON)
    (folder / "result.json").write_text('{"value": 50.0}')
    fix = "choose another folder, or use --overwrite"
    assert f"{folder / 'result.json'}: damaged (metric: Field required); {fix}" in refused(*command, code=2)
    (folder / "result.json").unlink()
    rows = folder / "finetune" / "metrics.jsonl"
    rows.write_text(re.sub(r', "val_loss": [\d.]+', "", rows.read_text()))
    assert f"{rows}: damaged (no 'val_loss'); restore the file" in refused(*command, code=2)


@pytest.mark.slow
def test_a_killed_call_goes_on_where_it_was(class_folders: Path, trained: Path, tmp_path: Path):
    whole = json.loads((trained / "result.json").read_text())
    for change in (2, 7, 12, 20, 40, 60, 90):
        folder = tmp_path / str(change)
        command = ["train", class_folders, "-o", folder, *BY_PERSON]
        if ran_until(change, command, folder):
            break
        called(*command)
        document = json.loads((folder / "result.json").read_text())
        assert document["value"] == whole["value"], change
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
