"""Commands that are killed at a chosen moment: before one of their changes to a folder."""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


# A copy of this process could not train once another test has computed gradients on several devices: copies
# have no threads of autograd. The server of this context only imports.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["everest.inference_api", "everest.stages", "everest_cli.main"])


def ran_until(change: int, command: Sequence[object], folder: Path) -> bool:
    """Run a command in a process that is killed before the `change`-th change of `folder`.

    Changes are counted from 1: a file or folder that is opened for writing, made, renamed or removed.
    Returns whether the command ended by itself, with exit code 0.
    """
    receiver, sender = SERVER.Pipe(duplex=False)
    words = [*str(command[0]).split(), *map(str, command[1:])]  # of `prepare windows`, too
    process = SERVER.Process(target=_run, args=(change, words, folder, sender))
    process.start()
    sender.close()
    process.join()
    text = receiver.recv() if process.exitcode not in (0, -signal.SIGKILL) and receiver.poll() else ""
    assert process.exitcode in (0, -signal.SIGKILL), f"{command} ended with {process.exitcode}:\n{text}"
    return process.exitcode == 0


def _run(change: int, command: list[str], folder: Path, sender: Connection) -> None:
    from everest_cli.main import app

    counted = 0

    def count(event: str, values: tuple[Any, ...]) -> None:
        nonlocal counted
        if event in CHANGES or (event == "open" and _writes(values)):
            counted += _is_in(folder, values[0])
            if counted == change:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    result = CliRunner().invoke(app, command)
    if result.exit_code:  # for the report of the test that fails
        sender.send(result.output + "".join(traceback.format_exception(result.exception)))
    os._exit(result.exit_code)


def _writes(values: tuple[Any, ...]) -> bool:
    flags = values[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _is_in(folder: Path, path: object) -> bool:
    return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(str(folder))
