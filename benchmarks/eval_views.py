"""Evaluation views, 5 clips x 3 crops of a video: everest against one decode for every view.

python benchmarks/eval_views.py [--rounds 7] [--folder FILES]
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

from everest.data.crops import covering_size, view_boxes
from everest.data.frames import view_windows
from everest.data.views import EvalViews
from everest.lists.sample import Sample
from everest.video.pixels import normalize
from everest.video.reader import probe

CLIPS, CROPS, STRIDE, SIZE = 5, 3, 4, 224
OURS = EvalViews(frames=16, stride=STRIDE, size=(SIZE, SIZE), clips=CLIPS, crops=CROPS, sampling="dense")
CHOSEN = ("H.264 320x240, GOP 12", "H.264 640x480, GOP 12", "MPEG-4 AVI 320x240")
GOALS = {"bytes": 12.0, "floats": 4.5}


def windows_of(path: Path) -> tuple[list[np.ndarray], list[Any]]:
    """The frames of the clips, and the boxes of the crops."""
    info = probe(path)
    size = covering_size((info.height, info.width), (SIZE, SIZE))
    return view_windows(info.frames, 16, STRIDE, CLIPS), view_boxes(size, (SIZE, SIZE), CROPS)


def equal_one_by_one(path: Path) -> bool:
    """Whether the views of each clip equal, bit for bit, the views of a decode of its own frames only."""
    nothing = np.random.default_rng(0)
    together = OURS(Sample(path=str(path)), nothing, "auto").frames
    alone = replace(OURS, clips=1)
    for number, window in enumerate(windows_of(path)[0]):
        part = Sample(path=str(path), start_frame=int(window[0]), end_frame=int(window[-1]) + 1)
        views = alone(part, nothing, "auto").frames
        if not torch.equal(views, together[number * CROPS : (number + 1) * CROPS]):
            return False
    return True


def measure(path: Path, rounds: int) -> dict[str, Any]:
    """CPU time of all views of one video."""
    sample, nothing = Sample(path=str(path)), np.random.default_rng(0)
    windows, boxes = windows_of(path)

    def plainly(number: int) -> None:
        for window in windows:
            for box in boxes:
                plain_input.test_item(path, window, box, STRIDE, SIZE)

    times = measuring.alternate(
        {
            "plain": plainly,
            "bytes": lambda number: OURS(sample, nothing, "auto"),
            "floats": lambda number: normalize(OURS(sample, nothing, "auto").frames),
        },
        rounds=rounds,
    )
    result = {name: measuring.ratio(times["plain"], times[name]) for name in GOALS}
    return {**result, "seconds": {name: round(value.median, 3) for name, value in times.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/everest-benchmarks"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    files = measuring.files(options.folder)
    rows, lines = [], []
    for kind in CHOSEN:
        result, equal = measure(files[kind], options.rounds), equal_one_by_one(files[kind])
        met = {name: result[name]["ratio"] >= goal for name, goal in GOALS.items()}
        rows.append({"kind": kind, **result, "goal": GOALS, "met": met, "equal_one_by_one": equal})
        cells = [
            f"{measuring.shown(result[name])}, goal {goal:g}: {'met' if met[name] else 'missed'}"
            for name, goal in GOALS.items()
        ]
        seconds = result["seconds"]
        spent = " / ".join(f"{seconds[name]:.2f}" for name in ("plain", "bytes", "floats"))
        lines.append([kind, *cells, spent, "yes" if equal else "no"])
        print(lines[-1], flush=True)
    head = ["video", "speedup, bytes for the device", "speedup, floats"]
    head += ["CPU seconds: plain / bytes / floats", "equality with single decodes"]
    measuring.publish("eval_views", rows, measuring.markdown(head, lines))


if __name__ == "__main__":
    main()
