"""Timelines of recordings that a model has not seen, made by the commands of the tutorial alone.

    python benchmarks/timelines.py WORK

The clips of each group (a person, a sequence) become one recording, with still parts in between. `prepare
windows` labels their windows, `recipes suggest` chooses all settings, `finetune` trains, and `timeline`
scores the recordings of the test groups. One core; the results are in results/timelines.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from measuring import HERE, SHARED, everest
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop, resize

from everest.video.reader import probe, read_frames
from everest.video.writer import write_video

SIZE: Final = (96, 128)  # pixels, height and width
STILL: Final = (1.0, 3.0)  # seconds of a still part, in which nothing happens
LONGEST: Final = 250  # frames of a clip
WINDOW, STEP = 1.0, 0.5  # seconds, of the tutorial
PARTS: Final = ("train", "val", "test")
RULES: Final = {
    "default": [],
    "step 0.25, smooth 1": ["--step", "0.25", "--smooth", "1"],
}
Segments = list[tuple[float, float, str]]  # seconds, class


@dataclass(frozen=True)
class Source:
    """Clips of one data set, and the group in their names."""

    folder: str
    fps: int
    group: str  # separates the group from the rest of a file name, or "": clips.csv names the groups
    recordings: int = 1000  # of a list, at most: groups are dealt to them in turns
    stills: bool = True


SETS: Final = {
    "surveillance2": Source("actions", 25, ""),
    "interaction6": Source("actions", 25, ""),
    "weizmann10": Source("actions", 25, ""),
    # Three animals in all lists; "still" is one of the classes.
    "mouse": Source("more", 15, "_c", recordings=6, stills=False),
}


def join(name: str, part: str, folder: Path, rng: np.random.Generator) -> dict[Path, Segments]:
    """Join the clips of each group of a list into a recording; returns the bouts of each."""
    source, root = SETS[name], SHARED / "videos" / SETS[name].folder
    names = (root / f"{name}_classes.txt").read_text().split()
    known = {}
    if not source.group:
        lines = (root / "clips.csv").read_text().splitlines()
        known = {row[0]: row[3] for row in (line.split(",") for line in lines)}
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for line in (root / f"{name}_{part}.csv").read_text().splitlines():
        path, label = line.rsplit(" ", 1)
        group = known[path] if known else Path(path).name.split(source.group)[0].rpartition("_")[2]
        groups[group].append((path, names[int(label)]))
    dealt: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for number, group in enumerate(sorted(groups)):
        dealt[number % source.recordings] += groups[group]
    recordings = {}
    for number, clips in dealt.items():
        frames, bouts, at = [], [], 0
        for index in rng.permutation(len(clips)):
            path, label = clips[index]
            clip = read_clip(root / path)
            bouts.append((at / source.fps, (at + len(clip)) / source.fps, label))
            frames.append(clip)
            if source.stills:
                frames.append(clip[-1:].expand(round(rng.uniform(*STILL) * source.fps), -1, -1, -1))
            at += len(clip) + (len(frames[-1]) if source.stills else 0)
        video = folder / part / f"{part}{number:02}.mp4"
        video.parent.mkdir(parents=True, exist_ok=True)
        write_video(video, torch.cat(frames), source.fps)
        recordings[video] = bouts
    return recordings


def read_clip(path: Path) -> Tensor:
    """The frames of a clip, (F, H, W, 3) uint8."""
    frames = read_frames(path, range(min(probe(path).frames, LONGEST))).movedim(-1, 1)
    height, width = frames.shape[2:]
    scale = max(SIZE[0] / height, SIZE[1] / width)
    resized = resize(frames, [round(height * scale), round(width * scale)], antialias=True)
    return center_crop(resized, list(SIZE)).movedim(1, -1).contiguous()


def line_of(bouts: Segments, frames: int, fps: int) -> list[str]:
    """The class of each frame."""
    line = ["-"] * frames
    for start, end, name in bouts:
        if name != "background":
            first, after = round(start * fps), min(round(end * fps), frames)
            line[first:after] = [name] * (after - first)
    return line


def score(run: Path, part: Path, recordings: dict[Path, Segments], fps: int, *options: str) -> dict[str, Any]:
    """Predict and score the recordings of one list."""
    command = ("timeline", part, "-c", run, "--truth", part.with_suffix(".csv"), *options)
    document = json.loads(everest(*command, "--json", "-q", "--gpus", "cpu"))
    truth: list[str] = []
    predicted: list[str] = []
    for row in document["timelines"]:
        video = Path(row["video"])
        found = [(one["start"], one["end"], one["label"] or "background") for one in row["bouts"]]
        frames = probe(video).frames
        truth += line_of(recordings[video], frames, fps)
        predicted += line_of(found, frames, fps)
    counts = Counter(truth)
    hits = Counter(a for a, b in zip(truth, predicted, strict=True) if a == b)
    keys = ("frame_accuracy", "edit", "f1@10", "f1@25", "f1@50", "map@0.5")
    return {key: document[key] for key in keys} | {
        "mean_class_accuracy": round(100 * float(np.mean([hits[name] / counts[name] for name in counts])), 2),
        "always_the_most_frequent": round(100 * max(counts.values()) / len(truth), 2),
    }


def prepare(name: str, folder: Path) -> dict[str, dict[Path, Segments]]:
    """Write the recordings, their truth and their windows."""
    rng, parts = np.random.default_rng(0), {}
    for part in PARTS:
        recordings = parts[part] = join(name, part, folder, rng)
        rows = [f"{v},{a},{b},{label}" for v, bouts in recordings.items() for a, b, label in bouts]
        truth = folder / f"{part}.csv"
        truth.write_text("\n".join(["video,start,end,label", *rows]) + "\n")
        windows = ("--seconds", WINDOW, "--step", STEP, "--labels", truth)
        lists = folder / "windows"
        lists.mkdir(exist_ok=True)
        everest("prepare", "windows", folder / part, *windows, "-o", lists / truth.name, "--overwrite", "-q")
    return parts


def run_set(name: str, folder: Path) -> dict[str, Any]:
    """Join, train, predict and score one set; a run that is there is not repeated."""
    folder.mkdir(parents=True, exist_ok=True)
    parts, recipe, run = prepare(name, folder), folder / "suggested.yaml", folder / "suggested"
    if not (run / "model.safetensors").exists():
        everest(
            "recipes", "suggest", folder / "windows", "--device", "cpu", "-o", recipe, "--overwrite", "-q"
        )
        everest("finetune", "-r", recipe, "--init", "none", "--gpus", "cpu", "-o", run, "-q")
    fps = SETS[name].fps
    return {
        "recordings": {part: len(recordings) for part, recordings in parts.items()},
        "windows": len((folder / "windows" / "train.csv").read_text().splitlines()) - 1,
        "scores": {rule: score(run, folder / "test", parts["test"], fps, *to) for rule, to in RULES.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS), help="of these only")
    given = parser.parse_args()
    torch.set_num_threads(1)
    file = HERE / "results" / "timelines.json"
    results = json.loads(file.read_text())
    for name in given.sets:
        results[name] = run_set(name, given.work.absolute() / name)
        file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
