from pathlib import Path

import pytest
from small_runs import called, json_of, refused, small_recipe


def write(folder: Path, name: str, labels: list[str], clips: Path, header: str = "path,label") -> None:
    rows = [f"{clips}/clip{number % 4}.mp4,{label}\n" for number, label in enumerate(labels)]
    (folder / name).write_text(f"{header}\n" + "".join(rows))


def recipe(folder: Path, **data: str) -> Path:
    keys = "".join(f"{key}: {value}, " for key, value in data.items())
    changes = {"num_classes: 2, ": keys, "test: train.csv": "test: test.csv", "epochs: 3": "epochs: 2"}
    return small_recipe(folder, folder, changes | {"cutmix: 1.0": "cutmix: 0.0"})


def finetune(path: Path, *options: object) -> list[object]:
    return ["finetune --init none", "--recipe", path, "-o", path.parent / "run", *options]


def error_of(*arguments: object, code: int = 4) -> str:
    """The error of a command, which is one line."""
    lines = refused(*arguments, code=code).splitlines()
    (first,) = (number for number, line in enumerate(lines) if line.startswith("error: "))
    assert first == len(lines) - 1
    return lines[-1]


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("single-label", ["0.5", "1"], "csv:2: label '0.5' is not an integer from 0; labels that are numb"),
        ("single-label", ["0|1", "1"], "csv:2: unknown class '0|1'; several classes joined by '|' need data"),
        ("single-label", ["a", ""], "csv:3: no label in '"),
        ("single-label", ["a", "a"], "the labels name one class only"),
        ("multi-label", ["0.5", "1"], "csv:2: label '0.5' is not an integer from 0"),
        ("multi-label", ["a|b", "c|a|c"], "csv:3: label 'c|a|c' has a class twice"),
        ("multi-label", ["a|", "c"], "csv:2: label 'a|' has a class twice, or nothing between"),
        ("multi-label", ["", ""], "train.csv: no video has a class in the column label"),
        ("regression", ["0.5", "\u0663.\u0665"], "' is not a number; write numbers like 1.5"),
        ("regression", ["0.5", "nan"], "csv:3: label 'nan' is not a number"),
        ("regression", ["0.5", "1|2"], "csv:3: label '1|2' is not a number"),
        ("regression", ["0.5", ""], "csv:3: no label in '"),
        ("regression", ["2", "2.0"], "all 2 numbers of the column label are 2; check the list"),
        ("{tags: {multi-label: 3}}", ["", ""], "train.csv: no video has a class in the column label.tags"),
        ("{tags: {multi-label: 2}}", ["0|2", ""], "csv:2: label.tags 2 is out of range: labels count from 0"),
        ("{tags: {multi-label: 3}}", ["0|x", ""], "csv:2: unknown class 'x'; other labels are numbers"),
    ],
)
def test_fine_tuning_refuses_labels_of_another_kind(tmp_path, clip_files, kind, labels, message):
    key, column = ("heads", "label.tags") if kind.startswith("{") else ("task", "label")
    write(tmp_path, "train.csv", labels, clip_files, header=f"path,{column}")
    assert message in error_of(*finetune(recipe(tmp_path, **{key: kind})))
    assert not (tmp_path / "run").exists()


def test_a_label_with_a_bar_is_noticed(tmp_path, clip_files):
    write(tmp_path, "test.csv", ["b"], clip_files)
    write(tmp_path, "train.csv", ["a|b", "a", "b", "a|b"], clip_files)
    shown = called(*finetune(recipe(tmp_path, task="single-label"), "--dry-run")).stderr
    assert "train.csv: a label with '|' is read as one class; several classes joined by '|' need" in shown


@pytest.fixture(scope="module")
def named_run(tmp_path_factory: pytest.TempPathFactory, clip_files: Path) -> Path:
    """A run with the classes a and b."""
    folder = tmp_path_factory.mktemp("named")
    for name in ("train.csv", "test.csv"):
        write(folder, name, ["a", "b", "a", "b"], clip_files)
    called(*finetune(recipe(folder, task="single-label"), "-q"))
    return folder / "run"


@pytest.mark.parametrize(
    ("run", "labels", "message"),
    [
        ("named_run", ["a", "c"], "test.csv:3: unknown class 'c'; known: a, b"),
        ("named_run", ["a|b", "a"], "test.csv:2: unknown class 'a|b'; the model predicts one class for"),
        ("named_run", ["0.5", "1"], "csv:2: label '0.5' is not an integer from 0; the model predicts cl"),
        ("tags_run", ["run", "sit|d"], "test.csv:3: unknown class 'd'; known: run, sit, walk"),
    ],
)
def test_evaluation_refuses_labels_of_another_kind(run, labels, message, clip_files, tmp_path, request):
    write(tmp_path, "test.csv", labels, clip_files)
    test = f"data.test={tmp_path}/test.csv"
    assert message in error_of("eval", "-c", request.getfixturevalue(run), "-q", "--set", test)


def test_lists_for_evaluation_may_show_few_classes(tags_run: Path, clip_files: Path, tmp_path: Path):
    command = ["eval", "-c", tags_run, "--set", f"data.test={tmp_path}/test.csv"]
    write(tmp_path, "test.csv", ["run", "", "run"], clip_files)
    assert "mean average precision" in called(*command).stdout
    write(tmp_path, "test.csv", ["", "", ""], clip_files)
    assert json_of(*command, "-q")["map"] is None
    write(tmp_path, "train.csv", ["a|b", "c", "", "a"], clip_files)
    write(tmp_path, "val.csv", ["", ""], clip_files)
    command = finetune(recipe(tmp_path, task="multi-label"), "-q", "--set", "data.val=val.csv")
    message = "data.val: no video has a class, so its mean average precision cannot select the best weights"
    assert message in error_of(*command)
    assert not (tmp_path / "run").exists()
    called(*command, "--set", "finetune.best=loss")
