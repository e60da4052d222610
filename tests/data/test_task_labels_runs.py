"""Labels of the wrong kind end fine-tuning and evaluation with a line that names their row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_runs import RECIPE, called, refused


def write(folder: Path, name: str, labels: list[str], clips: Path, header: str = "path,label") -> None:
    rows = [f"{clips}/clip{number % 4}.mp4,{label}\n" for number, label in enumerate(labels)]
    (folder / name).write_text(f"{header}\n" + "".join(rows))


def recipe(folder: Path, **data: str) -> Path:
    path = folder / "tiny.yaml"
    text = RECIPE.replace("num_classes: 2, ", "".join(f"{key}: {value}, " for key, value in data.items()))
    text = text.replace("test: train.csv", "test: test.csv").replace("epochs: 3", "epochs: 2")
    path.write_text(
        text.replace("cutmix: 1.0", "cutmix: 0.0").replace("data: {", f'data: {{root: "{folder}", ')
    )
    return path


def error_of(*arguments: object, code: int = 4) -> str:
    """The error of a command, which is one line."""
    lines = refused(*arguments, code=code).splitlines()
    (first,) = (number for number, line in enumerate(lines) if line.startswith("error: "))
    assert first == len(lines) - 1
    return lines[-1]


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        (
            "single-label",
            ["0.5", "1"],
            "csv:2: label '0.5' is not an integer from 0; labels that are numbers",
        ),
        ("single-label", ["0|1", "1"], "csv:2: unknown class '0|1'; several classes joined by '|' need data"),
        ("single-label", ["a", ""], "csv:3: no label in '"),
        ("single-label", ["a", "a"], "the labels name one class only"),
        ("multi-label", ["0.5", "1"], "csv:2: label '0.5' is not an integer from 0"),
        ("multi-label", ["a|b", "c|a|c"], "csv:3: label 'c|a|c' has a class twice"),
        ("multi-label", ["a|", "c"], "csv:2: label 'a|': nothing between two '|'"),
        ("multi-label", ["1|2", "nan"], "csv:3: label 'nan' is not an integer from 0"),
        ("multi-label", ["", ""], "train.csv: the column label is empty in all rows, so there is nothing to"),
        ("regression", ["0.5", "\u0663.\u0665"], "' is no number; write it with the digits 0 to 9"),
        ("regression", ["0.5", "\uff11"], "' is no number; write it with the digits 0 to 9"),
        ("regression", ["0.5", "nan"], "csv:3: label 'nan' is no finite number"),
        ("regression", ["0.5", "-inf"], "csv:3: label '-inf' is no finite number"),
        ("regression", ["0.5", "run"], "csv:3: label 'run' is no number"),
        ("regression", ["0.5", "1|2"], "csv:3: label '1|2' is no number"),
        ("regression", ["0.5", ""], "csv:3: no label in '"),
        ("regression", ["2", "2.0"], "all 2 numbers of the column label are 2"),
    ],
)
def test_fine_tuning_refuses_labels_of_another_kind(
    tmp_path: Path, clip_files: Path, task: str, labels: list[str], message: str
):
    write(tmp_path, "train.csv", labels, clip_files)
    options = ["--init", "none", "-o", tmp_path / "run"]
    assert message in error_of("finetune", "--recipe", recipe(tmp_path, task=task), *options)
    assert not (tmp_path / "run").exists()


def test_a_label_with_a_bar_as_one_class_is_noticed(tmp_path: Path, clip_files: Path):
    write(tmp_path, "train.csv", ["a|b", "a", "b", "a|b"], clip_files)
    options = ["--init", "none", "-o", tmp_path / "run", "--dry-run"]
    shown = called("finetune", "--recipe", recipe(tmp_path, task="single-label"), *options).stderr
    assert "train.csv: a label with '|' is read as one class; several classes joined by '|' need" in shown


@pytest.mark.parametrize(
    ("heads", "labels", "message"),
    [
        ("{tags: {multi-label: 3}}", ["", ""], "train.csv: no video has a class in the column label.tags"),
        ("{tags: {multi-label: 2}}", ["0|2", ""], "csv:2: label.tags 2 is out of range: labels count from 0"),
        ("{tags: {multi-label: 3}}", ["0|0", ""], "csv:2: label '0|0' has a class twice"),
        ("{tags: {multi-label: 3}}", ["0|x", ""], "csv:2: the column label.tags needs a number"),
        ("{tags: regression}", ["0.5", "x"], "csv:3: label.tags 'x' is no number"),
        ("{tags: regression}", ["0.5", "nan"], "csv:3: label.tags 'nan' is no finite number"),
    ],
)
def test_fine_tuning_refuses_labels_of_another_kind_in_a_column_of_a_head(
    tmp_path: Path, clip_files: Path, heads: str, labels: list[str], message: str
):
    write(tmp_path, "train.csv", labels, clip_files, header="path,label.tags")
    options = ["--init", "none", "-o", tmp_path / "run"]
    assert message in error_of("finetune", "--recipe", recipe(tmp_path, heads=heads), *options)


@pytest.mark.parametrize(
    ("header", "columns"), [("path,label.tags", "path, label.tags"), ("path,speed", "path, speed")]
)
def test_a_list_without_the_column_of_a_head_is_one_line(
    tmp_path: Path, clip_files: Path, header: str, columns: str
):
    write(tmp_path, "train.csv", ["1", "0"], clip_files, header=header)
    options = ["--init", "none", "-o", tmp_path / "run"]
    path = recipe(tmp_path, heads="{speed: regression}")
    message = (
        f"train.csv: the list has no column label.speed, which data.heads names; its columns are {columns}"
    )
    assert error_of("finetune", "--recipe", path, *options).endswith(message)
    checked = called("prepare", "check", "--recipe", path, tmp_path / "train.csv", "-q", code=4).stdout
    assert f"labels: 1\n  {tmp_path}/train.csv: the list has no column label.speed\n" in checked


def test_a_class_that_all_training_videos_have_is_noticed(tmp_path: Path, clip_files: Path):
    write(tmp_path, "train.csv", ["a|b", "b", "c|b"], clip_files)
    write(tmp_path, "test.csv", ["b"], clip_files)
    options = ["--init", "none", "-o", tmp_path / "run", "--dry-run"]
    shown = called("finetune", "--recipe", recipe(tmp_path, task="multi-label"), *options).stderr
    assert shown.count("all videos of data.train have the class 'b', so a model cannot learn it") == 1
    write(tmp_path, "train.csv", ["a|b", "b", ""], clip_files)
    shown = called("finetune", "--recipe", recipe(tmp_path, task="multi-label"), *options).stderr
    assert "all videos of data.train" not in shown


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, clip_files: Path) -> dict[str, Path]:
    """A run for each task, each in a folder with its lists."""
    found = {}
    for task, labels in (
        ("single-label", ["a", "b", "a", "b"]),
        ("multi-label", ["a|b", "c", "", "a"]),
        ("regression", ["0.5", "1", "2", "-1"]),
    ):
        folder = tmp_path_factory.mktemp(task)
        for name in ("train.csv", "test.csv"):
            write(folder, name, labels, clip_files)
        found[task] = folder / "run"
        options = ["--init", "none", "-q", "-o", found[task]]
        called("finetune", "--recipe", recipe(folder, task=task), *options)
    return found


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("single-label", ["a", "c"], "test.csv:3: unknown class 'c'; known: a, b"),
        (
            "single-label",
            ["a|b", "a"],
            "test.csv:2: unknown class 'a|b'; the model predicts one class for a video (single-label)",
        ),
        (
            "single-label",
            ["0.5", "1"],
            "test.csv:2: label '0.5' is not an integer from 0; the model predicts classes (single-label)",
        ),
        ("multi-label", ["a", "b|d"], "test.csv:3: unknown class 'd'; known: a, b, c"),
        ("multi-label", ["a|a", "b"], "test.csv:2: label 'a|a' has a class twice"),
        ("regression", ["1", "nan"], "test.csv:3: label 'nan' is no finite number"),
        (
            "regression",
            ["1", "a"],
            "test.csv:3: label 'a' is no number; the model predicts numbers (regression)",
        ),
    ],
)
def test_evaluation_refuses_labels_of_another_kind(
    runs: dict[str, Path], clip_files: Path, task: str, labels: list[str], message: str
):
    write(runs[task].parent, "test.csv", labels, clip_files)
    assert message in error_of("eval", "-c", runs[task], "-q")


def test_a_test_list_without_some_classes_is_evaluated(runs: dict[str, Path], clip_files: Path):
    write(runs["multi-label"].parent, "test.csv", ["a", "", "a"], clip_files)
    assert "mean average precision" in called("eval", "-c", runs["multi-label"]).stdout


def test_lists_for_evaluation_may_show_no_class(runs: dict[str, Path], clip_files: Path, tmp_path: Path):
    write(runs["multi-label"].parent, "test.csv", ["", "", ""], clip_files)
    found = json.loads(called("eval", "-c", runs["multi-label"], "--json", "-q").stdout)
    assert found["map"] is None
    write(tmp_path, "train.csv", ["a|b", "c", "", "a"], clip_files)
    write(tmp_path, "val.csv", ["", ""], clip_files)
    path = recipe(tmp_path, task="multi-label")
    path.write_text(path.read_text().replace("val: train.csv", "val: val.csv"))
    options = ["--recipe", path, "--init", "none", "-q", "-o", tmp_path / "run"]
    message = "data.val: no video has a class, so its mean average precision cannot select the best weights"
    assert message in error_of("finetune", *options)
    assert not (tmp_path / "run").exists()
    called("finetune", *options, "--set", "finetune.best=loss")
    lists = [tmp_path / "train.csv", tmp_path / "val.csv"]
    called("prepare", "check", *lists, "--task", "multi-label", "-q", code=4)  # the same videos
