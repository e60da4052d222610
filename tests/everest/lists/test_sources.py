import json
import shutil
from pathlib import Path

import pytest
from small_runs import RECIPE, called, refused

from everest.config.recipe import load_recipe
from everest.lists.sample import Sample
from everest.lists.sources import seen_in
from everest.system.weights_header import read_header
from everest.video.folders import class_folder_notices

OPEN = RECIPE.replace("num_classes: 2, ", "").replace("val: train.csv, test: train.csv", "test: test.csv")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(OPEN)
    return tmp_path / "tiny.yaml"


@pytest.fixture
def tree(tmp_path: Path, clip_files: Path) -> Path:
    """Two class folders of six videos each."""
    for name, clip in (("walk", "clip0.mp4"), ("run fast", "clip1.mp4")):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for number in range(6):
            shutil.copy(clip_files / clip, tmp_path / "tree" / name / f"{number}.mp4")
    return tmp_path / "tree"


def test_pretraining_takes_a_folder_tree_with_a_notice(recipe: Path, tree: Path):
    shown = called("pretrain", "--recipe", recipe, "--data", tree, "--gpus", "cpu", "--dry-run")
    assert "videos: 12" in shown.stdout
    assert (
        f"{tree}: no train.csv, so all videos below it are used; `everest prepare split {tree}` makes lists "
        "that keep test videos apart"
    ) in shown.stderr


def test_lists_that_are_missed_are_not_replaced_by_all_videos(recipe: Path, tree: Path):
    options = ["--recipe", recipe, "--data", tree, "--dry-run"]
    message = refused("finetune --init none", *options, code=4)
    makes = f"or run `everest prepare split {tree}`, which writes train.csv; then repeat this"
    assert makes in message
    for named, above in (("mise", ""), ("lists/mise", f", nor a folder {tree}/lists")):
        message = refused("pretrain", *options, "--set", f"data.train={named}.csv", code=4)
        assert f"{named}.csv: no such list or folder{above}; set data.root" in message
    message = refused("pretrain", *options, "--set", f"data.train={tree}/gone.csv", code=4)
    assert (
        f"{tree}/gone.csv: no such list or folder; name it where it is now: --set data.train=LIST" in message
    )
    recipe.write_text(OPEN.replace("frames: 4", "frames: 4, num_classes: 2"))  # a known data set
    for command in ("finetune --init none", "pretrain"):
        for verb, name in (("split", ""), ("index", "annotations.json"), ("index", "trainTestlist/x.txt")):
            (tree / name).parent.mkdir(exist_ok=True)
            if name:
                (tree / name).touch()
            message = refused(command, *options, code=4)
            makes = f"set data.root, or run `everest prepare {verb} {tree}`, which writes train.csv"
            assert makes in message
            if name:
                (tree / name).unlink()
        (tree / "trainTestlist").rmdir()


def test_a_folder_that_does_not_exist_is_named_before_its_files(recipe, tmp_path):
    recipe.write_text(OPEN.replace("classes: null", "classes: classes.txt"))
    wrong = tmp_path / "wrong"
    for command in ("finetune --init none", "pretrain"):
        message = refused(command, "--recipe", recipe, "--data", wrong, "--gpus", "cpu", code=4)
        fix = "set it (in most commands: --data DIR)"
        assert message == f"error: data.root: {wrong}: no such folder; {fix}\n"


def test_folders_called_train_and_test_replace_the_lists(recipe: Path, tree: Path, tmp_path: Path):
    root = tmp_path / "root"
    for name in ("train", "validation", "test"):
        shutil.copytree(tree, root / name)
    (root / "test" / "walk" / "0.mp4").unlink()
    options = ["--recipe", recipe, "--data", root, "--gpus", "cpu", "-o", tmp_path / "run"]
    shown = called("finetune", *options, "--init", "none")
    assert f"{root}: no train.csv, so the folder train is read" in shown.stderr
    assert f"{root}/validation: not used; --set data.val=validation selects the best weights" in shown.stderr
    assert read_header(tmp_path / "run" / "model.safetensors").classes == ("run fast", "walk")
    shown = called("eval", "-c", tmp_path / "run", "--json")
    assert "video 11/11" in shown.stderr
    assert 0 <= json.loads(shown.stdout)["top1"] <= 100


@pytest.mark.parametrize("names", [("Train", "TEST"), ("training", "Testing")])
def test_folders_with_other_names_of_splits_replace_the_lists(recipe, tree, tmp_path, names):
    for name in (*names, "unlabeled"):
        shutil.copytree(tree, tmp_path / "root" / name)
    for command in ("finetune --init none", "pretrain"):
        options = ["--recipe", recipe, "--data", tmp_path / "root", "--gpus", "cpu"]
        shown = called(command, *options, "--dry-run")
        assert f"{tmp_path}/root: no train.csv, so the folder {names[0]} is read" in shown.stderr
        assert "videos: 12\n" in shown.stdout


def test_videos_that_a_model_learned_from_are_found_by_file_and_segment(tmp_path: Path, clip_files: Path):
    lines = [f"{clip_files / 'clip0.mp4'},,", f"{clip_files / 'clip1.mp4'},0,1"]
    (tmp_path / "train.csv").write_text("\n".join(["path,start,end", *lines]) + "\n")
    (tmp_path / "tiny.yaml").write_text(OPEN)
    data = load_recipe(tmp_path / "tiny.yaml", overrides=[f"data.root={tmp_path}"]).data
    (tmp_path / "link").symlink_to(clip_files)
    clips = [f"{tmp_path}/link/clip{number}.mp4" for number in range(3)]
    learned = [Sample(path=clips[0]), Sample(path=clips[0], start=0.5, end=1), Sample(path=clips[1])]
    learned += [Sample(path=clips[1], start=0.0, end=1.0), Sample(path=clips[1], start=0.9, end=1.9)]
    others = [Sample(path=clips[1], start=1.0, end=2.0), Sample(path=clips[2])]
    assert seen_in(data, "train", [*learned, *others]) == learned
    (tmp_path / "train.csv").unlink()
    assert seen_in(data, "train", learned) == []


def test_a_test_on_the_training_list_is_reported(classifier_run: Path, clip_files: Path):
    warning = "videos of data.test are also in data.train; accuracy on videos that the model learned from"
    assert warning in called("eval", "-c", classifier_run, "--gpus", "cpu").stderr
    shown = called("timeline", clip_files / "clip0.mp4", "-c", classifier_run, "--gpus", "cpu").stderr
    assert "warning: the model learned from clip0.mp4: scores there are too good to publish" in shown


def test_folders_that_all_class_folders_have_may_be_the_classes(tmp_path: Path):
    for folder in ("day1/ok", "day1/jam", "day2/ok", "day2/jam", "day3/ok"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "clip.mp4").touch()
    (notice,) = class_folder_notices(tmp_path)
    assert f"{tmp_path}: takes its folders day1, day2, day3 as classes, which have jam, ok; if " in notice
    for video in tmp_path.rglob("*.mp4"):  # folders of images are videos
        video.rename(video.with_suffix(".png"))
    assert class_folder_notices(tmp_path) == []


def test_train_refuses_several_folders_with_what_to_do(tree: Path):
    message = refused("train", tree, tree, code=2)
    assert "VIDEOS: several folders or lists; list the clips in one table: path,class,group" in message
