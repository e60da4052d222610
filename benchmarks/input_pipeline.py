"""A training item, everest against the plain pipeline: open, decode, crop, resize; 1 and 4 views per decode.

python benchmarks/input_pipeline.py [--rounds 20] [--folder FILES]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import plain_input
import torch

from everest.data.frames import pretrain_window
from everest.data.views import PretrainViews
from everest.lists.sample import Sample
from everest.system.compute import READER_KEEPS, keep_freed_memory
from everest.video import file

T, STRIDE, SIZE = 16, 4, 224
GOALS = {"H.264 320x240, GOP 12": (3.0, 9.0)}
GOAL_ELSEWHERE = (2.2, 6.0)  # one view, four views a decode
OURS = PretrainViews(
    frames=T, stride=STRIDE, size=(SIZE, SIZE), flip=True, sampling="dense", views_per_decode=1
)


def measure(path: Path, rounds: int) -> dict[str, Any]:
    """Both pipelines on the same windows of one file."""
    sample = Sample(path=str(path))

    def rng(number: int) -> np.random.Generator:
        return np.random.default_rng(number)

    def plainly(number: int) -> None:
        draws = rng(number)
        ids = pretrain_window(measuring.FRAMES, T, STRIDE, draws)
        plain_input.training_item(path, ids.tolist(), SIZE, draws)

    def first_time(number: int) -> None:
        file._cached_look.cache_clear()
        OURS(sample, rng(number), "auto")

    four = replace(OURS, views_per_decode=4)
    times = measuring.alternate(
        {
            "plain": plainly,
            "ours": lambda number: OURS(sample, rng(number), "auto"),
            "four": lambda number: four(sample, rng(number), "auto"),
            "first": first_time,
        },
        rounds=rounds,
    )
    result = {name: measuring.ratio(times["plain"], times[name]) for name in ("ours", "four", "first")}
    result["four"] = {name: round(4 * value, 2) for name, value in result["four"].items()}  # a view
    return {
        **result,
        "clips_per_second": {
            "plain": round(1 / times["plain"].median, 1),
            "ours": round(1 / times["ours"].median, 1),
            "four": round(4 / times["four"].median, 1),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/everest-benchmarks"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory(READER_KEEPS)  # as in a worker; the plain pipeline benefits as well
    rows, lines = [], []
    for kind, path in measuring.files(options.folder).items():
        result = measure(path, options.rounds)
        one, four = GOALS.get(kind, GOAL_ELSEWHERE)
        met = result["ours"]["ratio"] >= one, result["four"]["ratio"] >= four
        rows.append({"kind": kind, **result, "goal": {"ours": one, "four": four}, "met": met})
        speed = result["clips_per_second"]
        lines.append(
            [
                kind,
                f"{measuring.shown(result['ours'])}, goal {one:g}: {'met' if met[0] else 'missed'}",
                f"{measuring.shown(result['four'])}, goal {four:g}: {'met' if met[1] else 'missed'}",
                f"{result['first']['ratio']:.1f}x",
                f"{speed['plain']:.0f} / {speed['ours']:.0f} / {speed['four']:.0f}",
            ]
        )
        print(lines[-1], flush=True)
    values = 3 * T * SIZE * SIZE
    views = ["one view per decode", "speedup per view, four views per decode", "speedup, first read"]
    head = ["file", f"speedup, {views[0]}", *views[1:], "clips/s per core: plain / one view / four views"]
    note = (
        f"Bytes copied per clip: {4 * values / 1e6:.2f} MB of floats in the plain pipeline, "
        f"{values / 1e6:.2f} MB in everest."
    )
    measuring.publish("input_pipeline", rows, f"{measuring.markdown(head, lines)}\n\n{note}")


if __name__ == "__main__":
    main()
