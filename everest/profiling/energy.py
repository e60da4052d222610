"""The energy that a GPU takes for a step, by the counter of its driver (NVML)."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, Protocol, cast

import torch

SECONDS: Final = 5.0  # ours: drivers bring the counter up to date some ten times a second
JOULES_PER_KWH: Final = 3.6e6
INSTALL: Final = "nvidia-ml-py is not installed; run `pip install 'everest-video[energy]'`"


class Nvml(Protocol):
    """What is asked of the module `pynvml` (nvidia-ml-py)."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any: ...

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:
        """Millijoules since the driver was loaded."""
        ...


class NoEnergyCounter(Exception):
    """Why the energy of a device cannot be told."""


def find_nvml() -> Nvml:
    """The library that reads the counters.

    Raises:
        NoEnergyCounter: it is not installed.
    """
    try:
        return cast(Nvml, import_module("pynvml"))
    except ImportError as error:
        raise NoEnergyCounter(INSTALL) from error


def uuid_of(device: torch.device) -> str:
    """A CUDA device as NVML names it; its number there is another where CUDA_VISIBLE_DEVICES is set."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def joules_of_a_step(step: Callable[[], None], *, uuid: str, nvml: Nvml) -> float:
    """The mean over as many steps as take SECONDS, at least one.

    Args:
        step: one step, done when it returns.
    Raises:
        NoEnergyCounter: NVML does not know the device, or the device has no such counter.
    """
    try:
        nvml.nvmlInit()
        try:
            gpu = nvml.nvmlDeviceGetHandleByUUID(uuid)
            return _mean(step, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu)) / 1000
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        raise NoEnergyCounter(f"NVML, asked for {uuid}, says: {error}") from error


def _mean(step: Callable[[], None], counter: Callable[[], int]) -> float:
    """By how much a step moves the counter."""
    before, began, steps = counter(), time.monotonic(), 0
    while not steps or time.monotonic() - began < SECONDS:
        step()
        steps += 1
    return (counter() - before) / steps


def kwh_of_run(joules_per_clip: float, clips: int) -> float:
    """What the device takes for all clips of a run, while it computes."""
    return joules_per_clip * clips / JOULES_PER_KWH
