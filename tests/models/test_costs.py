"""The computation and the saved bytes of a step, counted: goals that hold on every machine."""

from __future__ import annotations

import pytest
from flops_memory import LONGER_GFLOP, LONGER_MEGABYTES, QUARTER, SAVING, B, S, counts
from steps import Case


@pytest.mark.parametrize(
    ("overrides", "gflop", "megabytes"),
    [((S,), 31, 34), ((B,), 111, 63), ((S, SAVING), None, 8.5), ((B, SAVING), None, 13)],
)
def test_a_step_of_everest_computes_and_keeps_no_more_than_its_goal(overrides, gflop, megabytes):
    found = counts(Case("k400", "pretrain", overrides))
    assert gflop is None or found["gflop"] <= gflop
    assert found["saved_bf16_mb"] <= megabytes


@pytest.mark.slow
def test_memory_grows_with_the_frames_and_not_with_their_square():
    short, long = (
        counts(Case("k400", "pretrain", (S, QUARTER, f"data.frames={frames}"))) for frames in (16, 128)
    )
    assert long["gflop"] / short["gflop"] <= LONGER_GFLOP
    assert 8 <= long["saved_bf16_mb"] / short["saved_bf16_mb"] <= LONGER_MEGABYTES
