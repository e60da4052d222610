"""Launches, copies and memory of one pre-training step on a device that computes nothing (tests/fake_cuda).

Prints a JSON object. The device runs without compilation: `--set train.compile=false`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
from typing import Any

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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    print(json.dumps(counted(TrainingStep(options.recipe, options.overrides), options.batch)))


if __name__ == "__main__":
    main()
