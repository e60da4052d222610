"""Classifiers of several classes and of numbers: lists of the tests' videos, and runs of tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import RECIPE, run

# Of the four videos: the second has no tag, and the last has three.
TAGS = ("walk|sit", "", "run", "walk|run|sit")
SCORES = (10.5, 30, -2.25, 41)
NAMES = ("run", "sit", "walk")
NO_MIX = {"mixup: 0.8": "mixup: 0.0", "cutmix: 1.0": "cutmix: 0.0"}


def write_list(path: Path, clip_files: Path, **columns: tuple[object, ...]) -> Path:
    """Write a list of the four videos with these columns."""
    lines = [",".join(["path", *(name.replace("_", ".") for name in columns)])]
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        lines.append(",".join([f"{clip_files}/clip{i}.mp4", *map(str, row)]))
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def task_run(folder: Path, data: str) -> Path:
    """Train a tiny classifier on the list `train.csv` of a folder, with this part of the data section."""
    text = RECIPE.replace("data: {", f'data: {{root: "{folder}", ').replace("num_classes: 2", data)
    for before, after in NO_MIX.items():
        text = text.replace(before, after)
    (folder / "tiny.yaml").write_text(text)
    run("finetune", "--recipe", folder / "tiny.yaml", "--init", "none", "-o", folder / "run", "-q")
    return folder / "run"


@pytest.fixture(scope="module")
def tags_run(clip_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three tags, of which a video has any number."""
    folder = tmp_path_factory.mktemp("tags")
    write_list(folder / "train.csv", clip_files, label=TAGS)
    return task_run(folder, "task: multi-label")


@pytest.fixture(scope="module")
def scores_run(clip_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that predicts a number."""
    folder = tmp_path_factory.mktemp("scores")
    write_list(folder / "train.csv", clip_files, label=SCORES)
    return task_run(folder, "task: regression")


@pytest.fixture(scope="module")
def mixed_run(clip_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with a head of each task."""
    folder = tmp_path_factory.mktemp("mixed")
    tags = ("0|2", "", "1", "0|1|2")
    write_list(folder / "train.csv", clip_files, label_verb=(0, 1, 0, 1), label_tags=tags, label_score=SCORES)
    return task_run(folder, "heads: {verb: 2, tags: {multi-label: 3}, score: regression}")
