import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepare_commands import everest, touch

from everest.config.heads import Head, named_heads
from everest.lists.reading import read_samples
from everest.lists.sample import Sample
from everest.prepare.split import read_fractions, split_samples

PARTS = ("train", "val", "test")


def write(folder: Path, labels: list[str], name: str = "all.csv", header: str = "path,label") -> Path:
    """A list of empty files with these labels."""
    touch(folder, *(f"{number}.mp4" for number in range(len(labels))))
    rows = [f"{number}.mp4,{label}\n" for number, label in enumerate(labels)]
    (folder / name).write_text(f"{header}\n" + "".join(rows))
    return folder / name


def split(source: Path, *options: object):
    shown = everest("prepare split", source, "--shares", "60/20/20", "--json", *options)
    return json.loads(shown.stdout), shown.stderr


def samples_of(folder: Path, **options: Any) -> list[Sample]:
    """Those of all parts of a split."""
    files = [folder / f"{part}.csv" for part in PARTS]
    return [sample for file in files for sample in read_samples(file, root=folder, **options).samples]


@given(fractions=st.sampled_from(["80/10/10", "70/30"]), seed=st.integers(0, 10**6))
@settings(max_examples=25)
def test_each_of_several_classes_of_a_video_meets_its_fractions(fractions, seed):
    rng = np.random.default_rng(seed)
    rates = np.array([0.05, 0.1, 0.3, 0.5])  # of a frequent class, ten times the videos of the rarest
    samples = [
        Sample(path=f"/v/{number}.mp4", labels=(tuple(np.flatnonzero(rng.random(4) < rates).tolist()),))
        for number in range(200)
    ]
    parts = read_fractions(fractions)
    lists = split_samples(samples, parts, seed=seed)
    total = Counter(index for sample in samples for index in sample.labels[0])
    for name, fraction in parts.items():
        counts = Counter(index for sample in lists[name] for index in sample.labels[0])
        for index, count in total.items():
            assert counts[index] >= 1 or count < len(parts)
            assert abs(counts[index] - fraction * count) < 2
        assert abs(len(lists[name]) - fraction * len(samples)) < 3


