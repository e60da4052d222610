"""The commands that follow after lists or a recipe were made, and videos that stages read for two uses."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from everest.config.heads import Task
from everest.config.settings import DataSettings
from everest.lists.sample import Sample
from everest.lists.stage import read_stage


def shared_videos(data: DataSettings, key: str, lists: Iterable[str]) -> list[str]:
    """The videos of `data.KEY` that other lists have, too, sorted; a link counts as its target."""
    others = (_paths(replace(data, test=name), "test") for name in lists)
    return sorted(_paths(data, key).intersection(set().union(*others)))


def _paths(data: DataSettings, key: str) -> set[str]:
    samples = read_stage(data, key, labeled=False, may_miss=True).samples
    return {os.path.realpath(sample.path) for sample in samples}


def training_commands(
    recipe: Path, *, labeled: bool, tested: bool = True, pretrained: bool = False
) -> list[str]:
    """The commands that train with a recipe, after pre-training or not, and evaluate on a test list."""
    run, file = f"runs/{shlex.quote(recipe.stem)}", shlex.quote(str(recipe))
    encoder = f"{run}-pretrain" if labeled else run
    pretrain = f"everest pretrain --recipe {file} --output {encoder}"
    if not labeled:
        return [pretrain]
    finetune = f"everest finetune --recipe {file} --init {encoder if pretrained else 'none'} --output {run}"
    evaluate = f"everest eval --checkpoint {run}"
    return [*([pretrain] if pretrained else []), finetune, *([evaluate] if tested else [])]


def commands_for_lists(
    lists: Mapping[str, Sequence[Sample]],
    folder: Path,
    *,
    root: Path,
    heads: Sequence[str],
    task: Task = "single-label",
) -> list[str]:
    """The commands that train on the lists `NAME.csv` of `folder`, whose paths are relative to `root`.

    A recipe is made for them; unlabeled lists and lists of several labels get one for pre-training.
    """
    filled = {name: samples for name, samples in lists.items() if samples}
    folder = folder.absolute()
    below = folder.relative_to(root) if folder.is_relative_to(root) else folder
    given = [] if folder == root else [f"--{name} {shlex.quote(f'{below}/{name}.csv')}" for name in filled]
    labeled = any(sample.labels for samples in filled.values() for sample in samples) and not heads
    if labeled and task != "single-label":  # the labels of a part may not show it
        given.append(f"--task {task}")
    words = ["everest recipes suggest", shlex.quote(str(root)), *given, *([] if labeled else ["--unlabeled"])]
    return [f"{' '.join(words)} --output my.yaml", *training_commands(Path("my.yaml"), labeled=labeled)]
