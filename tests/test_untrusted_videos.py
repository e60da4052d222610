import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from safetensors import safe_open
from small_runs import called, json_of, refused, small_recipe

from everest.system.run_folder import RunFolder
from everest.system.text import escape_bytes

TITLE = b"title of eighteen."


@pytest.fixture(scope="module")
def latin_clips(tmp_path_factory: pytest.TempPathFactory, clip_files: Path) -> Path:
    """The videos and the list of `clip_files`; the videos have a title in Latin-1."""
    folder = tmp_path_factory.mktemp("latin")
    for file in clip_files.glob("*.mp4"):
        target = folder / file.name
        with av.open(str(file)) as source, av.open(str(target), "w") as container:
            container.metadata["title"] = TITLE.decode()
            stream = container.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    container.mux(packet)
        content = target.read_bytes()
        assert content.count(TITLE) == 1
        target.write_bytes(content.replace(TITLE, "Köln, Café, été 18".encode("latin-1")))
    (folder / "train.csv").write_bytes((clip_files / "train.csv").read_bytes())
    return folder


COMMANDS = {
    "pretrain": ("--recipe", "RECIPE", "-q", "-o", "OUT"),
    "predict": ("VIDEOS", "-c", "RUN", "--gpus", "cpu"),
    "extract": ("VIDEOS", "-c", "RUN", "--gpus", "cpu", "-o", "OUT.npz"),
    "visualize-mask": ("VIDEOS", "--frames", "4", "--size", "32", "-o", "OUT"),
    "select-frames": ("VIDEOS", "--frames", "4", "--size", "32"),
    "prepare stats": ("VIDEOS/train.csv",),
    "prepare check": ("VIDEOS/train.csv", "-o", "OUT"),
    "prepare encode": ("VIDEOS/train.csv", "-o", "OUT"),
}


def words(command: str, values: dict[str, Path]) -> list[str]:
    """The arguments of a command, with each name of `values` replaced."""
    arguments = command.split()
    for text in COMMANDS[command]:
        for name, value in values.items():
            text = text.replace(name, str(value))
        arguments.append(text)
    return arguments


@pytest.mark.parametrize("kind", ["latin_clips", "odd_names"])
@pytest.mark.parametrize("command", COMMANDS)
def test_neither_a_title_nor_a_name_that_is_not_utf_8_ends_a_command(
    command: str, kind: str, classifier_run: Path, tmp_path: Path, request: pytest.FixtureRequest
):
    videos = request.getfixturevalue(kind)
    recipe = small_recipe(tmp_path, videos)
    values = {"RECIPE": recipe, "VIDEOS": videos, "RUN": classifier_run, "OUT": tmp_path / "out"}
    called(*words(command, values))


BYTES = [b"caf\xe9%d.mp4" % number for number in range(4)]
NAMES = [os.fsdecode(name) for name in BYTES]


@pytest.fixture(scope="module")
def odd_names(tmp_path_factory: pytest.TempPathFactory, clip_files: Path) -> Path:
    """The videos of `clip_files` under names that are not UTF-8, with a list."""
    folder = tmp_path_factory.mktemp("names")
    for number, name in enumerate(NAMES):
        shutil.copy(clip_files / f"clip{number}.mp4", folder / name)
    lines = [name + b" %d\n" % (number % 2) for number, name in enumerate(BYTES)]
    (folder / "train.csv").write_bytes(b"".join(lines))
    return folder


@pytest.fixture
def odd_classes(odd_names: Path, tmp_path: Path) -> Path:
    """The same videos in class folders."""
    for number, name in enumerate(NAMES):
        target = tmp_path / "classes" / "ab"[number % 2] / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(odd_names / name, target)
    return tmp_path / "classes"