def test_numbers_are_divided_by_their_quantiles():
    def parts_of(numbers: list[float]) -> dict[str, list[float]]:
        samples = [Sample(path=f"/v/{i}.mp4", labels=(label,)) for i, label in enumerate(numbers)]
        lists = split_samples(samples, read_fractions("80/10/10"), seed=0)
        return {name: [sample.labels[0] for sample in part] for name, part in lists.items()}

    numbers = np.random.default_rng(0).lognormal(size=100).tolist()
    ranks = {label: rank for rank, label in enumerate(sorted(numbers))}
    parts = parts_of(numbers)
    for name in ("val", "test"):
        assert sorted(ranks[label] // 10 for label in parts[name]) == list(range(10))
    few = parts_of([float(number) for number in range(20)])  # have few bins
    assert [len(part) for part in few.values()] == [16, 2, 2]
    assert all({label < 10 for label in part} == {True, False} for part in few.values())


def test_labels_with_several_classes_are_found_and_kept(tmp_path: Path):
    labels = ["run|jump", "run", "", "jump", "walk|run"] * 4
    document, shown = split(write(tmp_path, labels))
    assert "labels contain '|', so each may name several classes (multi-label); --task single-label" in shown
    assert document["task"] == "multi-label"
    assert (tmp_path / "classes.txt").read_text().split() == ["jump", "run", "walk"]
    names = ["jump", "run", "walk"]
    samples = samples_of(tmp_path, class_names=names, heads=(Head(task="multi-label", outputs=0),))
    found = {Path(sample.path).name: {names[index] for index in sample.labels[0]} for sample in samples}
    assert found == {f"{i}.mp4": set(filter(None, text.split("|"))) for i, text in enumerate(labels)}
    assert all(document["lists"][part]["classes"].keys() == set(names) for part in PARTS)


def test_decimals_are_found_to_be_numbers_and_kept(tmp_path: Path):
    labels = [f"{number / 8}" for number in range(20)]
    document, shown = split(write(tmp_path, labels))
    assert "labels are decimals, so they are read as numbers (regression)" in shown
    assert document["lists"]["train"]["numbers"]["mean"] == pytest.approx(19 / 16, abs=0.3)
    assert not (tmp_path / "classes.txt").exists()
    found = [sample.labels[0] for sample in samples_of(tmp_path, heads=(Head(task="regression", outputs=0),))]
    assert sorted(found) == [number / 8 for number in range(20)]


def test_integers_stay_classes_and_columns_of_heads_have_their_own_tasks(tmp_path: Path):
    assert split(write(tmp_path / "a", ["0", "1"] * 10))[0]["task"] == "single-label"
    rows = ["0,0|1,0.5", "1,2,1"] * 10
    source = write(tmp_path / "b", rows, header="path,label.verb,label.tags,label.quality")
    assert split(source)[0]["lists"]["train"]["classes"] == {"0": 6, "1": 6}
    heads = named_heads({"verb": 2, "tags": {"multi-label": 3}, "quality": "regression"})
    train = read_samples(tmp_path / "b" / "train.csv", root=tmp_path / "b", heads=heads)
    assert {sample.labels for sample in train.samples} == {(0, (0, 1), 0.5), (1, (2,), 1.0)}


def test_the_task_of_folders_is_known_and_class_names_have_no_separator(tmp_path: Path):
    touch(tmp_path, "set/a/1.mp4", "set/b/2.mp4")
    shown = everest("prepare split", tmp_path / "set", "--task", "regression", code=4).stderr
    assert "data.task regression, needs a list; a class folder gives one class to a video" in shown
    (tmp_path / "names.txt").write_text("a\nb|c\n")
    options = ["--task", "multi-label", "--classes", tmp_path / "names.txt"]
    shown = everest("prepare split", write(tmp_path, ["a"]), *options, code=4).stderr
    assert "the class 'b|c' has a '|' in its name, which joins classes; rename it" in shown


def check(videos: Path, lists: dict[str, list[str]], *options: object, code: int):
    """The result for lists of the clips from the first on, each with its labels."""
    number = 0
    for name, labels in lists.items():
        rows = [f"clip{number + i}.mp4,{label}\n" for i, label in enumerate(labels)]
        (videos / f"{name}.csv").write_text("path,label\n" + "".join(rows))
        number += len(labels)
    paths = [videos / f"{name}.csv" for name in lists]
    return everest("prepare check", *paths, *options, "-o", videos, "--overwrite", code=code)


@pytest.mark.parametrize(
    ("lists", "options", "problem"),
    [
        ({"train": ["a|b", "b", "c"], "val": ["d|a"]}, [], "val.csv:2: unknown class 'd'; known: a, b, c"),
        ({"train": ["0.5", "run"]}, ["--task", "regression"], "train.csv:3: label 'run' is not a number"),
    ],
)
def test_check_names_wrong_labels_before_it_decodes(videos, lists, options, problem):
    assert problem in check(videos, lists, *options, code=4).stderr
    assert not (videos / "checked_videos").exists()


def test_check_counts_the_classes_of_each_list_and_names_the_rare(videos: Path):
    shown = check(videos, {"train": ["a|b", "a", ""], "val": ["b"]}, "--json", code=0)
    found = json.loads(shown.stdout)
    train, val = (str(videos / f"{name}.csv") for name in ("train", "val"))
    assert found["classes"] == [
        {"class": "a", "videos": 2, "lists": {train: 2}},
        {"class": "b", "videos": 2, "lists": {train: 1, val: 1}},
    ]
    assert found["task"] == "multi-label"
    assert found["rare_classes"] == [{"class": "b", "videos": 1}, {"class": "a", "videos": 2}]
    text = check(videos, {"train": ["a", "a", "b"]}, code=0).stdout
    assert (
        "\nclasses: 2, with 1 to 2 videos each\nwarning: fewer than 5 training videos: b (1), a (2)\n" in text
    )
