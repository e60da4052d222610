"""Several labels a video, as verb and noun: lists, training, checkpoint, evaluation, prediction."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import RECIPE, run


@pytest.fixture(scope="module")
def root(clip_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    rows = [f"{clip_files}/clip{i}.mp4,{i % 3},{i % 2}\n" for i in range(4)]
    (folder / "train.csv").write_text("path,label.noun,label.verb\n" + "".join(rows))
    (folder / "segments.csv").write_text(
        "path,start,end,label.noun,label.verb\n"
        + "".join(f"{clip_files}/clip{i}.mp4,{0.25 * i},{1 + 0.25 * i},{i % 3},{i % 2}\n" for i in range(4))
    )
    return folder


@pytest.fixture(scope="module")
def recipe(root: Path) -> Path:
    path = root / "tiny.yaml"
    path.write_text(
        RECIPE.replace("data: {", f'data: {{root: "{root}", ').replace(
            "num_classes: 2", "heads: {verb: 2, noun: 3}"
        )
    )
    return path


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run("finetune", "--recipe", recipe, "--init", "none", "-o", folder)
    return folder
