"""Stop requests: a signal, the end of the parent process, or a closed terminal."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from everest.errors import UserError
from everest.system.posix import HANGUP, STOP_SIGNALS, is_closed_terminal, is_orphan, stop_this_process
from everest.system.processes import is_main

PARENT = "EVEREST_PARENT"  # the process that started this one; the run ends with it
PARENT_SECONDS = 0.25  # our choice: between two looks at the parent


class Stopped(UserError):
    """A signal stopped the run; the run is saved."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + number  # the convention of shells: 130 SIGINT, 143 SIGTERM


class StopSignal:
    """Records one of STOP_SIGNALS, so that the current step can end; a second one acts at once."""

    def __init__(self) -> None:
        self._received, self._at = 0, 0.0  # also read by a dry run, which catches no signals

    def __enter__(self) -> StopSignal:
        self._received, self._at = 0, 0.0
        self._before = catch_stop_signals(self._record)
        return self

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._received, self._at = number, time.monotonic()
        signal.signal(number, self._before[number])
        if number == HANGUP:
            leave_closed_terminal()
        elif is_main() and os.isatty(2):
            # Not by print, which may be what the signal has interrupted.
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: saving after this step; a second one ends without saving\n".encode())

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def number(self) -> int:
        """The signal that requests the stop, 0 for none. The end of the parent process counts as SIGTERM."""
        if not self._received and PARENT in os.environ and is_orphan(int(os.environ[PARENT])):
            return signal.SIGTERM
        return self._received

    @property
    def seconds(self) -> float:
        """Seconds since the signal; unlimited after the end of the parent process."""
        return time.monotonic() - self._at


def catch_stop_signals(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Install a handler for STOP_SIGNALS; returns those before, by signal.

    Only the main thread receives signals: in another thread, such as one of a notebook, none is installed. A
    SIGHUP that is ignored stays ignored: that is how `nohup` lets a command outlive its terminal.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    caught = [n for n in STOP_SIGNALS if n != HANGUP or signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in caught}


def end_with_parent() -> None:
    """Send this process a SIGTERM when the process named by PARENT is gone; a training then saves its state.

    For commands that a sweep starts, which may read videos for minutes before their first step.
    """

    def watch(parent: int) -> None:
        while not is_orphan(parent):
            time.sleep(PARENT_SECONDS)
        stop_this_process()

    parent = os.environ.get(PARENT, "")
    if parent.isdecimal() and "RANK" not in os.environ:  # processes of one run look after each step
        threading.Thread(target=watch, args=(int(parent),), daemon=True).start()


def leave_closed_terminal() -> None:
    """Let standard streams that belong to a closed terminal lead nowhere: writing to it is an error (EIO)."""
    for descriptor in (0, 1, 2):
        if is_closed_terminal(descriptor):
            _lead_nowhere(descriptor)


def _lead_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextmanager
def writing_to_terminal() -> Iterator[None]:
    """Around messages on stderr: if no one can read them any more, they are lost, and that is no error."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EIO:
            leave_closed_terminal()
        elif error.errno in (errno.EPIPE, errno.ENOSPC):  # the reader of a pipe has ended; a full disk
            _lead_nowhere(2)
        else:
            raise
