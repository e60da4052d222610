"""Stop requests: a signal, the end of the parent process, or a closed terminal."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

from everest.errors import UserError
from everest.system.posix import IS_POSIX
from everest.system.processes import is_main

# Ctrl-C, kill, Slurm's warning before the time limit, a closed terminal; of Windows: Ctrl-Break.
STOP_SIGNALS: Final = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGBREAK")
    if hasattr(signal, name)
)
HANGUP: Final = getattr(signal, "SIGHUP", None)  # a closed terminal
PARENT: Final = "EVEREST_PARENT"  # the process that started this one; the run ends with it
PARENT_SECONDS: Final = 0.25  # our choice: between two looks at the parent
GRACE_SECONDS: Final = 10.0  # our choice: for processes to exit by themselves after one has failed
_NEW_GROUP: Final = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # of Windows


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
        self._before = _catch_stop_signals(self._record)
        return self

    def __exit__(self, *exception: object) -> None:
        _restore(self._before)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._received, self._at = number, time.monotonic()
        signal.signal(number, self._before[number])
        if number == HANGUP:
            leave_closed_terminal()
        elif is_main() and os.isatty(2):
            # Not by print, which may be what the signal has interrupted.
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: saving after this step; a second one ends without saving\n".encode())

    @property
    def number(self) -> int:
        """The signal that requests the stop, 0 for none. The end of the parent process counts as SIGTERM."""
        if not self._received and PARENT in os.environ and _is_orphan(int(os.environ[PARENT])):
            return signal.SIGTERM
        return self._received

    @property
    def seconds(self) -> float:
        """Seconds since the signal; unlimited after the end of the parent process."""
        return time.monotonic() - self._at


class SignalForwarder:
    """Starts processes, and forwards each of STOP_SIGNALS to them. Use as a context.

    Ctrl-C reaches only this process, which forwards it once.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._processes: list[subprocess.Popen[Any]] = []
        self._signaled: set[int] = set()  # ids of processes that have received a signal

    def __enter__(self) -> SignalForwarder:
        self._before = _catch_stop_signals(self._forward)
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:  # those that still run after an error of this process
            _send(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in self._processes:
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        _restore(self._before)

    def start(self, command: Sequence[str], env: Mapping[str, str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process that ends with this one. It also gets a signal that arrives during its start.

        Args:
            options: those of subprocess.Popen.
        """
        options |= {"start_new_session": True} if IS_POSIX else {"creationflags": _NEW_GROUP}
        process = subprocess.Popen(command, env={**env, PARENT: str(os.getpid())}, **options)
        self._processes.append(process)
        if self.received and process.pid not in self._signaled:
            _send(process, self.received[-1])
        return process

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if number == HANGUP:
            leave_closed_terminal()
        for process in self._processes:
            self._signaled.add(process.pid)
            _send(process, number)


def _send(process: subprocess.Popen[Any], number: int) -> None:
    """Windows has only one stop signal that another process can receive: Ctrl-Break."""
    process.send_signal(number if IS_POSIX else getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))


def _catch_stop_signals(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Install a handler for STOP_SIGNALS; returns those before, by signal.

    Only the main thread receives signals: in another thread, such as one of a notebook, none is installed. A
    SIGHUP that is ignored stays ignored: that is how `nohup` lets a command outlive its terminal.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    caught = [n for n in STOP_SIGNALS if n != HANGUP or signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in caught}


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def signal_name(code: int | None) -> str | None:
    """The name of the signal by which a process ended, from its exit code; None if it ended otherwise."""
    return signal.Signals(-code).name if code is not None and code < 0 else None


def end_with_parent() -> None:
    """Send this process a SIGTERM when the process named by PARENT is gone; a training then saves its state.

    For commands that a sweep starts, which may read videos for minutes before their first step.
    """

    def watch(parent: int) -> None:
        while not _is_orphan(parent):
            time.sleep(PARENT_SECONDS)
        if IS_POSIX:
            os.kill(os.getpid(), signal.SIGTERM)
        else:  # os.kill would end it at once
            signal.raise_signal(signal.SIGTERM)

    parent = os.environ.get(PARENT, "")
    if parent.isdecimal() and "RANK" not in os.environ:  # processes of one run look after each step
        threading.Thread(target=watch, args=(int(parent),), daemon=True).start()


def _is_orphan(parent: int) -> bool:
    """Whether the process `parent`, which has started this one, is gone."""
    if IS_POSIX:
        return os.getppid() != parent
    # Windows gives an orphan no other parent. A launcher of a virtual environment may be between the two.
    from psutil import pid_exists

    return not pid_exists(parent)


def leave_closed_terminal() -> None:
    """Let standard streams that belong to a closed terminal lead nowhere: writing to it is an error (EIO)."""
    for descriptor in (0, 1, 2):
        try:
            os.get_terminal_size(descriptor)
        except OSError as error:  # ENOTTY of anything but a terminal; Windows ends the processes of one
            if error.errno == errno.EIO:
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
