import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import pytest
from small_runs import called, refused, small_recipe

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


@pytest.mark.parametrize("command", COMMANDS)
def test_a_title_that_is_not_utf_8_ends_no_command(
    command: str, latin_clips: Path, classifier_run: Path, tmp_path: Path
):
    recipe = small_recipe(tmp_path, latin_clips)
    values = {"RECIPE": recipe, "VIDEOS": latin_clips, "RUN": classifier_run, "OUT": tmp_path / "out"}
    called(*words(command, values))


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
    (tmp_path / "list.csv").write_bytes(b"clip0.mp4 0\ncaf\xe9.mp4 1\n")
    message = refused("prepare check", tmp_path / "list.csv", code=4)
    assert "list.csv:2: not in UTF-8; save it in that encoding" in message
    for word in (odd, f"--data={odd}"):
        assert "is not UTF-8; rename the file or folder" in called("predict", *run, word, code=2).stderr


def test_stdout_of_any_encoding_takes_any_name(tmp_path: Path):
    """Of a real process: its stdout refuses what it cannot encode, unless the command changes that."""
    shown = {"utf-8": "éΩ".encode(), "latin-1": b"\xe9\\u03a9"}
    for encoding, name in shown.items():
        target = tmp_path / f"éΩ-{encoding}"
        command = [sys.executable, "-m", "everest_cli", "recipes", "copy", "ucf101", target]
        environment = os.environ | {"PYTHONIOENCODING": f"{encoding}:strict"}
        done = subprocess.run(command, capture_output=True, env=environment)
        assert (done.returncode, name in done.stdout) == (0, True), done
