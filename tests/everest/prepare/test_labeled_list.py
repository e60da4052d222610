import csv
from pathlib import Path

import pytest
from small_runs import BOUTS, called, json_of, refused, run

from everest.lists.labels import read_class_names
from everest.lists.reading import read_samples


@pytest.fixture
def windows(clip_files: Path, bouts: Path) -> list:
    return ["prepare windows", clip_files, "--seconds", 1, "--labels", bouts]


def test_labeled_windows_are_a_list(windows: list, clip_files: Path, tmp_path: Path):
    output = tmp_path / "all windows.csv"
    shown = called(*windows, "--step", 0.5, "-o", output)
    assert "left out, no such video: clip9.mp4" in shown.stderr
    assert "left out, without a bout in the annotations, 2 of 4 videos: " in shown.stderr
    assert "single-label: walk 3, run 2, background 1" in shown.stderr
    assert f"everest prepare split '{output}' --group column:group" in shown.stderr
    assert shown.stdout.strip() == str(output)
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert list(rows[1].values()) == [str(clip_files / "clip0.mp4"), "run", "0.5", "1.5", "clip0"]
    # Half of the second window is run and half walk: the first name. The bout of clip1 is in two windows.
    assert [row["label"] for row in rows] == ["walk", "run", "run", "walk", "walk", "background"]
    lists = run("prepare split", output, "--group", "column:group", "--shares", "50/50").splitlines()
    groups = [
        {row["group"] for row in csv.DictReader(Path(file).read_text().splitlines())} for file in lists[:2]
    ]
    assert groups in ([{"clip0"}, {"clip1"}], [{"clip1"}, {"clip0"}])


def test_classes_that_are_numbers_get_a_file_of_names(windows: list, bouts: Path, tmp_path: Path):
    bouts.write_text(BOUTS.replace("walk", "10").replace("run", "2"))
    output, names = tmp_path / "windows.csv", tmp_path / "windows_classes.txt"
    assert json_of(*windows, "-o", output, "-q", "--json")["classes"] == str(names)
    assert names.read_text().split() == ["10", "2", "background"]
    found = read_samples(output, root=tmp_path, class_names=read_class_names(names))
    assert [sample.labels for sample in found.samples] == [(0,), (1,), (0,), (2,)]
    output.unlink()
    assert "windows_classes.txt: exists" in refused(*windows, "-o", output, code=2)


@pytest.mark.parametrize(
    ("lines", "options", "code", "message"),
    [
        ("clip9.mp4,0,1,walk", [], 4, "bouts.csv: annotates none of these videos; it names clip9.mp4"),
        ("clip0,0,1,walk", ["--task", "regression"], 2, "--task regression: bouts have classes"),
        ("clip0,0,x,walk", [], 4, "cannot be read as csv"),
    ],
)
def test_labels_that_cannot_be_used_are_named(windows, bouts, tmp_path, lines, options, code, message):
    bouts.write_text(f"video,start,end,label\n{lines}\n")
    assert message in refused(*windows, "-o", tmp_path / "w.csv", *options, code=code)
    assert not (tmp_path / "w.csv").exists()


def test_labels_of_a_person_replace_predicted_ones_of_another_file(windows: list, tmp_path: Path):
    predicted, output = tmp_path / "predicted.csv", tmp_path / "windows.csv"
    predicted.write_text(
        "video,start,end,label,origin\n"
        "clip0.mp4,0,2,jump,automated\nclip2.mp4,0,1,run,automated\nclip2.mp4,1,2,background,automated\n"
    )
    shown = called(*windows, "--labels", predicted, "-o", output)
    assert "left out, predicted bouts of videos that a person has labeled:" in shown.stderr
    assert "also used as labels: 2 predicted bouts that nobody corrected" in shown.stderr
    assert "clip0.mp4" in shown.stderr
    rows = list(csv.DictReader(output.read_text().splitlines()))
    labels = [(row["group"], row["label"]) for row in rows]
    assert labels == [
        *(("clip0", "walk"), ("clip0", "run")),
        *(("clip1", "walk"), ("clip1", "background")),
        *(("clip2", "run"), ("clip2", "background")),
    ]


def test_outputs_and_options_that_cannot_be_meant_are_refused(windows, clip_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = windows[:-2]
    assert "--fps and --task need --labels" in refused(*command, "-o", "w.csv", "--fps", 10, code=2)
    assert "cannot write .: it is a folder" in refused(*command, "-o", ".", code=5)
    message = refused(*windows, "-o", clip_files / "clip0.mp4", "--overwrite", code=2)
    assert "clip0.mp4: is an input of this command" in message
