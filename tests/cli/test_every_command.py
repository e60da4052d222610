"""What holds for every command: inputs stay, names and titles may be odd, a kill leaves no rubbish."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kill_at_change import ran_until
from PIL import Image
from safetensors.torch import save_file
from small_runs import called, contents, refused, small_recipe

from everest.system.files import is_unfinished
from everest.system.weights import Weights, read_weights

OVERWRITE = "--overwrite"


@pytest.fixture
def run(tmp_path: Path, classifier_run: Path) -> Path:
    return Path(shutil.copytree(classifier_run, tmp_path / "run"))


def replacing(run: Path, videos: Path) -> dict[str, list[object]]:
    """Commands whose output is an input, or a folder that contains one."""
    video, table, weights = videos / "clip0.mp4", videos / "train.csv", run / "model.safetensors"
    named = shutil.copy(video, videos / "clip.npz")
    png = shutil.copy(video, videos / "clip0-mask.png")
    bad_videos = shutil.copy(table, videos / "bad_videos.csv")
    extract, predict = ["extract", "-c", run, OVERWRITE, "-o"], ["predict", "-c", run, OVERWRITE, "-o"]
    evaluate = ["eval", "-c", run, OVERWRITE]
    return {
        "extract: a video": [*extract, named, named],
        "extract: the checkpoint": [*extract, weights, video],
        "predict: a video": [*predict, video, video],
        "predict: the list": [*predict, table, table],
        "predict: the checkpoint": [*predict, weights, video],
        "eval: the run": [*evaluate, "--report", run],
        "eval: above the run": [*evaluate, "--report", run.parent],
        "eval: the videos": [*evaluate, "--data", videos, "--report", videos],
        "eval: the list": [*evaluate, "--data", videos, "--predictions", table],
        "export: the run": ["export", run, "--to", "hf", OVERWRITE, "-o", run],
        "encode: the list's folder": ["prepare", "encode", table, OVERWRITE, "-o", videos],
        "shard: the list's folder": ["prepare", "shard", table, OVERWRITE, "-o", videos],
        "check: the list": ["prepare", "check", bad_videos, OVERWRITE, "-o", videos],
        "visualize-mask: a picture": ["visualize-mask", video, png, OVERWRITE, "-o", png.parent],
    }


def test_no_command_replaces_its_input(run: Path, videos: Path):
    for name, command in replacing(run, videos).items():
        before = contents(run.parent)
        shown = refused(*command, code=2)
        assert "an input of this command" in shown, name
        assert len(shown.splitlines()) <= 3, name
        assert contents(run.parent) == before, name


def test_no_folder_of_images_gets_more_images(tmp_path: Path):
    (images := tmp_path / "images").mkdir()
    for number in range(8):
        Image.new("RGB", (32, 32), (30 * number, 0, 0)).save(images / f"{number}.png")
    before = contents(images)
    frames = ["select-frames", images, "--frames", 2, "--stride", 1, OVERWRITE]
    assert "is an input" in refused(*frames, "--picture", images, code=2)
    assert contents(images) == before


@pytest.fixture
def junk(tmp_path: Path, classifier_run: Path) -> dict[str, Path]:
    """Files that are no usable checkpoint."""
    names = ("missing", "random", "deep", "nan", "tokenizer")
    files = {name: tmp_path / f"{name}.safetensors" for name in names}
    files["random"].write_bytes(bytes(range(256)) * 50)
    fields = {"classes": None, "recipe": "r", "step": 1}
    Weights(kind="tokenizer", settings={}, **fields).save(files["tokenizer"])
    nested = Weights(kind="classifier", settings={}, **fields).metadata()
    save_file({}, files["deep"], metadata=nested | {"settings": "[" * 3_000})
    good = read_weights(classifier_run / "model.safetensors")
    next(iter(good.tensors.values())).view(-1)[0] = math.nan
    good.save(files["nan"])
    return files


def test_a_checkpoint_that_is_none_is_reported_before_the_data(tmp_path: Path, junk):
    recipe, gone = small_recipe(tmp_path, tmp_path / "no-data"), tmp_path / "gone.mp4"
    table, out = tmp_path / "gone.csv", ["-o", tmp_path / "run"]
    tokens = ["--recipe", "lvmae-demo", "--data", tmp_path / "no-data", *out]
    for name, file in junk.items():
        commands = [
            ["finetune", "--recipe", recipe, "--init", file, *out],
            ["eval", "--recipe", recipe, "-c", file],
            ["probe", "--recipe", recipe, "-c", file],
            ["predict", "--recipe", recipe, "-c", file, table],
            ["extract", "--recipe", recipe, "-c", file, table, "-o", tmp_path / "f.npz"],
            ["select-frames", "-c", file, gone],
            ["export --to onnx", file, "-o", tmp_path / "model.onnx"],
        ]
        if name != "tokenizer":
            commands += [
                ["visualize-mask", "-c", file, gone],  # shows the choice of a tokenizer
                ["convert --inspect", file],
                ["pretrain", *tokens, "--set", f"tokenizer.checkpoint={file}"],
                ["prepare", "tokens", *tokens, "--set", f"tokenizer.checkpoint={file}"],
            ]
        for command in commands:
            (line,) = refused(*command, code=6).splitlines()
            assert str(file) in line, (name, command[0])
    assert not (tmp_path / "run").exists()


def test_names_that_are_not_utf_8_are_refused(clip_files: Path, classifier_run: Path, tmp_path: Path):
    odd = tmp_path / "videos" / os.fsdecode(b"caf\xe9.mp4")
    odd.parent.mkdir()
    shutil.copy(clip_files / "clip0.mp4", odd)
    recipe, run = small_recipe(tmp_path, clip_files), ["-c", classifier_run, "--gpus", "cpu"]
    for command in (
        ["prepare split", odd.parent],
        ["predict", *run, odd.parent],
        ["pretrain", "-r", recipe, "--set", f"data.train={odd.parent}"],
    ):
        assert "9.mp4: its name is not UTF-8; rename it\n" in refused(*command, code=4)
    for word in (odd, f"--data={odd}"):
        assert "is not UTF-8; rename the file or folder" in called("predict", *run, word, code=2).stderr


def test_stdout_of_any_encoding_takes_any_name(clip_files: Path, tmp_path: Path):
    """Of a real process: its stdout refuses what it cannot encode, unless the command changes that."""
    shown = {"utf-8": "éΩ".encode(), "latin-1": b"\xe9\\u03a9"}
    for encoding, name in shown.items():
        suggest = ["recipes", "suggest", clip_files, "-o", tmp_path / f"éΩ-{encoding}", "-q"]
        command = [sys.executable, "-m", "everest_cli", *suggest]
        environment = os.environ | {"PYTHONIOENCODING": f"{encoding}:strict"}
        done = subprocess.run(command, capture_output=True, env=environment)
        assert (done.returncode, name in done.stdout) == (0, True), done


def killed(run: Path, videos: Path, out: Path) -> dict[str, list[object]]:
    """Commands that resume or start again; eval and export by --overwrite."""
    table, windows = videos / "train.csv", ["--window", 1, "--step", 0.5]
    timeline = ["timeline", table, "-c", run, *windows, "-q"]
    listed = ["prepare windows", videos, "--seconds", 1, "--count", 3, "-q"]
    return {
        "windows": [*listed, "-o", out / "w.csv"],
        "extract, windows": ["extract", table, "-c", run, *windows, "-o", out / "f.npz", "-q"],
        "extract": ["extract", table, "-c", run, "-o", out / "f.npz"],
        "predict": ["predict", table, "-c", run, "-o", out / "p.csv", "-q"],
        "timeline": [*timeline, "-o", out / "b.csv", "--plot", out / "b.png"],
        "eval": ["eval", "-c", run, "--data", videos, "--report", out],
        "export": ["export", run, "--to", "hf", "-o", out],
        "shard": ["prepare shard", table, "-o", out, "--count", 2, "-q"],
        "extract, safetensors": ["extract", table, "-c", run, "-o", out / "f.safetensors"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", killed(Path(), Path(), Path("out")))
def test_a_command_killed_at_any_moment_ends_when_it_is_repeated(tmp_path, classifier_run, clip_files, name):
    out = tmp_path / "out"
    command = killed(classifier_run, clip_files, out)[name]
    called(*command)

    def sizes() -> dict[Path, int | None]:
        """Not the bytes: safetensors writes its texts in any order. A page of eval has its seconds."""
        return {path: None if name == "eval" else len(data) for path, data in contents(out).items()}

    whole, change, ended = sizes(), 0, False
    while not ended:
        shutil.rmtree(out, ignore_errors=True)
        change += max(1, change // 3)  # later changes repeat themselves
        ended = ran_until(change, command, out)
        if not ended and sizes() != whole:  # else it was killed after the last file
            called(*command, *(["--overwrite"] if name in ("eval", "export") else []))
        assert sizes() == whole, change
        assert not [path for path in out.rglob("*") if is_unfinished(path.name)], change
    assert change > 2
