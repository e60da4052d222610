"""Mice in a large cage: recordings as a lab would use them.

    python benchmarks/mouse.py VIDEOS runs/mouse

VIDEOS has the lists `mouse_train.csv`, `mouse_val.csv` and `mouse_test.csv` of clips of 1.3 s. Blocks of the
source stay together, but the same three animals are in all of them, so all results are about new moments, not
about new animals.

The clips of all lists become ten recordings, with a cut every 1.3 s, and one annotation file. `everest train
--folds --init` (weights of ViT-Ti) tests each recording once. `everest budget` estimates the seconds of each
class from windows that are filled from the ground truth. The results are in results/mouse_recordings.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from measuring import HERE, everest, machine, write_results
from timelines import PARTS, score

from everest.video.reader import read_frames, video_info
from everest.video.writer import write_video
from everest_workflows.annotations.bout import Bout
from everest_workflows.annotations.formats import read_annotations, write_annotations
from everest_workflows.recordings.timelines import Timelines

RECORDINGS, RECORDING_FOLDS = 10, 5
INIT: Final = "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k"
FPS: Final = 15
CRF: Final = 4  # of H.264; at 18, a keyframe changes more pixels than the animal
WINDOW, TO_CHECK, DRAWS = 2, 30, 20  # seconds of a window, windows to check for a budget, seeds
KEPT: Final = (
    *("value", "metric", "interval", "chance", "majority", "majority_class", "linear_pixels", "difference"),
    *("candidates", "behaviors", "chosen", "reason", "videos", "groups", "smooth"),
    *("frame_accuracy", "frame_interval", "majority_accuracy", "mean_class_accuracy", "f1@50"),
)
Clips = dict[str, int]  # the class of each path


def read_list(file: Path) -> Clips:
    rows = (line.rsplit(" ", 1) for line in file.read_text().splitlines())
    return {path: int(label) for path, label in rows}


def block_of(path: str) -> str:
    return re.findall(r"_(g\d+)_c", path)[0]


def deal(clips: Clips, number: int) -> list[Clips]:
    """Parts with whole blocks, and about as many clips of each class."""
    folds: list[Clips] = [{} for _ in range(number)]
    blocks: dict[tuple[int, str], list[str]] = defaultdict(list)
    for path, label in clips.items():
        blocks[label, block_of(path)].append(path)
    names, rng = sorted(blocks), np.random.default_rng(0)
    for at in rng.permutation(len(names)):
        label = names[at][0]
        smallest = min(folds, key=lambda fold: Counter(fold.values())[label])
        smallest |= dict.fromkeys(blocks[names[at]], label)
    return folds


def join(videos: Path, folder: Path) -> dict[str, float]:
    """Write `recordings/` and `annotated.csv`; returns the median change of a pixel, in gray levels."""
    names, clips, bouts = (videos / "mouse_classes.txt").read_text().split(), {}, []
    for part in PARTS:
        clips |= read_list(videos / f"mouse_{part}.csv")
    rng, changes, cuts = np.random.default_rng(0), np.empty(0), []
    (folder / "recordings").mkdir(parents=True, exist_ok=True)
    for number, dealt in enumerate(deal(clips, RECORDINGS)):
        blocks = [list(block) for _, block in groupby(sorted(dealt), key=block_of)]
        order = [path for at in rng.permutation(len(blocks)) for path in blocks[at]]
        frames = {
            path: read_frames(videos / path, range(video_info(videos / path).num_frames)) for path in order
        }
        video, at = f"mouse{number}.mp4", 0
        joined = torch.cat([*frames.values()])
        cuts += [len(changes) + sum(map(len, [*frames.values()][:end])) - 1 for end in range(1, len(order))]
        changes = np.append(changes, joined.float().diff(dim=0).abs().mean(dim=(1, 2, 3)))
        write_video(folder / "recordings" / video, joined, FPS, crf=CRF)
        for label, neighbors in groupby(order, key=dealt.__getitem__):
            after = at + sum(len(frames[path]) for path in neighbors)
            bouts.append(Bout(video=video, start=at / FPS, end=after / FPS, label=names[label]))
            at = after
    write_annotations(folder / "annotated.csv", bouts, "csv")
    found = {"at a cut": changes[cuts], "within a clip": np.delete(changes, cuts)}
    return {where: round(float(np.median(values)), 2) for where, values in found.items()}


def budgets(timeline: Path, smooth: float, truth: Path) -> dict[str, Any]:
    """The budgets of several draws, whose windows are filled from the ground truth.

    Returns:
        For each class the true and the model's seconds, the estimate of each draw with the ends of its 95 %
        interval, and how many of these contain the true seconds.
    """
    bouts, checked, found = read_annotations(truth), timeline.with_name("checked.csv"), {}
    rows = [f"{bout.video},{bout.start!r},{bout.end!r},{bout.label}\n" for bout in bouts]
    options = ("budget", "--timeline", timeline, "--smooth", smooth)
    for seed in range(DRAWS):
        draw = ("--draw", TO_CHECK, "--window", WINDOW, "--seed", seed)
        everest(*options, *draw, "--output", checked, "--overwrite")
        checked.write_text(checked.read_text().replace("to check", "checked") + "".join(rows))
        document = json.loads(everest(*options, "--checked", checked, "--json"))
        for row in document["rows"]:
            true = sum(bout.seconds for bout in bouts if bout.label == row["class"])
            known = {"true": round(true, 1), "model": round(row["model"], 1), "contain": 0, "draws": []}
            numbers = found.setdefault(row["class"], known)
            numbers["contain"] += row["interval"][0] <= true <= row["interval"][1]
            numbers["draws"].append([round(end, 1) for end in (row["seconds"], *row["interval"])])
    return {"window": WINDOW, "checked": TO_CHECK, "windows": document["windows"], "classes": found}


def kept(test: dict[str, Any]) -> dict[str, Any]:
    """The values of a test and of its timelines that are kept, side by side."""
    values = test | test["timelines"]
    return {key: values[key] for key in KEPT}


def record(videos: Path, folder: Path, init: str) -> dict[str, Any]:
    """Join, train by folds unless that is done, and add up the tests of all recordings."""
    changed, counts = join(videos, folder), Counter()
    annotated, trained = folder / "annotated.csv", folder / "behavior"
    options = ("--folds", RECORDING_FOLDS, "--init", init, "--output", trained)
    everest("train", folder / "recordings", "--annotations", annotated, *options, show=True)
    result = json.loads((trained / "result.json").read_text())
    pages = [trained / "folds" / str(1 + number) / "report" for number in range(RECORDING_FOLDS)]
    parts = [Timelines.load(page / "timeline.safetensors") for page in pages]
    timeline, scores = folder / "timeline.safetensors", {}
    replace(parts[0], videos=[video for part in parts for video in part.videos]).save(timeline)
    for smooth in (0, WINDOW):
        scores[f"smooth {smooth}"] = score(timeline, "--smooth", smooth, "--truth", annotated)
    for page in pages:
        with (page / "predictions.csv").open(newline="") as file:
            counts.update((row["label"], row["predicted"]) for row in csv.DictReader(file))
    names = sorted({name for pair in counts for name in pair})
    recordings = [Path(path).name for path in result["timelines"]["recordings"]]
    return {
        "machine": machine(),
        "minutes": result["minutes"],
        "gray levels of change": changed,
        "train": kept(result) | {"judgment": result["judgment"], "recordings": recordings},
        "folds": list(map(kept, result["folds"])),
        "scores": scores,
        "confusion": {name: {other: counts[name, other] for other in names} for name in names},
        "budget": budgets(timeline, result["timelines"]["smooth"], annotated),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--init", default=INIT, help="weights [%(default)s]")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = record(given.videos.absolute(), given.folder.absolute(), given.init)
    write_results(HERE / "results" / "mouse_recordings.json", results)


if __name__ == "__main__":
    main()
