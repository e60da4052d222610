"""Ends that are asked for: a signal, or a parent that is gone."""

from __future__ import annotations

import os
import signal
from types import FrameType

from everest.errors import UserError
from everest.system.launch import PARENT


class Stopped(UserError):
    """A signal asked for the end; the run is saved."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + number  # as a shell counts: 130 SIGINT, 143 SIGTERM


class StopSignal:
    """Notes a SIGINT, SIGTERM or SIGUSR1, so that the step under way can end; a second one acts at once."""

    WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __enter__(self) -> StopSignal:
        self._received = 0
        self._before = {int(number): signal.signal(number, self._note) for number in self.WATCHED}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        signal.signal(number, self._before[number])

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def number(self) -> int:
        """The signal that asks for the end, 0 for none. A parent that is gone asks like SIGTERM."""
        if not self._received and PARENT in os.environ and os.getppid() != int(os.environ[PARENT]):
            return signal.SIGTERM
        return self._received
