"""Commands that are killed at a chosen moment: before one of their changes to a folder."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from everest_cli.main import app

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


def ran_until(change: int, command: Sequence[object], folder: Path) -> bool:
    """Run a command in a copy of this process, which is killed before the `change`-th change of `folder`.

    Changes are counted from 1: a file or folder that is opened for writing, made, renamed or removed.
    Returns whether the command ended by itself, with exit code 0.
    """
    pid = os.fork()
    if pid == 0:
        _run(change, command, folder)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"{command} ended with {code}"
    return code == 0


def _run(change: int, command: Sequence[object], folder: Path) -> None:
    counted = 0

    def count(event: str, values: tuple[Any, ...]) -> None:
        nonlocal counted
        if event in CHANGES or (event == "open" and _writes(values)):
            counted += _is_in(folder, values[0])
            if counted == change:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    result = CliRunner().invoke(app, [str(word) for word in command])
    if result.exit_code:  # for the report of the test that fails
        sys.stderr.write(f"{result.output}\n")
        traceback.print_exception(result.exception)
        sys.stderr.flush()
    os._exit(result.exit_code)


def _writes(values: tuple[Any, ...]) -> bool:
    flags = values[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _is_in(folder: Path, path: object) -> bool:
    return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(str(folder))