@pytest.mark.slow
def test_lists_keep_the_bytes_of_names_on_their_whole_way(odd_classes: Path, odd_names: Path, tmp_path: Path):
    """index, split, check, encode, shard, then training and evaluation from these."""
    listed = tmp_path / "index" / "all.csv"
    called("prepare index", odd_classes, "-o", listed.parent)
    called("prepare split", listed, "--data", odd_classes, "-o", tmp_path / "split")
    listed = b"".join(file.read_bytes() for file in (tmp_path / "split").glob("*.csv"))
    assert all(name in listed for name in BYTES)
    shutil.copytree(odd_names, tmp_path / "videos")
    (tmp_path / "videos" / NAMES[0]).write_bytes(b"no video")
    source = tmp_path / "videos" / "train.csv"
    check = called("prepare", "check", source, "-o", tmp_path / "check", code=4)
    assert f"{escape_bytes(NAMES[0])}: not a video file" in check.stderr
    assert BYTES[0] in (tmp_path / "check" / "bad_videos.csv").read_bytes()
    called("prepare", "encode", source, "-o", tmp_path / "small", code=4)
    small = tmp_path / "small" / "train.csv"
    assert BYTES[3] in small.read_bytes()
    index = called("prepare", "shard", small, "-o", tmp_path / "shards").stdout.strip()
    for data in (str(source), str(small), index):
        recipe = small_recipe(tmp_path, Path(data).parent)
        sets = [f"--set=data.{key}={json.dumps(data)}" for key in ("train", "val", "test")]
        out = tmp_path / "run"
        called("finetune --init none -q --overwrite --set=data.max_bad=1", "-r", recipe, *sets, "-o", out)
        assert set(RunFolder(out).bad_videos()) <= {str(tmp_path / "videos" / NAMES[0])}
        files = ["--predictions", tmp_path / "p.csv", "--report", tmp_path / "r"]
        called("eval --overwrite -q --set=data.max_bad=1", "-c", out, *files)
        assert BYTES[1] in (tmp_path / "p.csv").read_bytes()
        assert "\\xe9" in (tmp_path / "r" / "index.html").read_text(encoding="utf-8") or data != str(source)


def test_features_and_predictions_name_the_file(odd_names: Path, classifier_run: Path, tmp_path: Path):
    expected = sorted(str(odd_names / name) for name in NAMES)
    for suffix in ("safetensors", "npz"):
        called(
            "extract", odd_names, "-c", classifier_run, "-o", tmp_path / f"f.{suffix}", "--gpus", "cpu", "-q"
        )
    with safe_open(tmp_path / "f.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["videos"]) == expected
    with np.load(tmp_path / "f.npz") as arrays:
        assert arrays["videos"].tolist() == expected
    options = [odd_names, "-c", classifier_run, "--gpus", "cpu", "-q"]
    assert [row["video"] for row in json_of("predict", *options)] == expected
    for kind in ("csv", "table"):
        result = called("predict", *options, "--format", kind)
        assert all(name in result.stdout_bytes for name in BYTES)
    called("predict", *options, "-o", tmp_path / "x.CSV")
    table = (tmp_path / "x.CSV").read_bytes()
    assert table.startswith(b"video,rank,")
    assert all(name in table for name in BYTES)


def test_figures_escape_the_bytes_and_dollars_of_names(odd_names: Path, tmp_path: Path):
    video = odd_names / NAMES[0]
    for named in (video, Path(shutil.copy(video, tmp_path / r"$\frac$.mp4"))):
        called("visualize-mask", named, "--frames", 4, "--size", 32, "-o", tmp_path)
        called("select-frames", named, "--frames", 4, "--size", 32, "--picture", tmp_path)


def test_stdout_of_any_encoding_takes_any_name(tmp_path: Path):
    """Of a real process: its stdout refuses what it cannot encode, unless the command changes that."""
    shown = {"utf-8:strict": b"caf\xe9", "latin-1:strict": rb"caf\udce9", "ascii:strict": b"caf?"}
    for encoding, name in shown.items():
        target = bytes(tmp_path) + b"/caf\xe9" + encoding[:5].encode()
        command = [sys.executable, "-m", "everest_cli", "recipes", "copy", "ucf101", target]
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done, again = (subprocess.run(command, capture_output=True, env=environment) for _ in range(2))
        assert (done.returncode, name in done.stdout) == (0, True), done
        assert (again.returncode, rb"/caf\xe9" in again.stderr) == (2, True), again


def test_names_that_a_recipe_or_a_checkpoint_must_hold_are_refused(clip_files, tmp_path):
    odd = tmp_path / os.fsdecode(b"d\xe9pot")
    shutil.copytree(clip_files, odd)
    recipe = small_recipe(tmp_path, clip_files)
    message = refused("pretrain", "--recipe", recipe, "--data", odd, "-o", tmp_path / "out", code=2)
    assert message.startswith("error: --data ")
    assert message.endswith(": not UTF-8, which no recipe can hold; rename the folder\n")
    message = refused("pretrain", "--recipe", recipe, "-o", odd / "run", code=2)
    assert f"--output {tmp_path}/d\\xe9pot/run: not UTF-8" in message
    classes = tmp_path / "classes" / odd.name
    shutil.copytree(clip_files, classes)
    train = f"--set=data.train={classes.parent}"
    message = refused("finetune", "--recipe", recipe, "--init", "none", train, code=4)
    assert message.endswith("classes/d\\xe9pot: the name of a class has to be UTF-8; rename the folder\n")
