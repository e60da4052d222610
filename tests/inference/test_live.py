"""Live sources on this machine: a pipe, and streams of ffmpeg over TCP."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from small_runs import json_of, refused
from timed_videos import write_numbered

import everest
from everest.inference.live import predict_live
from everest.inference.model import OpenedModel
from everest.system.events import silent

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg that streams")
FPS, WINDOW = 16, 0.5


@pytest.fixture(scope="module")
def stream_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of MPEG-TS."""
    path = tmp_path_factory.mktemp("stream") / "stream.ts"
    picture = f"testsrc=duration=4:size=64x48:rate={FPS}"
    encoder = ["-c:v", "libx264", "-g", str(FPS), "-f", "mpegts", str(path)]
    command = ["ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", picture, *encoder]
    subprocess.run(command, check=True)
    return path


@contextmanager
def served(file: Path, port: int, *, after: int = 0) -> Iterator[None]:
    """Send a file to the first that connects, in its own time, from `after` seconds on."""
    address = f"tcp://127.0.0.1:{port}?listen=1"
    command = ["ffmpeg", "-loglevel", "error", "-re", "-i", str(file), "-c", "copy", "-f", "mpegts", address]
    with subprocess.Popen(["bash", "-c", f'sleep {after}; exec "$@"', "bash", *command]) as server:
        try:
            yield
        finally:
            server.kill()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_live(run: Path, source: str, *options: str, stdin: Any = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "everest_cli", "predict", "--live", source, "-c", str(run), *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=stdin, stdout=pipe, stderr=pipe, text=True)


def test_a_pipe_has_the_windows_of_the_file(classifier_run: Path, stream_file: Path):
    options = ["--window", "0.5", "--step", "0.25"]
    with stream_file.open("rb") as file:
        process = start_live(classifier_run, "-", *options, stdin=file)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    rows = [json.loads(line) for line in out.splitlines()]
    (row,) = json_of("predict", stream_file, "-c", classifier_run, "--timeline", *options)
    assert len(rows) == len(row["windows"]) == 15
    for live, window in zip(rows, row["windows"], strict=True):
        assert {name: live[name] for name in window} == window
        assert live["dropped"] == 0
        assert live["latency"] > 0
    assert "15 windows, latency" in errors


def test_a_stream_is_followed_until_a_signal(classifier_run: Path, stream_file: Path):
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    with served(stream_file, port), start_live(classifier_run, address, "--window", "0.5", "-q") as process:
        assert process.stdout is not None
        rows = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "stopped by a signal" in errors
    assert "Traceback" not in errors
    assert rows[1]["start"] >= rows[0]["end"] >= WINDOW


def live_rows(
    run: Path, source: str, *, retry: float, pause: float = 0.0
) -> tuple[list[Any], dict[str, Any]]:
    rows: list[Any] = []

    def emit(row: dict[str, Any]) -> None:
        rows.append(row)
        time.sleep(pause)

    model = OpenedModel.of(everest.load_model(run), clips=1, crops=1)  # type: ignore[arg-type]
    options: Any = {"window": WINDOW, "step": None, "top": 1, "report": silent, "is_stopped": lambda: False}
    return rows, predict_live(model, source, retry=retry, emit=emit, **options)


@pytest.mark.slow
def test_a_stream_that_comes_back_is_connected_again(classifier_run: Path, stream_file: Path):
    port = free_port()
    with served(stream_file, port), served(stream_file, port, after=6):
        rows, summary = live_rows(classifier_run, f"tcp://127.0.0.1:{port}", retry=6)
    assert summary["connections"] == 2
    gaps = [after["start"] - before["end"] for before, after in pairwise(rows)]
    assert 0.5 < max(gaps) < 5  # by the clock, from one end to the next start
    skipped = 2 * 8 - len(rows)  # a connection may begin with frames that are late
    assert 0 <= skipped <= 6
    assert summary["dropped"] == skipped * FPS * WINDOW


@pytest.mark.slow
def test_a_slow_model_skips_windows_and_its_latency_does_not_grow(classifier_run: Path, stream_file: Path):
    port = free_port()
    with served(stream_file, port):
        rows, summary = live_rows(classifier_run, f"tcp://127.0.0.1:{port}", retry=0.6, pause=1.2)
    assert len(rows) < 8
    assert summary["dropped"] >= FPS * (4 - WINDOW * len(rows) - WINDOW)
    assert max(row["latency"] for row in rows) < 1.2 + 1.0 + WINDOW
    assert all(row["start"] / WINDOW == round(row["start"] / WINDOW) for row in rows)


def live_lines(run: Path, source: Path, window: str) -> list[Any]:
    """The lines of a source that ends."""
    with start_live(run, str(source), "--window", window) as process:
        try:
            out, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    return [json.loads(line) for line in out.splitlines()]


def test_a_gap_in_a_file_is_passed(classifier_run: Path, tmp_path: Path):
    times = [*range(16), *range(96, 128)]  # no frame from the first second to the sixth
    video = write_numbered(tmp_path / "gap.mp4", times, Fraction(1, 16))
    assert [line["start"] for line in live_lines(classifier_run, video, "2")] == [0, 6]


def test_a_source_whose_frames_change_their_shape_goes_on(classifier_run: Path, tmp_path: Path):
    for name, size in (("wide", "64x48"), ("high", "48x64")):
        encoder = ["-c:v", "libx264", "-g", str(FPS), "-f", "mpegts", str(tmp_path / name)]
        picture = f"testsrc=duration=1:size={size}:rate={FPS}"
        subprocess.run(["ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", picture, *encoder], check=True)
    both = tmp_path / "both.ts"
    both.write_bytes((tmp_path / "wide").read_bytes() + (tmp_path / "high").read_bytes())
    assert len(live_lines(classifier_run, both, "0.5")) >= 3


def test_a_source_that_is_not_there_or_no_video_is_named(classifier_run: Path, tmp_path: Path):
    (tmp_path / "text").write_text("no video")
    for source, options, code, message in (
        (tmp_path / "gone", [], 4, "gone: cannot be opened: No such file or directory"),
        (tmp_path / "text", [], 4, "text: cannot be opened"),
        (f"tcp://127.0.0.1:{free_port()}", ["--retry", 0], 4, "Connection refused"),
        ("-", ["--bouts"], 2, "--bouts: not with --live"),
        ("-", ["-o", "x.json"], 2, "--live: replaces videos, and prints JSON lines"),
        ("-", ["--window", "inf"], 2, "--window: must be a number of seconds from 0.001 on, not inf"),
        ("-", ["--step", "inf"], 2, "--step: must be a number of seconds from 0.001 on, not inf"),
    ):
        assert message in refused("predict", "--live", source, "-c", classifier_run, *options, code=code)
    assert "or a source with --live" in refused("predict", "-c", classifier_run, code=2)
    no_live = refused("predict", tmp_path / "text", "-c", classifier_run, "--retry", 5, code=2)
    assert "--retry: needs --live" in no_live
