"""`prepare windows --labels`: lists of windows with the classes of annotated bouts."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from small_runs import called, json_of, refused, run

from everest.lists.labels import read_class_names
from everest.lists.reading import read_samples

# Videos of 2 s; names as another computer wrote them.
BOUTS = """\
video,start,end,label
C:\\lab\\clip0.mp4,0,1,walk
C:\\lab\\clip0.mp4,1,2,run
clip1,0.5,1,walk
clip9.mp4,0,1,walk
"""


@pytest.fixture
def bouts(tmp_path: Path) -> Path:
    (tmp_path / "bouts.csv").write_text(BOUTS)
    return tmp_path / "bouts.csv"


@pytest.fixture
def windows(clip_files: Path, bouts: Path) -> list:
    return ["prepare windows", clip_files, "--seconds", 1, "--labels", bouts]


def test_labeled_windows_are_a_list(windows: list, clip_files: Path, tmp_path: Path):
    output = tmp_path / "windows.csv"
    shown = called(*windows, "--step", 0.5, "-o", output)
    assert "left out, no such video: clip9.mp4" in shown.stderr
    assert "left out, without a bout in the annotations: 2 of 4 videos" in shown.stderr
    assert "single-label: walk 3, run 2, background 1" in shown.stderr
    assert f"everest prepare split {output} --group column:group" in shown.stderr
    assert shown.stdout.strip() == str(output)
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert list(rows[1].values()) == [str(clip_files / "clip0.mp4"), "run", "0.5", "1.5", "clip0"]
    # Half of the second window is run and half walk: the first name. The bout of clip1 is in two windows.
    assert [row["label"] for row in rows] == ["walk", "run", "run", "walk", "walk", "background"]
    lists = run("prepare split", output, "--group", "column:group", "--shares", "50/50", "-q").splitlines()
    groups = [
        {row["group"] for row in csv.DictReader(Path(file).read_text().splitlines())} for file in lists[:2]
    ]
    assert groups in ([{"clip0"}, {"clip1"}], [{"clip1"}, {"clip0"}])


@pytest.mark.slow
def test_finetune_takes_the_list(windows: list, recipe: Path, tmp_path: Path):
    output = tmp_path / "windows.csv"
    called(*windows, "-o", output)
    changes = [f"data.{name}={output}" for name in ("train", "val", "test")] + ["data.num_classes=null"]
    settings = [f"--set={change}" for change in changes]
    dry = called("finetune", "--recipe", recipe, "--init", "none", "--gpus", "cpu", "--dry-run", *settings)
    assert "loss" in dry.stdout


def test_classes_that_are_numbers_get_a_file_of_names(windows: list, bouts: Path, tmp_path: Path):
    bouts.write_text(BOUTS.replace("walk", "10").replace("run", "2"))
    output, names = tmp_path / "windows.csv", tmp_path / "windows_classes.txt"
    assert json_of(*windows, "-o", output, "-q", "--json")["classes"] == str(names)
    assert names.read_text().split() == ["10", "2", "background"]
    found = read_samples(output, root=tmp_path, classes=read_class_names(names))
    assert [sample.labels for sample in found.samples] == [(0,), (1,), (0,), (2,)]
    output.unlink()
    assert "windows_classes.txt: exists" in refused(*windows, "-o", output, code=2)


def test_bouts_that_overlap_make_a_list_of_several_classes(windows: list, bouts: Path, tmp_path: Path):
    bouts.write_text("video,start,end,label\nclip0,0,2,walk\nclip0,0.2,1,run\nclip1,0,1,run\n")
    found = json_of(*windows, "-o", tmp_path / "w.csv", "-q", "--json")
    assert (found["task"], found["labels"]) == ("multi-label", {"walk": 2, "run": 2})
    single = [*windows, "-o", tmp_path / "s.csv", "-q", "--json", "--task", "single-label"]
    assert json_of(*single, "--background", "rest")["labels"] == {"walk": 2, "run": 1, "rest": 1}


@pytest.mark.parametrize(
    ("lines", "options", "code", "message"),
    [
        ("clip9.mp4,0,1,walk", [], 4, "bouts.csv: has no bout of these videos; it names clip9.mp4"),
        ("clip0,0,1,walk", ["--background", "walk"], 4, "is the background's"),
        ("clip0,0,1,walk", ["--task", "regression"], 2, "--task regression: bouts have classes"),
        ("clip0,0,x,walk", [], 4, "cannot be read as csv"),
    ],
)
def test_labels_that_cannot_be_used_are_named(
    windows: list, bouts: Path, tmp_path: Path, lines: str, options: list, code: int, message: str
):
    bouts.write_text(f"video,start,end,label\n{lines}\n")
    assert message in refused(*windows, "-o", tmp_path / "w.csv", *options, code=code)
    assert not (tmp_path / "w.csv").exists()


def test_options_of_labels_need_labels(clip_files: Path, tmp_path: Path):
    command = ["prepare windows", clip_files, "--seconds", 1, "-o", tmp_path / "w.csv"]
    assert "--fps and --task belong to --labels" in refused(*command, "--fps", 10, code=2)
