"""A project whose folder was moved or copied: what lies inside of it is found there."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from small_projects import BY_PERSON, FEW
from small_runs import called, json_of

from everest.config.recipe import load_recipe
from everest.system.moved_folder import moved


@pytest.fixture(scope="module")
def elsewhere(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished project that was moved: nothing is where its files say."""
    folder = tmp_path_factory.mktemp("moved")
    origin = shutil.copytree(trained, folder / "origin")
    for file in origin.rglob("*"):
        if file.suffix in (".json", ".yaml"):
            file.write_text(file.read_text().replace(str(trained), str(origin)))
    return Path(shutil.move(origin, folder / "deep" / "project"))


def test_a_copied_project_is_evaluated_on_its_own_lists(trained: Path, tmp_path: Path):
    listed = shutil.copytree(trained, tmp_path / "copy") / "lists" / "test.csv"
    header, *rows = listed.read_text().splitlines(keepends=True)
    listed.write_text("".join([header, *rows[1:]]))
    assert json_of("eval", "-c", tmp_path / "copy")["videos"] == len(rows) - 1


def test_a_moved_project_names_its_own_files(class_folders: Path, elsewhere: Path):
    document = json_of("train", class_folders, "-o", elsewhere, *BY_PERSON)
    assert document["report"] == str(elsewhere / "report" / "index.html")
    assert document["checkpoint"] == str(elsewhere / "model" / "model.safetensors")
    shown = called("train", class_folders, "-o", elsewhere, *BY_PERSON)
    assert f"--checkpoint {elsewhere}" in shown.stdout
    assert "origin" not in shown.stdout + json.dumps(document)


def test_a_moved_project_is_exported_with_its_own_list(elsewhere: Path, tmp_path: Path):
    pytest.importorskip("onnxruntime")
    document = json_of("export", elsewhere, "--to", "onnx", "-o", tmp_path / "line.onnx")
    words = shlex.split(document["int8"])
    assert words[words.index("--calibrate") + 1] == str(elsewhere / "lists" / "train.csv")
    assert json_of(*shlex.split(document["next"])[1:])["videos"] > 0


@pytest.mark.slow
def test_an_interrupted_project_is_moved_and_resumed(class_folders: Path, tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second" / "deep"
    command = ["train", class_folders, "--unlabeled", tmp_path / "more", "--model", "network", *FEW]
    command += ["--set", "pretrain.steps=2", "--set", "pretrain.batch_size=4", "--group", r"(p\d)_"]
    for number, video in enumerate(sorted(class_folders.rglob("*.mp4"))[:4]):
        (tmp_path / "more").mkdir(exist_ok=True)
        (tmp_path / "more" / f"{number}.mp4").write_bytes(video.read_bytes() + b" ")
    whole = json_of(*command, "--folds", 3, "-o", first)
    (first / "result.json").unlink()
    (first / "folds" / "2" / "result.json").unlink()
    (first / "finetune" / "model.safetensors").unlink(missing_ok=True)
    second.parent.mkdir()
    shutil.move(first, second)
    again = json_of(*command, "--folds", 3, "-o", second)
    assert again["value"] == whole["value"]
    assert not first.exists()
    assert str(first) not in json.dumps(again)
    third = Path(shutil.move(second, tmp_path / "third"))  # its files now name both positions
    data = load_recipe(third / "folds" / "2" / "finetune" / "recipe.yaml").data
    assert Path(str(data.train)) == third / "lists" / "fold2" / "train.csv"


def test_only_paths_inside_of_the_folder_change(tmp_path: Path):
    old, new = tmp_path / "old", tmp_path / "new"
    new.mkdir()
    (new / "paths.json").write_text(json.dumps([str(old), str(old / "target")]))
    document = {"root": str(tmp_path / "older"), "lists": [str(old / "target" / "a.csv"), "a.csv", 3]}
    expected = {"root": str(tmp_path / "older"), "lists": [str(new / "a.csv"), "a.csv", 3]}
    assert moved(document, new / "folds" / "1" / "model") == expected
    assert moved({"a": str(new / "a.csv")}, new) == {"a": str(new / "a.csv")}
    for text in ("{", "[]", "[3]", "{}"):
        (new / "paths.json").write_text(text)
        assert moved(document, new) == document
