"""Timelines with each frame encoded once, against window by window, in turns on the same recordings.

    python benchmarks/timeline_speed.py MODEL RECORDINGS

MODEL is a folder of `everest train`. One thread; CPU seconds, with decoding. A recording is read whole, at
the window and the step of `everest timeline`. The results are in results/timeline_speed.json, and the table
is in timelines.md.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measuring import HERE, alternate, markdown, publish, ratio, shown

import everest
from everest.inference.opened_model import OpenedModel
from everest.inference.pieces import PieceModel
from everest.inference.videos import Batching, compute_over_windows
from everest.inference.windows import Unreadable
from everest.lists.inputs import find_samples
from everest.lists.sample import Sample
from everest.video.frame_borders import VideoTimes
from everest_workflows.recordings.timelines import timeline_job

ROUNDS = 2  # and one to warm up
HOURS = 200  # of video, for the page
CORES = 2


def run(
    model: OpenedModel, samples: list[Sample], batching: Batching, compute: PieceModel, number: int = 0
) -> np.ndarray:
    """The outputs of all windows (W, O)."""
    rows = [
        item[1]["outputs"].mean(dim=0)
        for sample in samples
        for items in compute_over_windows(model, sample, compute, batching)
        for item in items
        if not isinstance(item, Unreadable)
    ]
    return torch.stack(rows).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("recordings", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = OpenedModel.of(everest.load_model(given.model), clips=1, crops=1)
    samples = find_samples([given.recordings], root=None)
    batching = timeline_job(model, samples, Batching()).batching
    computes = {
        "window by window": PieceModel.of_clips(model.outputs, model.module.spec.frames),
        "each frame once": PieceModel.of_outputs(model),
    }
    works = {name: partial(run, model, samples, batching, compute) for name, compute in computes.items()}
    slow, fast = (work() for work in works.values())
    times = alternate(works, rounds=ROUNDS)
    seconds = sum(VideoTimes.of(sample.video).seconds for sample in samples)
    rows, table = [], []
    for name, measured in times.items():
        per_hour = seconds / measured.median
        hours = HOURS / per_hour / CORES
        row = {"path": name, "cpu_seconds": measured.seconds, "hours_per_hour": round(per_hour, 1)}
        rows.append({**row, "hours_of_200_on_two_cores": round(hours, 2)})
        table.append([name, f"{per_hour:.0f}", f"{hours:.1f} h"])
    speedup = ratio(*times.values())
    difference = float(np.abs(slow - fast).max())
    rows.append({"windows": len(fast), "seconds": round(seconds, 1), **speedup, "difference": difference})
    head = ["", "hours of video in an hour, one core", f"{HOURS} hours of video on {CORES} cores"]
    text = f"Speedup {shown(speedup)}; largest difference of an output {difference:.1g}."
    publish("timeline_speed", rows, f"{markdown(head, table)}\n\n{text}", page=HERE / "timelines.md")


if __name__ == "__main__":
    main()
