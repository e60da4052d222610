"""Recordings of mice as a lab would use them: `everest train --folds`, timelines, and a budget of time.

    python benchmarks/mouse_recordings.py VIDEOS runs/mouse

The clips of the three lists `mouse_*.csv` in VIDEOS become ten recordings with one annotation file. Blocks
of the source stay together, so none is in two recordings, but the three animals are in all of them. There is
a cut every 1.3 s. The results are in results/mouse_recordings.json.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from measuring import HERE, everest, machine
from mouse import block_of, deal, read_list

from everest.annotations.bout import Bout
from everest.annotations.formats import read_annotations, write_annotations
from everest.inference.timelines import Timelines
from everest.video.reader import probe, read_frames
from everest.video.writer import write_video

RECORDINGS, FOLDS = 10, 5
STEPS: Final = 500  # of a fold, a third of the suggested number: three to five minutes of a core
FPS: Final = 15
CRF: Final = 4  # of H.264; at 18, keyframes change more pixels than an animal does
WINDOW, DRAWN, DRAWS = "2", "30", 20  # of a budget: seconds, checked windows, seeds
KEPT: Final = (
    *("top1", "metric", "interval", "chance", "majority", "majority_class", "linear_pixels", "difference"),
    *("videos", "groups", "frame_accuracy", "majority_accuracy", "mean_class_accuracy", "f1@50", "smooth"),
)


def join(videos: Path, work: Path) -> None:
    """Write `recordings/` and `annotated.csv`, in which neighboring clips of a class are one bout."""
    names = (videos / "mouse_classes.txt").read_text().split()
    clips = {}
    for part in ("train", "val", "test"):
        clips |= read_list(videos / f"mouse_{part}.csv")
    rng, bouts = np.random.default_rng(0), []
    (work / "recordings").mkdir(parents=True, exist_ok=True)
    for number, dealt in enumerate(deal(clips, RECORDINGS)):
        blocks: dict[str, list[str]] = defaultdict(list)
        for path in sorted(dealt):
            blocks[block_of(path)].append(path)
        order = [path for at in rng.permutation(len(blocks)) for path in list(blocks.values())[at]]
        frames = {path: read_frames(videos / path, range(probe(videos / path).frames)) for path in order}
        video, at = f"mouse{number}.mp4", 0
        write_video(work / "recordings" / video, torch.cat([*frames.values()]), FPS, crf=CRF)
        for label, run in groupby(order, key=dealt.__getitem__):
            after = at + sum(len(frames[path]) for path in run)
            bouts.append(Bout(video=video, start=at / FPS, end=after / FPS, label=names[label]))
            at = after
    write_annotations(work / "annotated.csv", bouts, "csv")


def confusion(pages: list[Path]) -> dict[str, dict[str, int]]:
    """How many windows of each class were predicted as which class, in the tests of all folds."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for page in pages:
        with (page / "predictions.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                counts[row["label"]][row["predicted"]] += 1
    return {name: {other: counts[name][other] for other in sorted(counts)} for name in sorted(counts)}


def budgets(timeline: Path, smooth: float, work: Path) -> dict[str, Any]:
    """The budget of several draws, whose windows are filled from the ground truth.

    Returns:
        The number of `windows`, and for each class the true and the model's seconds and bouts, and of each
        draw the estimate with the ends of its interval.
    """
    truth, drawn = read_annotations(work / "annotated.csv"), work / "checked.csv"
    options = ("--timeline", timeline, "--smooth", smooth)
    found: dict[str, Any] = {}
    for seed in range(DRAWS):
        draw = ("--draw", DRAWN, "--window", WINDOW, "--seed", seed)
        everest("budget", *options, *draw, "--output", drawn, "--overwrite")
        rows = [f"{bout.video},{bout.start!r},{bout.end!r},{bout.label}" for bout in truth]
        drawn.write_text("\n".join([drawn.read_text().replace("to check", "checked").strip(), *rows, ""]))
        document = json.loads(everest("budget", *options, "--checked", drawn, "--json"))
        for entry in document["classes"]:
            bouts = [bout.seconds for bout in truth if bout.label == entry["name"]]
            for what, total in (("seconds", round(sum(bouts), 1)), ("bouts", len(bouts))):
                row, of_class = entry[what], found.setdefault(entry["name"], {})
                first = {"true": total, "model": round(row["naive"], 1), "draws": [], "contain the true": 0}
                kept, (low, high) = of_class.setdefault(what, first), row["interval"]
                kept["draws"].append([round(value, 1) for value in (row["estimate"], low, high)])
                kept["contain the true"] += low <= total <= high
    return {
        "seconds of a window": float(WINDOW),
        "checked": int(DRAWN),
        "windows": document["windows"],
        **found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("work", type=Path)
    given = parser.parse_args()
    work, run = given.work.absolute(), given.work.absolute() / "behavior"
    join(given.videos, work)
    options = ("--annotations", work / "annotated.csv", "--folds", FOLDS, "--set", f"finetune.steps={STEPS}")
    everest("train", work / "recordings", *options, "--output", run, show=True)
    result = json.loads((run / "result.json").read_text())
    pages = [run / "folds" / str(number) / "report" for number in range(1, FOLDS + 1)]
    parts = [Timelines.load(page / "timeline.safetensors") for page in pages]
    timeline = work / "timeline.safetensors"
    replace(parts[0], videos=[video for part in parts for video in part.videos]).save(timeline)
    results = {
        "about": __doc__.split("\n\n")[2].replace("\n", " ").strip(),
        "machine": machine(),
        "minutes": result["minutes"],
        "train": {key: result[key] for key in KEPT} | {"judgment": result["judgment"]},
        "folds": [{key: fold[key] for key in KEPT} for fold in result["folds"]],
        "confusion of windows": confusion(pages),
        "budget": budgets(timeline, result["smooth"], work),
    }
    (HERE / "results" / "mouse_recordings.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
