"""Killed runs are resumed to the same bits: a few kills of `benchmarks/kills.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from kills import kill_runs


@pytest.mark.slow
def test_killed_runs_are_resumed_to_the_same_bits(tmp_path: Path):
    found = kill_runs(tmp_path, kills=3, seed=0, processes=[1, 2], jobs=1)
    assert found["kills"] >= 3
    assert (found["unequal"], found["refused"], found["tracebacks"]) == (0, [], 0)
