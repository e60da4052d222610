import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file
from small_runs import contents, refused, small_recipe

from everest.system.weights import Weights

OVERWRITE = "--overwrite"


@pytest.fixture
def run(tmp_path: Path, classifier_run: Path) -> Path:
    return Path(shutil.copytree(classifier_run, tmp_path / "run"))


@pytest.fixture
def videos(tmp_path: Path, clip_files: Path) -> Path:
    return Path(shutil.copytree(clip_files, tmp_path / "videos"))


def commands(run: Path, videos: Path) -> dict[str, list[object]]:
    """Commands whose output is an input, or a folder that contains one."""
    video, table, weights = videos / "clip0.mp4", videos / "train.csv", run / "model.safetensors"
    named = shutil.copy(video, videos / "clip.npz")
    png = shutil.copy(video, videos / "clip0-mask.png")
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
        "check: the list": ["prepare", "check", shutil.copy(table, videos / "bad_videos.csv"), OVERWRITE],
        "visualize-mask: a picture": ["visualize-mask", video, png, OVERWRITE, "-o", png.parent],
    }


def test_no_command_replaces_its_input(run: Path, videos: Path):
    for name, command in commands(run, videos).items():
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
def junk(tmp_path: Path) -> dict[str, Path]:
    """Files that are no usable checkpoint."""
    files = {name: tmp_path / f"{name}.safetensors" for name in ("missing", "random", "deep", "tokenizer")}
    files["random"].write_bytes(bytes(range(256)) * 50)
    fields = {"classes": None, "recipe": "r", "step": 1}
    Weights(kind="tokenizer", settings={}, **fields).save(files["tokenizer"])
    nested = Weights(kind="classifier", settings={}, **fields).metadata()
    save_file({}, files["deep"], metadata=nested | {"settings": "[" * 3_000})
    return files


def test_a_checkpoint_that_is_none_is_reported_before_the_data(tmp_path: Path, autoencoder_run: Path, junk):
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
        ]
        if name != "tokenizer":
            commands += [
                ["visualize-mask", "-c", file, gone],  # shows the choice of a tokenizer
                ["pretrain", *tokens, "--set", f"tokenizer.checkpoint={file}"],
                ["prepare", "tokens", *tokens, "--set", f"tokenizer.checkpoint={file}"],
            ]
        for command in commands:
            assert str(file) in refused(*command, code=6), (name, command[0])
    message = refused("predict", "-c", autoencoder_run, table, code=6)
    assert "where a classifier one is needed" in message
    assert not (tmp_path / "run").exists()
