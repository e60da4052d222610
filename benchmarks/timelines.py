"""Timelines of recordings that a model has not seen, made by the commands of the tutorial alone.

    python benchmarks/timelines.py WORK

The clips of each group (a person, a sequence) become one recording, with still parts in between. `prepare
windows` labels their windows, `recipes suggest` chooses all settings, `finetune` trains, and `timeline`
scores the recordings of the test groups. One core; the results are in results/timelines.json.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from measuring import HERE, SHARED, everest, write_results
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop, resize

from everest.video.reader import read_frames, video_info
from everest.video.writer import write_video

SIZE: Final = (96, 128)  # pixels, height and width
STILL: Final = (1.0, 3.0)  # seconds of a still part, in which nothing happens
LONGEST: Final = 250  # frames of a clip
WINDOW, STEP = 1.0, 0.5  # seconds, of the tutorial
PARTS: Final = ("train", "val", "test")
SCORES: Final = (
    *("frame_accuracy", "majority_accuracy", "mean_class_accuracy", "edit"),
    *("f1@10", "f1@25", "f1@50", "map@0.5"),
)
RULES: Final = {"default": [], "step 0.25, smooth 1": ["--step", "0.25", "--smooth", "1"]}
SETS: Final = ("surveillance2", "interaction6", "weizmann10")
FPS: Final = 25


def join(name: str, part: str, folder: Path, rng: np.random.Generator) -> list[str]:
    """Join the clips of each group of a list into a recording; returns the rows of an annotation file."""
    root = SHARED / "videos" / "actions"
    names = (root / f"{name}_classes.txt").read_text().split()
    lines = (root / "clips.csv").read_text().splitlines()
    known = {row[0]: row[3] for row in (line.split(",") for line in lines)}
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for line in (root / f"{name}_{part}.csv").read_text().splitlines():
        path, label = line.rsplit(" ", 1)
        groups[known[path]].append((path, names[int(label)]))
    (folder / part).mkdir(parents=True, exist_ok=True)
    rows = ["video,start,end,label"]
    for number, group in enumerate(sorted(groups)):
        clips, frames, at = groups[group], [], 0
        video = folder / part / f"{part}{number:02}.mp4"
        for index in rng.permutation(len(clips)):
            path, label = clips[index]
            clip = read_clip(root / path)
            still = clip[-1:].expand(round(rng.uniform(*STILL) * FPS), -1, -1, -1)
            rows.append(f"{video},{at / FPS},{(at + len(clip)) / FPS},{label}")
            frames += [clip, still]
            at += len(clip) + len(still)
        write_video(video, torch.cat(frames), FPS)
    return rows


def read_clip(path: Path) -> Tensor:
    """The frames of a clip, (F, H, W, 3) uint8."""
    frames = read_frames(path, range(min(video_info(path).num_frames, LONGEST))).movedim(-1, 1)
    height, width = frames.shape[2:]
    scale = max(SIZE[0] / height, SIZE[1] / width)
    resized = resize(frames, [round(height * scale), round(width * scale)], antialias=True)
    return center_crop(resized, list(SIZE)).movedim(1, -1).contiguous()


def score(*words: object) -> dict[str, float]:
    """The scores of `everest timeline`, in percent."""
    document = json.loads(everest("timeline", *words, "--json", "-q"))
    return {key: document[key] for key in SCORES}


def prepare(name: str, folder: Path) -> Path:
    """Write the recordings, their truth and their windows; returns the folder of the windows."""
    rng, lists = np.random.default_rng(0), folder / "windows"
    lists.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        truth = folder / f"{part}.csv"
        truth.write_text("\n".join([*join(name, part, folder, rng), ""]))
        windows = ("--seconds", WINDOW, "--step", STEP, "--labels", truth)
        everest("prepare", "windows", folder / part, *windows, "-o", lists / truth.name, "--overwrite", "-q")
    return lists


def run_set(name: str, folder: Path) -> dict[str, Any]:
    """Join, train, predict and score one set; a run that is there is not repeated."""
    lists, recipe, run = prepare(name, folder), folder / "suggested.yaml", folder / "suggested"
    if not (run / "model.safetensors").exists():
        everest("recipes", "suggest", lists, "--device", "cpu", "-o", recipe, "--overwrite", "-q")
        everest("finetune", "-r", recipe, "--init", "none", "--gpus", "cpu", "-o", run, "-q")
    words = (folder / "test", "-c", run, "--truth", folder / "test.csv", "--gpus", "cpu")
    return {
        "recordings": {part: len([*(folder / part).glob("*.mp4")]) for part in PARTS},
        "windows": len((lists / "train.csv").read_text().splitlines()) - 1,
        "scores": {rule: score(*words, *to) for rule, to in RULES.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, help="of these only")
    given = parser.parse_args()
    torch.set_num_threads(1)
    file = HERE / "results" / "timelines.json"
    results = json.loads(file.read_text())
    for name in given.sets:
        results[name] = run_set(name, given.work.absolute() / name)
        write_results(file, results)


if __name__ == "__main__":
    main()
