"""The device that computes nothing, built once, and recipes of tiny models for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import small_runs
import tokenizer_runs
from device_build import Device, NoDeviceError, built_device
from device_runs import Ended, run_everest


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
        text = text.replace("data: {", f'data: {{root: "{clip_files}", ').replace("fp32", "auto")
        path = tmp_path / "tiny.yaml"
        text = text.replace(", save_every: 1", "")
        path.write_text(text.replace("batch_size: 4", "batch_size: 2"))
        command_line = (command, "--recipe", path, "-o", tmp_path / command, "--set", "train.compile=false")
        ended = run_everest(device, *command_line, *options, **how)
        assert ended.code == code, ended.stderr
        return ended

    return run
