"""Jobs over many videos: killed, resumed, and divided among processes, with the same files."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from damage import with_hole
from processes import KILLED_AFTER, TWO, everest, kill_after, start
from small_runs import called, contents, refused, run

WINDOWS = ["--window", "0.5", "--step", "0.02"]
JOBS = {
    "predict": ["predict", "--views", "2x1", "--batch", 3, "--format", "csv"],
    "timeline": ["timeline", *WINDOWS, "--batch", 4],
    "extract": ["extract", "--features", "tokens", "--batch", 3],
    "extract, windows": ["extract", *WINDOWS, "--batch", 4],
}
ENDINGS = {"predict": "csv", "timeline": "csv", "extract": "npz"}
ON_CPU = ["--gpus", "cpu"] if torch.cuda.is_available() else []


@pytest.fixture(scope="module")
def videos(clip_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of seven videos, with one that is damaged and one that is none."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "text.mp4").write_text("no video")
    with_hole(clip_files / "clip2.mp4", 0.7, folder / "hole.mp4")
    clips = sorted(clip_files.glob("*.mp4"))
    names = [folder / "text.mp4", folder / "hole.mp4", *clips, clip_files / "clip1.mp4"]
    (folder / "list.txt").write_text("\n".join(map(str, names)))
    return folder / "list.txt"


def job(name: str, model: Path, videos: Path, folder: Path) -> list[object]:
    command, *options = JOBS[name]
    return [command, videos, "-c", model, *options, "-o", folder / f"out.{ENDINGS[str(command)]}", "-q"]


def launched(command: list[object], processes: int, program=("-m", "everest_cli")) -> list[str]:
    """A command, started by torchrun as so many processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    # Without its option `-m`, torchrun takes the path of a script.
    return [str(word) for word in (sys.executable, *torchrun, *program, *command, *ON_CPU)]


def test_a_killed_timeline_goes_on_inside_a_video(classifier_run: Path, videos: Path, tmp_path: Path):
    command = job("timeline", classifier_run, videos, tmp_path / "killed")
    kill_after(120, command)
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {"out.safetensors.parts"}
    other = "its rows were begun with other batch; undo"
    assert other in refused(*command, "--batch", 2, code=2)
    resumed = called(*command, code=4)
    assert "resuming after 2 of 7 videos and " in resumed.stderr
    called(*job("timeline", classifier_run, videos, tmp_path / "whole"), code=4)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert "out.csv: exists" in refused(*command, code=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_two_processes_write_the_files_of_one_also_after_kills(classifier_run, videos, tmp_path, name):
    whole, divided = tmp_path / "whole", tmp_path / "divided"
    called(*job(name, classifier_run, videos, whole), code=4)
    command = job(name, classifier_run, videos, divided)
    (tmp_path / "killed.py").write_text(KILLED_AFTER)
    killed = launched(
        [2 if name in ("predict", "extract") else 60, *command], 2, (str(tmp_path / "killed.py"),)
    )
    ended = subprocess.run(killed, capture_output=True, text=True, timeout=300)
    assert ended.returncode != 0
    assert "SIGKILL" in ended.stderr  # which torchrun says after it has ended the other process
    assert [path.suffix for path in divided.iterdir()] == [".parts"]
    ended = subprocess.run(launched(command, 3), capture_output=True, text=True, timeout=300)
    assert ended.stdout.split() == [str(command[command.index("-o") + 1])], ended.stderr
    assert ended.stderr.count("resuming after ") == 1
    assert contents(divided) == contents(whole)


def test_processes_that_one_command_starts_join_their_rows(classifier_run, videos, tmp_path):
    words = ["predict", videos, "-c", classifier_run, "--format", "csv"]
    expected = run(*words, code=4)
    ended = everest(*words, *TWO, code=4, timeout=300)
    assert ended.stdout == expected, ended.stderr
    assert ended.stderr.count("text.mp4: ") == 1


@pytest.mark.slow
def test_ten_kills_at_any_moment_change_no_byte(classifier_run: Path, videos: Path, tmp_path: Path):
    command = job("timeline", classifier_run, videos, tmp_path / "killed")
    began = time.monotonic()
    start(*job("timeline", classifier_run, videos, tmp_path / "whole")).wait()
    seconds = time.monotonic() - began
    generator = random.Random(0)
    for _ in range(10):
        process = start(*command)
        time.sleep(generator.uniform(0.4, 1) * seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if (tmp_path / "killed" / "out.csv").exists():
            called(*command, code=4 if (tmp_path / "killed" / "out.safetensors.parts").exists() else 2)
            assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
            shutil.rmtree(tmp_path / "killed")
    called(*command, code=4)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("command", ["predict", "timeline"])
def test_a_video_that_cannot_be_waited_for_ends_a_short_job(classifier_run, tmp_path, command):
    recipe = (classifier_run / "recipe.yaml").read_text()
    settings = {"workers: 0": "workers: 1", "data_timeout: 300": "data_timeout: 1"}
    for before, after in settings.items():
        assert before in recipe
        recipe = recipe.replace(before, after)
    (tmp_path / "impatient.yaml").write_text(recipe)
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it waits for a writer
    options = ["-c", classifier_run, "-r", tmp_path / "impatient.yaml", "-q"]
    error = refused(command, tmp_path / "pipe.mp4", *options, code=4)
    assert "within 1 s (train.data_timeout) from " in error
