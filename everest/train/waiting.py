"""Notices that a run waits for its videos, and names the settings that help."""

from __future__ import annotations

import time
from typing import Final

from everest.data.views import MakeViews, PretrainViews
from everest.system.cores import num_cores, num_trainers

LARGE: Final = 0.3  # our choice: share of the time of the steps
SECONDS: Final = 60.0  # our choice: how long a run is watched; the first files take longer
STEPS: Final = 20  # our choice: at least


class WaitWatch:
    """Adds up how long the first steps wait, without the very first one, which starts the workers."""

    def __init__(self) -> None:
        self._steps = 0
        self._waited = 0.0
        self._seconds = 0.0
        self._last: float | None = None
        self._is_over = False

    def add(self, waited: float, *, now: float | None = None) -> float | None:
        """Add a step.

        Args:
            waited: seconds that the step waited for its clips.
        Returns:
            Once, when enough steps were watched: the share of their time, if it is large.
        """
        now = time.monotonic() if now is None else now
        if self._last is not None and not self._is_over:
            self._steps += 1
            self._waited += waited
            self._seconds += now - self._last
        self._last = now
        if self._is_over or self._steps < STEPS or self._seconds < SECONDS:
            return None
        self._is_over = True
        share = self._waited / self._seconds
        return share if share > LARGE else None


def waiting_advice(share: float, *, workers: int, views: MakeViews) -> str:
    """Returns the warning for a share of the time of the steps."""
    cores = max(1, num_cores() // num_trainers())
    remedies = ["read smaller files (`everest prepare encode`)"]
    if isinstance(views, PretrainViews):
        remedies.insert(0, f"raise pretrain.views_per_decode (now {views.num_views})")
    if workers < cores:
        remedies.insert(0, f"raise train.workers (now {workers}, with {cores} cores for this process)")
    return f"the first steps waited for videos for {share:.0%} of their time: {', or '.join(remedies)}"
