from dataclasses import replace
from pathlib import Path

import pytest

from everest.config.heads import Head
from everest.config.settings import DataSettings, Recipe
from everest.data import recipe_clips
from everest.errors import DataError
from everest.lists.classes import Classes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three videos, which lists do not open, and each of them in a class folder of `folders`."""
    for name, label in (("a.mp4", "run"), ("b.mp4", "jump"), ("c.mp4", "walk")):
        (tmp_path / name).touch()
        (tmp_path / "folders" / label).mkdir(parents=True)
        (tmp_path / "folders" / label / name).touch()
    return tmp_path


def recipe(root: Path, **data) -> Recipe:
    """A recipe whose lists are the texts given; other values stay."""
    for key in ("train", "val", "test"):
        if "," in data.get(key, ""):
            (root / f"{key}.csv").write_text(data[key])
            data[key] = f"{key}.csv"
    return Recipe(name="here", data=DataSettings(root=str(root), **data))


def labels(found: recipe_clips.ClipDataset) -> dict[str, int]:
    return {Path(sample.path).name: sample.labels[0] for sample in found.samples}


NUMBERS = "a.mp4,0\nb.mp4,1\nc.mp4,2\n"
NAMES = "a.mp4,run\nb.mp4,jump\nc.mp4,walk\n"


@pytest.mark.parametrize("other", [NAMES, "folders"])
@pytest.mark.parametrize("key", ["val", "test"])
def test_names_are_refused_if_the_model_knows_indices_only(root, key, other):
    given = recipe(root, train=NUMBERS, **{key: other})
    _, classes = recipe_clips.finetune_dataset(given)
    assert classes == Classes(heads=(Head(outputs=3),))
    read = recipe_clips.validation_dataset if key == "val" else recipe_clips.evaluation_dataset
    with pytest.raises(DataError, match=r"no class names; set data\.classes or use numbers"):
        read(given, classes)


@pytest.mark.parametrize(
    "other", [NAMES, "folders", "a.mp4,1\nb.mp4,jump\nc.mp4,2\n", "a.mp4,1\nb.mp4,0\nc.mp4,2\n"]
)
def test_labels_of_the_other_lists_mean_the_classes_of_the_training_set(root, other):
    given = recipe(root, train="folders", val=other, test=other)
    _, classes = recipe_clips.finetune_dataset(given)
    expected = {"a.mp4": 1, "b.mp4": 0, "c.mp4": 2}  # jump, run, walk
    assert labels(recipe_clips.validation_dataset(given, classes)) == expected
    assert labels(recipe_clips.evaluation_dataset(given, classes)) == expected
    fewer = recipe(root, train="folders", test="c.mp4,walk\n")
    assert labels(recipe_clips.evaluation_dataset(fewer, classes)) == {"c.mp4": 2}


def test_names_in_a_file_serve_a_model_that_knows_numbers_and_must_be_those_of_the_model(root):
    (root / "classes.txt").write_bytes("\ufeffrun\njump\n\nwalk\n".encode())  # with a byte order mark
    heads = (Head(outputs=3),)
    _, classes = recipe_clips.finetune_dataset(recipe(root, train=NAMES, classes="classes.txt"))
    assert classes.names == ("run", "jump", "walk")
    given = recipe(root, test=NAMES, classes="classes.txt")
    found = labels(recipe_clips.evaluation_dataset(given, Classes(heads=heads)))
    assert found == {"a.mp4": 0, "b.mp4": 1, "c.mp4": 2}
    given = recipe(root, test=NUMBERS, classes="classes.txt")
    other = Classes(heads=heads, names=("jump", "run", "walk"))
    with pytest.raises(DataError, match=r"data\.classes: 'classes\.txt' has other names, or another order"):
        recipe_clips.evaluation_dataset(given, other)
    (root / "classes.txt").unlink()  # a test set elsewhere: the model's own names do
    assert len(recipe_clips.evaluation_dataset(given, other)) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("café\n".encode("latin-1"), r"classes\.txt:1: not in UTF-8"),
        (b"run\n\njump\nrun\n", r"classes\.txt:4: class 'run' is in line 1 already"),
        (b"\n", r"classes\.txt: no class names"),
        (None, r"data\.classes: .*classes\.txt: no such file of class names"),
    ],
)
def test_wrong_files_of_classes_are_refused_with_the_reason(root, content, message):
    if content is not None:
        (root / "classes.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        recipe_clips.finetune_dataset(recipe(root, train=NAMES, classes="classes.txt"))


@pytest.mark.parametrize("label", [99, 100, 99999999999])
def test_a_label_far_above_the_others_makes_no_classes(root, label):
    given = recipe(root, train=f"a.mp4,0\nb.mp4,{label}\nc.mp4,1\n")
    if label > 99:
        text = rf"b\.mp4: label {label} would make {label + 1} classes, .* only 3 .*set data\.num_classes"
        with pytest.raises(DataError, match=text):
            recipe_clips.finetune_dataset(given)
        given = replace(given, data=replace(given.data, num_classes=label + 1))
    assert recipe_clips.finetune_dataset(given)[1].num_outputs == label + 1
