"""The device that computes nothing, built once, and recipes of tiny models for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import small_runs
import tokenizer_runs
from device_runs import Device, Ended, NoDeviceError, built_device, run_everest


@pytest.fixture(scope="session")
def device() -> Device:
    """The device; a test that needs it is skipped where it cannot be built."""
    try:
        return built_device()
    except NoDeviceError as error:
        pytest.skip(str(error))


@pytest.fixture
def train(device: Device, clip_files: Path, tmp_path: Path) -> Callable[..., Ended]:
    """Runs a training command with a tiny model on the device; it must end with `code`.

    An epoch has two steps of two clips: nothing is saved or validated after every second step.
    """

    def run(command: str, *options: object, code: int = 0, **how: object) -> Ended:
        text = tokenizer_runs.RECIPE if command == "train-tokenizer" else small_runs.RECIPE
        changes = {"fp32": "auto", ", save_every: 1": "", "batch_size: 4": "batch_size: 2"}
        path = small_runs.small_recipe(tmp_path, clip_files, changes, text)
        command_line = (command, "--recipe", path, "-o", tmp_path / command, "--set", "train.compile=false")
        ended = run_everest(device, *command_line, *options, **how)
        assert ended.code == code, ended.stderr
        return ended

    return run
