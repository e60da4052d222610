import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from profiles import TINY, profile_of

from everest.config.recipe import load_recipe
from everest.profiling.loading import clips_of_run
from everest.profiling.measure import JOULES_PER_KWH, NoEnergyCounter, find_nvml, joules_of_a_step, measure

FIRST, SECOND = "GPU-0c8ea9a1-0000-4000-8000-000000000001", "GPU-0c8ea9a1-0000-4000-8000-000000000002"
MEASURED = 0.01  # seconds


class Counters:
    """A fake `pynvml` with two GPUs; the second, an old one, has no energy counter."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.opened = 0
        self.millijoules = {FIRST: 5_000_000, SECOND: None}

    def nvmlInit(self) -> None:
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert self.opened
        if uuid not in self.millijoules:
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        assert self.opened
        spent = self.millijoules[handle]
        if spent is None:
            raise self.NVMLError("Not Supported")
        return spent


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("everest.profiling.measure.SECONDS", MEASURED)


def test_joules_are_the_mean_of_the_steps_that_moved_the_counter_of_that_gpu(monkeypatch: pytest.MonkeyPatch):
    nvml, steps = Counters(), 0
    clock = SimpleNamespace(monotonic=lambda: steps * MEASURED / 4)  # four steps fill the time
    monkeypatch.setattr("everest.profiling.measure.time", clock)

    def step() -> None:
        nonlocal steps
        steps += 1
        nvml.millijoules[FIRST] += 1000 if steps % 2 else 2000

    joules = joules_of_a_step(step, uuid=FIRST, nvml=nvml)
    assert steps == 4
    assert joules == 1.5
    assert nvml.opened == 0


def test_a_step_longer_than_the_time_is_taken_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("everest.profiling.measure.SECONDS", 0)
    nvml = Counters()

    def step() -> None:
        nvml.millijoules[FIRST] += 123_456

    assert joules_of_a_step(step, uuid=FIRST, nvml=nvml) == 123.456
    assert JOULES_PER_KWH == 1000 * 3600


def test_errors_of_nvml_name_the_gpu_and_those_of_a_step_stay(monkeypatch: pytest.MonkeyPatch):
    nvml = Counters()
    for uuid, message in (("GPU-of-another-machine", "Not Found"), (SECOND, "Not Supported")):
        with pytest.raises(NoEnergyCounter, match=f"{uuid}: {message}"):
            joules_of_a_step(lambda: None, uuid=uuid, nvml=nvml)
        assert nvml.opened == 0
    with pytest.raises(ZeroDivisionError):
        joules_of_a_step(lambda: 1 / 0, uuid=FIRST, nvml=nvml)
    assert nvml.opened == 0
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as where it is not installed
    with pytest.raises(NoEnergyCounter, match=r"pip install 'everest-video\[energy\]'"):
        find_nvml()


def test_clips_of_a_run_are_those_of_its_steps(clip_files: Path):
    changes = [*TINY, f"data.root={json.dumps(str(clip_files))}", "data.num_classes=2"]
    changes += ["pretrain.epochs=3", "pretrain.batch_size=2", "finetune.batch_size=8"]
    recipe = load_recipe("k400", overrides=changes)
    assert clips_of_run(recipe, "pretrain") == 3 * 4
    # A set smaller than a batch is repeated.
    assert clips_of_run(recipe, "finetune") == recipe.finetune.epochs * 8


def test_a_cpu_has_no_energy_values_and_no_notice():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    options = [f"--set={change}" for change in TINY]
    result = profile_of("--recipe", "k400", *options, "--measure", "--batch", 1, "--json", "-q")
    assert result.stderr == ""
    for stage in json.loads(result.stdout)["stages"].values():
        energy = stage["measured"]
        assert energy["joules_per_clip"] is energy["run_kwh"] is energy["energy_problem"] is None


@pytest.mark.gpu
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # torch 2.11
def test_a_gpu_takes_energy(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pynvml")
    monkeypatch.undo()
    found = measure(load_recipe("k400", overrides=TINY), "pretrain", batch=2, clips_of_run=3_600_000)
    assert found["joules_per_clip"] > 0
    assert found["run_kwh"] == found["joules_per_clip"]
