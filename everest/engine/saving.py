"""Decides when a run is saved or stopped, equally in all its processes."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from everest.config.settings import TrainSettings
from everest.system.signals import StopSignal


class SaveRequest(NamedTuple):
    """What a process requests at the end of a step."""

    signal: int  # the signal that stops the run; 0: none
    is_due: bool  # whether a save is due by the clock


NO_REQUEST: Final = SaveRequest(signal=0, is_due=False)


class SaveSchedule:
    """Decides when a run is saved or stopped: by `train.save_every`, after the last step, and by a signal.

    Attributes:
        own_signal: the signal that this process received; a context manager.
        agreed_signal: a signal that any process received and all processes know; 0: none.
        is_due: whether the run is saved before its next step.
    """

    def __init__(self, settings: TrainSettings, steps: int) -> None:
        self.own_signal = StopSignal()
        self.agreed_signal = 0
        self.is_due = False
        self._every, self._seconds = settings.save_every, settings.save_seconds
        self._last_step = steps
        self._saved_at = time.monotonic()

    def request(self) -> SaveRequest:
        """The request of this process."""
        return SaveRequest(self.own_signal.received, time.monotonic() - self._saved_at >= self._seconds)

    def add(self, request: SaveRequest) -> None:
        """Add the requests of all processes, which know them at the same step."""
        self.agreed_signal = self.agreed_signal or request.signal
        self.is_due = self.is_due or request.is_due or bool(request.signal)

    def reach(self, step: int) -> None:
        """Note that `step` updates are done."""
        at_step = isinstance(self._every, int) and step % self._every == 0
        self.is_due = self.is_due or at_step or step == self._last_step

    def restart(self) -> None:
        """Note that the run is saved now."""
        self.is_due = False
        self._saved_at = time.monotonic()
