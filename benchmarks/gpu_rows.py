"""Shared by the benchmarks of a GPU: rows that are written at once, times of a call, ceilings, energy."""

from __future__ import annotations

import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]

# TFLOP/s of large bf16 products, assumed: 80 % of the data sheets. One H100 reached 690 to 710.
PRODUCT_TFLOPS = {"H200": 790.0, "H100 PCIe": 605.0, "H100": 790.0, "A100": 250.0}


class Rows:
    """A file of rows, each written at once. An item that fails is a row with its error.

    Args:
        path: one JSON object a line; rows are appended.
        limit: seconds after which no item begins.
        only: beginnings of the names of the items that run; none: all.
    """

    def __init__(self, path: Path, *, limit: float, only: Sequence[str] = ()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.folder = path.parent
        self.written: list[Row] = []
        self._path = path
        self._limit, self._only = limit, tuple(only)
        self._began = time.perf_counter()

    @property
    def is_over(self) -> bool:
        """Whether the limit has passed."""
        return time.perf_counter() - self._began > self._limit

    def put(self, item: str, row: Row) -> None:
        whole = {"item": item, "at": round(time.perf_counter() - self._began, 1), **row}
        self.written.append(whole)
        with self._path.open("a") as file:
            file.write(json.dumps(whole) + "\n")
        print(whole, flush=True)

    def run(self, item: str, rows: Callable[[], Iterable[Row]], *, needs: float = 5.0) -> None:
        """Write the rows of an item; `needs` are the seconds that must be left."""
        if self._only and not item.startswith(self._only):
            return
        if time.perf_counter() - self._began + needs > self._limit:
            return self.put(item, {"skipped": f"fewer than {needs:g} s are left"})
        try:
            for row in rows():
                self.put(item, row)
        except Exception as error:  # the next item runs
            self.put(item, {"error": repr(error)[:600], "where": traceback.format_exc()[-700:]})
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()


def timed(
    work: Callable[[], object], *, seconds: float = 1.0, warm_up: int = 3, most: int = 200
) -> dict[str, float]:
    """Milliseconds of a call by events of the device.

    Returns:
        The median, the 10th and the 90th percentile, and the calls.
    """
    for _ in range(warm_up):
        work()
    torch.cuda.synchronize()
    events, began = [], time.perf_counter()
    while len(events) < 5 or (time.perf_counter() - began < seconds and len(events) < most):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        events.append((start, end))
        if len(events) % 8 == 0:  # otherwise calls queue for much longer than `seconds`
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    ms = [start.elapsed_time(end) for start, end in events]
    return {**spread("ms", ms), "calls": len(ms)}


def spread(name: str, values: Iterable[float]) -> dict[str, float]:
    """The median, the 10th and the 90th percentile."""
    ordered = sorted(values)
    tenth = len(ordered) // 10
    return {
        name: statistics.median(ordered),
        f"{name}_p10": ordered[tenth],
        f"{name}_p90": ordered[-1 - tenth],
    }


def product(size: int, dtype: torch.dtype, *, seconds: float = 1.0) -> Row:
    """The time and TFLOP/s of a square product of random numbers."""
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    times = timed(lambda: a @ b, seconds=seconds)
    return {**times, "tflops": 2 * size**3 / times["ms"] / 1e9}


@cache
def peak_tflops() -> float:
    """TFLOP/s of large bf16 products on this GPU: known by its name, or measured."""
    name = torch.cuda.get_device_name()
    known = [peak for part, peak in PRODUCT_TFLOPS.items() if part in name]
    return known[0] if known else product(8192, torch.bfloat16)["tflops"]


@cache
def _energy_counter() -> Callable[[], float] | None:
    try:
        nvml = import_module("pynvml")  # nvidia-ml-py
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        gpu = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except nvml.NVMLError:
        return None
    return lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1000


def joules() -> float | None:
    """The energy that the GPU has used since its driver was loaded; None without nvidia-ml-py."""
    counter = _energy_counter()
    return None if counter is None else counter()
