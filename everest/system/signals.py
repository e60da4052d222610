"""Stop requests: a signal, or the end of the parent process."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from everest.errors import UserError
from everest.system.processes import PARENT, catch_stop_signals, is_main
from everest.system.terminal import leave_closed_terminal


class Stopped(UserError):
    """A signal stopped the run; the run is saved."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + number  # the convention of shells: 130 SIGINT, 143 SIGTERM


class StopSignal:
    """Records one of STOP_SIGNALS, so that the current step can end; a second one acts at once."""

    def __enter__(self) -> StopSignal:
        self._received, self._at = 0, 0.0
        self._before = catch_stop_signals(self._record)
        return self

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._received, self._at = number, time.monotonic()
        signal.signal(number, self._before[number])
        if number == signal.SIGHUP:
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
        if not self._received and PARENT in os.environ and os.getppid() != int(os.environ[PARENT]):
            return signal.SIGTERM
        return self._received

    @property
    def seconds(self) -> float:
        """Seconds since the signal; unlimited after the end of the parent process."""
        return time.monotonic() - self._at
