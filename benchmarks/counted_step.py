"""One pre-training step on a device that computes nothing: run by gpu_counted.py.

Prints a JSON object: launches, copies, memory per clip, and the sums of each phase.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
from dataclasses import asdict
from typing import Any

from fused_kernels import meter_fused_kernels
from roofline import Meter
from torch._functorch import config as functorch_config
from training_step import TrainingStep, peak_bytes

WARM_UP = 2  # steps: the first allocates the optimizer's moments


def device_counts() -> dict[str, int]:
    counts = ctypes.CDLL(os.environ["LD_PRELOAD"]).fake_cuda_counts
    counts.restype = ctypes.c_char_p
    return json.loads(counts())


def counted(step: TrainingStep, batch: int) -> dict[str, Any]:
    """The counts of a step after the first ones."""
    clips = step.clips(batch)
    for _ in range(WARM_UP):
        step.run(clips)
    before = device_counts()
    step.run(clips)
    after = device_counts()
    del clips
    peaks = {}
    for size in (batch // 2, batch):  # the second step is measured: a first one may compile
        clips = step.clips(size)
        step.run(clips)
        peaks[size] = peak_bytes(step, clips)
        del clips
    (_, half), (peak, whole) = peaks.values()
    return {
        "counts": {name: after[name] - before[name] for name in after},
        "peak_bytes": peak,
        "bytes_per_clip": (whole - half) / (batch - batch // 2),
    }


def phases(step: TrainingStep, batch: int, meter: Meter) -> dict[str, dict[str, float]]:
    """Traffic and time by phase."""
    clips = step.clips(batch)

    def enters(phase: str) -> None:
        meter.phase = phase

    with meter:
        step.run(clips, enters=enters)
    meter.add_adamw(step.model)
    return {name: asdict(phase) for name, phase in meter.phases.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--budget", type=float)
    parser.add_argument("--no-phases", action="store_true")
    options = parser.parse_args()
    meter = Meter()
    if not options.no_phases:
        meter_fused_kernels(meter)
    step = TrainingStep(options.recipe, options.overrides)
    if options.budget is not None:
        functorch_config.activation_memory_budget = options.budget
    if "train.compile=true" not in options.overrides:  # a hook would divide the graph of the whole model
        meter.follow(step.model)
    found = counted(step, options.batch)
    if not options.no_phases:
        found["phases"] = phases(step, options.batch, meter)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
