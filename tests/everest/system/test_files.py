import errno
import fcntl
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
from processes import wait_for_rows
from pydantic import TypeAdapter

from everest.errors import DataError, EnvironmentProblem, RecipeError
from everest.system import files
from everest.system.files import atomic_file
from everest.system.locks import training_lock
from everest.system.run_folder import RunFolder
from everest.system.text import parse_json, validate


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (ValueError("wrong"), ValueError, "wrong"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (EnvironmentProblem("differs"), EnvironmentProblem, "differs"),
        (OSError(errno.ENOSPC, "No space left on device"), EnvironmentProblem, "the disk is full"),
        (UnicodeEncodeError("utf-8", "1\nf/\udce9.mp4", 4, 5, ""), DataError, "'f/.udce9' is not UTF-8"),
    ],
)
def test_an_error_while_writing_keeps_the_earlier_file(tmp_path, error, raised, message):
    path = tmp_path / "file.txt"
    path.write_text("before")

    def write() -> None:
        with atomic_file(path) as part:
            part.write_text("half of it")
            raise error

    with pytest.raises(raised, match=message):
        write()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file.txt", "before")]


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_or_a_file_is_the_lock(tmp_path, monkeypatch, error):
    def flock(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    if error != errno.ENOSYS:
        with pytest.raises(EnvironmentProblem, match=r"its file system has no locks; use a local disk$"):
            training_lock(tmp_path / "run").__enter__()
        return
    with (
        training_lock(tmp_path),
        pytest.raises(RecipeError, match="another process trains it now"),
    ):
        training_lock(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_checking_that_a_file_can_be_written_changes_nothing(tmp_path: Path):
    files.check_writable(tmp_path / "new" / "folder" / "file.txt")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there.txt").write_text("before")
    files.check_writable(tmp_path / "there.txt")
    assert (tmp_path / "there.txt").read_text() == "before"
    with pytest.raises(EnvironmentProblem, match="it is a folder"):
        files.check_writable(tmp_path)
    with pytest.raises(EnvironmentProblem, match="Not a directory"):
        files.check_writable(tmp_path / "there.txt" / "file.txt")
    (tmp_path / "unmounted").symlink_to(tmp_path / "disk")
    with pytest.raises(EnvironmentProblem, match="No such file"):
        files.check_writable(tmp_path / "unmounted" / "report" / "index.html")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for temporary files whose name leaves room for those of sockets."""
    with TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.slow
def test_a_run_leaves_nothing_among_the_temporary_files(tmp_path: Path, short_folder: Path, recipe: Path):
    command = [sys.executable, "-m", "everest_cli", "pretrain", "--recipe", recipe, "-o", tmp_path / "run"]
    command += ["-q", "--set", "train.workers=2", "--set", "pretrain.epochs=400"]
    killed = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(short_folder)})
    wait_for_rows(tmp_path / "run", 2, killed)
    children = psutil.Process(killed.pid).children(recursive=True)
    assert len(children) >= 2
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    of_libraries = ("wandb-artifacts", "wandb-media")  # made when timm imports wandb, if it is installed
    left = [path.name for path in short_folder.iterdir() if not path.name.endswith(of_libraries)]
    assert [name for name in left if not name.startswith("torchinductor_")] == []


def test_every_problem_of_a_json_document_is_a_value_error_of_one_line():
    adapter = TypeAdapter(dict[str, list[int]])
    for text, message in (
        ('{"loss": NaN}', "NaN is no JSON value"),
        ("[-Infinity]", "-Infinity is no JSON value"),
        ("1e999", "1e999 is too large"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "Exceeds the limit"),
        ("{", "Expecting property name"),
        *((text, ".") for text in ("", b"\xff", '{"a": [1, "x"]}', "[]")),
    ):
        with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
            validate(adapter, parse_json(text))
    assert validate(adapter, parse_json('{"a": [1]}')) == {"a": [1]}


def test_metrics_that_are_not_finite_are_logged_as_null(tmp_path: Path):
    run = RunFolder(tmp_path)
    run.log_row({"step": 1, "loss": math.nan, "val_top1": math.inf, "lr": 0.5})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert parse_json(line) == {"step": 1, "loss": None, "val_top1": None, "lr": 0.5}
    (tmp_path / "metrics.jsonl").write_text(line + '{"step": 2, "loss": NaN}\n')
    rows, problems = run.read_metrics()
    assert [row["step"] for row in rows] == [1]
    assert problems == [f"{tmp_path}/metrics.jsonl:2: not a row of metrics (NaN is no JSON value)"]
