"""Rare classes, several labels and numbers: what class weights, samplers and tasks bring on small sets.

    python benchmarks/labels.py rare FOLDER --videos /data/videos --sets interaction6 --seeds 0,1,2,3,4
    python benchmarks/labels.py several FOLDER --videos /data/videos --seeds 0,1,2
    python benchmarks/labels.py speed FOLDER --seeds 0,1,2

`--videos` has the lists `NAME_train.csv`, `NAME_val.csv`, `NAME_test.csv` of `path label` and `clips.csv`
with the columns path, class and split. Every row is printed when it is there; rows that FOLDER has already
are not computed again. Intervals are of Student's t over the seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from measuring import everest
from torchvision.transforms.v2.functional import resize

from everest.sweep.statistics import spread
from everest.video.reader import probe, read_frames
from everest.video.writer import write_video
from everest_demo.rendering import RADIUS, SIZE, Paths, render

RATIO = 20  # videos of a frequent class for one of a rare class; at least one video stays
RARE_SETS = {"surveillance2": 1, "interaction6": 3}  # and the number of rare classes
SIDE = 64  # pixels; also of each of two clips side by side
DIFFERENCES = ("data.frames=16", "model.input=differences", "finetune.stride=4", "finetune.steps=600")
CLIPS = {  # interactions are learned from scratch only from the changes between frames
    "surveillance2": ("data.frames=8", f"data.size={SIDE}", "finetune.steps=200"),
    "interaction6": (*DIFFERENCES, f"data.size={SIDE}"),
}
RARE_ARMS = {
    "none": (),
    "class_weights": ("finetune.class_weights=balanced",),
    "sampler": ("finetune.sampler=balanced",),
    "sqrt": ("finetune.sampler=sqrt",),
}
SEVERAL = tuple(f"interaction_{name}" for name in ("handshake", "hug", "kick", "point", "punch", "push"))
PAIRS = {"train": 160, "val": 40, "test": 80}
SPEEDS = {"train": 300, "val": 60, "test": 120}
FASTEST = 4.0  # pixels a frame
CLIP = 12  # frames of a rendered clip


def run(folder: Path, root: Path, lists: dict[str, Path], overrides: Sequence[str], seed: int) -> dict:
    """Fine-tune from scratch and evaluate; returns the document of `everest eval --json`."""
    saved = folder / "eval.json"
    if not saved.is_file():
        given = [f"data.{name}={path}" for name, path in lists.items()]
        always = ("train.workers=0", "data.cache=disk", f"data.root={root}", f"train.seed={seed}")
        settings = [*always, *given, *overrides]
        options = [option for setting in settings for option in ("--set", setting)]
        command = ("finetune", "--recipe", "small", "--init", "none", "-o", folder, "--overwrite", "-q")
        everest(*command, *options)
        saved.write_text(everest("eval", "-c", folder, "--json", "-q"))
    return json.loads(saved.read_text())


def write_rows(path: Path, rows: Iterable[Sequence[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return path


def summary(name: str, values: Sequence[float]) -> None:
    found = spread(values)
    low, high = found.interval or (found.mean, found.mean)
    print(f"{name}: {found.mean:.2f} +- {(high - low) / 2:.2f} of {len(values)} seeds", flush=True)


def rare(folder: Path, videos: Path, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Macro F1 on a balanced test list after training on a list with rare classes."""
    for name in names:
        lines = (videos / f"{name}_train.csv").read_text().splitlines()
        by_class: dict[str, list[str]] = defaultdict(list)
        for path, label in (line.rsplit(" ", 1) for line in lines):
            by_class[label].append(path)
        found: dict[str, list[float]] = defaultdict(list)
        for seed in seeds:
            rng = np.random.default_rng(seed)
            chosen = rng.permutation(sorted(by_class))[: RARE_SETS[name]]  # others are rare with another seed
            rows = [
                (path, label)
                for label, paths in sorted(by_class.items())
                for path in rng.permutation(paths)[: max(1, len(paths) // RATIO) if label in chosen else None]
            ]
            lists = {part: videos / f"{name}_{part}.csv" for part in ("val", "test")}
            lists["train"] = write_rows(folder / name / f"train-{seed}.csv", rows)
            for arm, overrides in RARE_ARMS.items():
                settings = (*CLIPS[name], "finetune.best=macro_f1", *overrides)
                result = run(folder / name / f"{arm}-{seed}", videos, lists, settings, seed)
                found[arm].append(result["macro_f1"])
                print(name, arm, seed, result["macro_f1"], result["top1"], flush=True)
        for arm, values in found.items():
            summary(f"{name}, {arm}, macro F1", values)
            if arm != "none":
                less = [one - other for one, other in zip(values, found["none"], strict=True)]
                summary(f"{name}, {arm} - none", less)


def several(folder: Path, videos: Path, seeds: Sequence[int]) -> None:
    """Two clips side by side: a multi-label classifier against one classifier for each class."""
    root = folder / "pairs"
    with (videos / "clips.csv").open() as file:
        clips = [row for row in csv.DictReader(file) if row["class"] in SEVERAL]
    lists, labels = {}, {}
    for part, count in PAIRS.items():
        of_part = [row for row in clips if row["split"] == part]
        rng = np.random.default_rng(len(part))
        labels[part] = []
        for number in range(count):
            pair = [of_part[i] for i in rng.choice(len(of_part), 2, replace=False)]
            name = f"{part}{number}.mp4"
            if not (root / name).is_file():
                join(root / name, [videos / row["path"] for row in pair])
            labels[part].append((name, sorted({row["class"] for row in pair})))
        lists[part] = write_rows(root / f"{part}.csv", ((name, "|".join(of)) for name, of in labels[part]))
    whole = "finetune.crop_area=[1.0, 1.0]"  # a crop may lose one of the two clips
    settings = (*DIFFERENCES, f"data.size=[{SIDE}, {2 * SIDE}]", whole)
    found: dict[str, list[float]] = defaultdict(list)
    for seed in seeds:
        out = folder / f"multi-label-{seed}"
        result = run(out, root, lists, (*settings, "data.task=multi-label"), seed)
        found["multi-label"].append(result["map"])
        precisions = []
        for name in SEVERAL:
            binary = {
                part: write_rows(root / f"{name}-{part}.csv", ((path, int(name in of)) for path, of in rows))
                for part, rows in labels.items()
            }
            one = run(folder / f"{name}-{seed}", root, binary, settings, seed)
            precisions.append(next(row["ap"] for row in one["per_class"] if row["name"] == "1"))
        found["one classifier for each class"].append(statistics.mean(precisions))
        print(seed, {arm: values[-1] for arm, values in found.items()}, result["chance_map"], flush=True)
    for arm, values in found.items():
        summary(f"{arm}, mAP", values)


def join(path: Path, clips: Sequence[Path]) -> None:
    """Write two clips side by side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    length = min(probe(clip).frames for clip in clips)
    sides = [resize(read_frames(clip, np.arange(length)).movedim(-1, 1), [SIDE, SIDE]) for clip in clips]
    frames = torch.cat(sides, dim=-1).movedim(1, -1)  # (F, H, 2 W, 3)
    write_video(path, frames, 25)


def speed(folder: Path, seeds: Sequence[int]) -> None:
    """The speed of a rendered shape, in pixels a frame."""
    root, lists = folder / "shapes", {}
    for part, count in SPEEDS.items():
        rng, rows = np.random.default_rng(len(part)), []
        for number in range(count):
            value, angle = rng.uniform(0, FASTEST), rng.uniform(0, 2 * np.pi)
            step = value * np.array([np.cos(angle), np.sin(angle)]) * np.arange(CLIP)[:, None]  # (F, 2)
            radius = np.exp(rng.uniform(*np.log(RADIUS)))
            paths = Paths(
                centre=(rng.uniform(0, SIZE, 2) + step)[None],
                turn=np.zeros((1, CLIP)),
                radius=np.full((1, CLIP), radius),
            )
            name = f"{part}{number}.mp4"
            if not (root / name).is_file():
                root.mkdir(parents=True, exist_ok=True)
                write_video(root / name, torch.from_numpy(render(paths, rng)[0]), 12)
            rows.append((name, f"{value:.4f}"))
        lists[part] = write_rows(root / f"{part}.csv", rows)
    overrides = ("data.frames=8", f"data.size={SIZE}", "data.task=regression")
    found: dict[str, list[float]] = defaultdict(list)
    for seed in seeds:
        steps = ("finetune.steps=400", "finetune.stride=1", "finetune.crop_area=[1.0, 1.0]")
        result = run(folder / f"speed-{seed}", root, lists, (*overrides, *steps), seed)
        for name in ("r2", "mae", "spearman", "chance_mae"):
            found[name].append(result[name])
        print(seed, {name: values[-1] for name, values in found.items()}, flush=True)
    for name, values in found.items():
        summary(name, values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["rare", "several", "speed"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--videos", type=Path)
    parser.add_argument("--sets", default=",".join(RARE_SETS))
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    folder, seeds = arguments.folder.absolute(), [int(seed) for seed in arguments.seeds.split(",")]
    if arguments.what == "speed":
        speed(folder, seeds)
    elif arguments.what == "rare":
        rare(folder, arguments.videos.absolute(), arguments.sets.split(","), seeds)
    else:
        several(folder, arguments.videos.absolute(), seeds)


if __name__ == "__main__":
    main()
