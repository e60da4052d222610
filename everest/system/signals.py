"""Stop requests, by a signal or by the end of the parent process."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, Self

from everest.errors import UserError
from everest.system.processes import is_main

# Ctrl-C, kill, Slurm's warning before the time limit, a closed terminal.
STOP_NAMES: Final = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
STOP_SIGNALS: Final = tuple(getattr(signal, name) for name in STOP_NAMES if hasattr(signal, name))
PARENT_VARIABLE: Final = "EVEREST_PARENT"  # the process that started this one; the run ends with it
PARENT_SECONDS: Final = 0.25  # heuristic: seconds between two checks of the parent
GRACE_SECONDS: Final = 10.0  # heuristic: seconds for processes to exit by themselves after a failure
_stopping: Final = threading.Event()  # set by a signal that this process has recorded or forwarded


class Stopped(UserError):
    """A signal stopped the run; the run is saved."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal
        self.exit_code = 128 + signal  # the convention of shells: 130 SIGINT, 143 SIGTERM


class StopSignal:
    """Records a stop signal in a block, so that the current step can end; a second signal acts at once.

    Only the main thread receives signals; in any other thread, such as a notebook's, this does nothing.
    """

    def __init__(self) -> None:
        self.received = 0  # the last signal; 0: none
        self._at = 0.0
        self._outer: dict[int, Any] = {}  # signal handlers from before the block

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._outer = {signalnum: signal.getsignal(signalnum) for signalnum in STOP_SIGNALS}
        for signalnum, outer in self._outer.items():
            # nohup ignores SIGHUP, so that the run outlives the terminal.
            if signal.Signals(signalnum).name != "SIGHUP" or outer != signal.SIG_IGN:
                signal.signal(signalnum, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for signalnum, outer in self._outer.items():
            signal.signal(signalnum, outer)

    @property
    def seconds(self) -> float:
        """Seconds since the signal was received."""
        return time.monotonic() - self._at

    def _handle(self, signalnum: int, frame: FrameType | None) -> None:
        self.received, self._at = signalnum, time.monotonic()
        _stopping.set()
        signal.signal(signalnum, self._outer[signalnum])
        if is_main() and os.isatty(2):
            # Not with print: the signal may have interrupted a print.
            name = signal.Signals(signalnum).name
            os.write(2, f"\n{name}: saving after this step; a second one ends without saving\n".encode())


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Raise SystemExit at a signal that would end the process at once, so that it removes temporary files."""

    received: list[int] = []

    def leave(signalnum: int, frame: FrameType | None) -> None:
        received.append(signalnum)
        raise SystemExit(128 + signalnum)

    ending = [signalnum for signalnum in STOP_SIGNALS if signal.getsignal(signalnum) == signal.SIG_DFL]
    for signalnum in ending:
        signal.signal(signalnum, leave)
    try:
        yield
    except Exception as error:
        if received:  # C code may turn SystemExit into an error of its own, as an extension's import does
            raise SystemExit(128 + received[0]) from error
        raise
    finally:
        for signalnum in ending:
            signal.signal(signalnum, signal.SIG_DFL)


class SignalForwarder(StopSignal):
    """Starts processes and forwards each stop signal to them once; use as a context."""

    def __init__(self) -> None:
        super().__init__()
        self._processes: list[subprocess.Popen[Any]] = []
        self._signaled: set[int] = set()  # ids of processes that have received a signal

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:  # processes that still run after an error of this process
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in self._processes:
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        super().__exit__(*exception)

    def start(self, command: Sequence[str], env: Mapping[str, str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process that ends with this process and gets signals that arrive during its start.

        Args:
            options: options of subprocess.Popen.
        """
        environment = {**env, PARENT_VARIABLE: str(os.getpid())}
        process = subprocess.Popen(command, env=environment, start_new_session=True, **options)
        self._processes.append(process)
        if self.received and process.pid not in self._signaled:
            process.send_signal(self.received)
        return process

    def _handle(self, signalnum: int, frame: FrameType | None) -> None:
        self.received, self._at = signalnum, time.monotonic()
        _stopping.set()
        for process in self._processes:
            self._signaled.add(process.pid)
            process.send_signal(signalnum)


def signal_name(code: int | None) -> str | None:
    """Return the name of the signal that ended a process with this exit code; None if no signal did."""
    names = {each.value: each.name for each in signal.Signals}  # most real-time signals have no name
    return names.get(-code, f"signal {-code}") if code is not None and code < 0 else None


def end_with_parent() -> None:
    """Send this process a SIGTERM when the process in PARENT_VARIABLE has ended, so that a run is saved.

    None is sent after another stop signal: a second signal would end the process without saving.
    """

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        if not _stopping.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    parent = os.environ.get(PARENT_VARIABLE, "")
    if parent.isdecimal():
        threading.Thread(target=watch, args=(int(parent),), daemon=True).start()
