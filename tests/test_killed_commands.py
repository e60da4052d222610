"""Commands that are killed at any moment: the same command resumes or starts again, and leaves no rubbish."""

import shutil
from pathlib import Path

import pytest
from kill_at_change import ran_until
from small_runs import called, contents

from everest.system.files import is_unfinished


def commands(run: Path, videos: Path, out: Path) -> dict[str, list[object]]:
    table = videos / "train.csv"
    windows = ["--window", 1, "--step", 0.5]
    active = ["--seconds", 1, "--by", "activity", "--count", 3]
    return {
        "windows": ["prepare", "windows", videos, *active, "-o", out / "w.csv", "-q"],
        "extract, windows": ["extract", table, "-c", run, *windows, "-o", out / "f.npz", "-q"],
        "extract": ["extract", table, "-c", run, "-o", out / "f.npz"],
        "predict": ["predict", table, "-c", run, "-o", out / "p.csv", "-q"],
        "timeline": [
            "timeline",
            table,
            "-c",
            run,
            *windows,
            "-o",
            out / "b.csv",
            "--plot",
            out / "b.png",
            "-q",
        ],
        "eval": ["eval", "-c", run, "--data", videos, "--report", out],
        "export": ["export", run, "--to", "hf", "-o", out],
        "shard": ["prepare", "shard", table, "-o", out, "--count", 2, "-q"],
        "extract, safetensors": ["extract", table, "-c", run, "-o", out / "f.safetensors"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", commands(Path(), Path(), Path("out")))
def test_a_killed_command_ends_when_it_is_repeated_eval_and_export_by_overwrite(
    tmp_path, classifier_run, clip_files, name
):
    out = tmp_path / "out"
    command = commands(classifier_run, clip_files, out)[name]
    called(*command)
    sizes = {path: len(data) for path, data in contents(out).items()}
    change, ended = 0, False
    while not ended:
        shutil.rmtree(out, ignore_errors=True)
        change += 1
        ended = ran_until(change, command, out)
        # A kill after the last file, before its traces are removed: the result is there.
        left = {path: len(data) for path, data in contents(out).items()}
        # The page of eval states the seconds it took.
        is_whole = left.keys() == sizes.keys() if name == "eval" else left == sizes
        if not ended and not is_whole:
            called(*command, *(["--overwrite"] if name in ("eval", "export") else []))
        assert contents(out).keys() == sizes.keys(), change
        assert not [path for path in out.rglob("*") if is_unfinished(path.name)], change
        if name != "eval":
            # Not all bytes: safetensors writes the header's texts in any order.
            assert {path: len(data) for path, data in contents(out).items()} == sizes, change
    assert change > 2
