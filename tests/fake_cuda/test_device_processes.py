"""Two processes with a GPU each that computes nothing, and collectives that wait as NCCL's do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from device_runs import Ended
from test_device_commands import STEP_WAITS

Train = Callable[..., Ended]

# Collectives of a step. Gathered: the numbers of the step.
DDP = {
    "all_reduce": 1,  # gradients: one bucket of a tiny model
    "all_gather": 1,
}
# Also gathered: the parameters of 3 blocks and the rest of the model, the blocks' again in the backward pass.
FSDP = {
    "all_reduce": 1,  # the norm of the gradients
    "all_gather": 8,
    "reduce_scatter": 4,  # the gradients of each group
}
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce")


@pytest.mark.slow
@pytest.mark.parametrize(("shard", "collectives"), [("none", DDP), ("full", FSDP)])
def test_two_gpus_end_well_with_known_collectives(train: Train, shard: str, collectives: dict[str, int]):
    ended = train("pretrain", "--gpus", 2, "--set", f"train.shard={shard}", gpus=2)
    assert [process.rank for process in ended.processes] == [0, 1]
    for process in ended.processes:
        step = process.steps[3]
        assert step.waits == STEP_WAITS
        assert {kind: step.counts[kind] for kind in KINDS if kind in step.counts} == collectives


@pytest.mark.slow
def test_a_failing_process_ends_the_run_though_the_other_waits_in_a_collective(train: Train):
    failing = {"FAKE_CUDA_FAILING_STEP": "3"}
    # Within the timeout: without an abort, the processes would wait for each other for hours.
    ended = train("pretrain", "--gpus", 2, gpus=2, code=4, extra=failing, timeout=120)
    assert ended.stderr.count("error: this process fails for a test") == 1
    assert "Traceback" not in ended.stderr
