"""A run whose host works beside the device, as on a GPU, equals one that waits for every step."""

import json
import math
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from small_runs import equal, same_run
from torch import Tensor

from everest.config.recipe import load_recipe
from everest.config.run_options import RunOptions
from everest.engine.context import RunContext
from everest.engine.step import MicroBatchLosses
from everest.engine.training import Training
from everest.errors import DivergedError, EnvironmentProblem
from everest.pretraining import Pretraining, set_up_pretraining
from everest.stages import start_or_resume
from everest.system.accelerator import make_accelerator
from everest.system.events import ignore_event
from everest.system.run_folder import RunFolder
from everest.system.signals import Stopped

SETTINGS = ["train.ema=0.5", "train.save_every=5", "pretrain.epochs=6"]


def started(recipe, folder, *overrides: str, overlaps: bool, resumed: bool = False) -> Pretraining:
    settings = load_recipe(recipe, overrides=[*SETTINGS, *overrides])
    context = RunContext(
        accelerator=make_accelerator("fp32", cpu=True),
        run_folder=RunFolder(folder),
        resumed=resumed,
        emit=ignore_event,
        options=RunOptions(stage="pretrain", recipe_file=str(recipe)),
        overlaps=overlaps,
    )
    stage = set_up_pretraining(settings, context)
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(start_or_resume(stage.training, settings))
        stack.pop_all()  # the caller runs the loop, or a part of it
    return stage


def loop(training: Training, broken: set[int], *, of: str = "loss") -> Iterator[list[dict]]:
    """The loop of pre-training, with losses or gradients that are no number in the steps `broken`, from 0."""
    with closing(training.remaining_steps()) as steps:
        for step in steps:
            for batch in step.batches():
                loss = Pretraining(training=training).losses(batch, step).model
                if step.index in broken and of == "gradient":
                    loss.register_hook(lambda gradient: gradient * math.nan)
                elif step.index in broken:
                    loss = loss * math.nan
                step.backward(MicroBatchLosses(loss))
            yield step.update()


def learned(training: Training) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.networks[0].module.state_dict().items()}


def test_rows_and_weights_are_those_of_a_run_that_waits(recipe: Path, tmp_path: Path):
    for overlaps in (False, True):
        started(recipe, tmp_path / str(overlaps), overlaps=overlaps).train()
    assert same_run(tmp_path / "True", tmp_path / "False")


@pytest.mark.parametrize("overlaps", [False, True])
def test_rows_that_a_save_reads_reach_the_loop(recipe: Path, tmp_path: Path, overlaps: bool):
    training = started(recipe, tmp_path / "run", overlaps=overlaps).training
    assert [row["step"] for rows in loop(training, set()) for row in rows] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("overlaps", [False, True])
def test_a_loss_that_is_no_number_stops_the_run_with_the_weights_before_it(recipe, tmp_path, overlaps):
    training = started(recipe, tmp_path / "run", overlaps=overlaps).training
    steps = loop(training, {2})
    for _ in range(2):
        next(steps)
    before = learned(training)
    with pytest.raises(
        DivergedError, match=r"step 3: loss nan, grad_norm .*nonfinite\.json for its videos; lower base_lr"
    ):
        list(steps)
    assert training.steps_done == (4 if overlaps else 3)  # the fourth was computed, and left out, too
    assert equal(learned(training), before)
    assert json.loads((tmp_path / "run" / "nonfinite.json").read_text())["step"] == 3
    assert [row["step"] for row in RunFolder(tmp_path / "run").rows()] == [1, 2]


@pytest.mark.parametrize("overlaps", [False, True])
def test_an_overflow_of_fp16_leaves_out_that_update_only(recipe: Path, tmp_path: Path, overlaps: bool):
    training = started(recipe, tmp_path / "run", overlaps=overlaps).training
    training.guard.scaled = True
    network = training.networks[0]
    average = network.ema.module
    expected = {name: weight.clone() for name, weight in average.named_parameters()}
    after, updates = [], []
    for step, _ in enumerate(loop(training, {2, 3}, of="gradient")):
        after.append(learned(training))
        updates.append(next(iter(network.optimizer.state.values()))["step"].item())  # AdamW's count
        if step not in {2, 3}:
            for name, weight in network.module.named_parameters():
                expected[name].lerp_(weight.detach(), 0.5)
        assert equal(dict(average.named_parameters()), expected)
    assert [equal(after[i], after[i + 1]) for i in range(5)] == [False, True, True, False, False]
    assert updates[:6] == [1, 2, 2, 2, 3, 4]


def test_a_run_that_leaves_out_all_updates_fails_at_its_end(recipe: Path, tmp_path: Path):
    training = started(recipe, tmp_path / "run", overlaps=False).training
    training.guard.scaled = True
    with pytest.raises(DivergedError, match=r"step 6: loss \d.*grad_norm nan, 6 times in a row"):
        list(loop(training, set(range(6)), of="gradient"))


def test_a_run_stopped_beside_the_device_resumes_to_the_same_bits(recipe: Path, tmp_path: Path):
    started(recipe, tmp_path / "whole", overlaps=False).train()
    training = started(recipe, tmp_path / "parts", overlaps=True).training
    steps = loop(training, set())
    for _ in range(2):
        next(steps)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped, match="saved after step 4 of 6"):  # the signal was read in the fourth step
        list(steps)
    started(recipe, tmp_path / "parts", overlaps=True, resumed=True).train()
    assert same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_disk_error_in_the_background_ends_the_run(recipe: Path, tmp_path: Path):
    training = started(recipe, tmp_path / "run", overlaps=True).training
    (tmp_path / "run" / "state").write_text("no folder")
    with pytest.raises(EnvironmentProblem, match=r"cannot write .*state"):
        list(loop(training, set()))
