"""Timelines of long videos with a known truth: clips of three data sets, joined with still parts in between.

    python benchmarks/timelines.py WORK

Of each set, the training clips become one long video and the test clips another. The windows of the first
train a small classifier, which predicts the second. The metrics must equal plain loops over frames, else the
program ends with an error. One core; the results are in results/timelines.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import timeline_definitions as definitions
import torch
from measuring import HERE, SHARED
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop, resize

from everest.video.reader import probe, read_frames
from everest.video.writer import write_video

SETS: Final = ("surveillance2", "interaction6", "weizmann10")
FPS: Final = 25
SIZE: Final = (96, 128)  # pixels, height and width
STILL: Final = (1.0, 3.0)  # seconds of a still part, in which nothing happens
WINDOW, STEP = 1.28, 0.32  # seconds; a clip of recipe small has 32 frames
STEPS: Final = 400
LONGEST: Final = 250  # frames of a clip
KEYS: Final = ("frame_accuracy", "edit", "f1@10", "f1@25", "f1@50")
RULES: Final = {
    "plain": [],
    "smooth": ["--smooth", "1"],
    "smooth, min-seconds": ["--smooth", "1", "--min-seconds", "0.8"],
}


@dataclass(frozen=True)
class Joined:
    """A long video and its truth."""

    path: Path
    bouts: list[tuple[float, float, str]]  # seconds, class
    seconds: float


def join(name: str, part: str, folder: Path, rng: np.random.Generator) -> Joined:
    """Join the clips of a list in a random order, with still parts in between, into one video."""
    actions = SHARED / "videos" / "actions"
    names = (actions / f"{name}_classes.txt").read_text().split()
    rows = [line.rsplit(" ", 1) for line in (actions / f"{name}_{part}.csv").read_text().splitlines()]
    frames, bouts, at = [], [], 0
    for index in rng.permutation(len(rows)):
        path, label = rows[index]
        clip = read_clip(actions / path)
        still = clip[-1:].expand(round(rng.uniform(*STILL) * FPS), -1, -1, -1)
        bouts.append((at / FPS, (at + len(clip)) / FPS, names[int(label)]))
        frames += [clip, still]
        at += len(clip) + len(still)
    video = folder / f"{name}-{part}.mp4"
    write_video(video, torch.cat(frames), FPS)
    return Joined(video, bouts, at / FPS)


def read_clip(path: Path) -> Tensor:
    """The frames of a clip, (F, H, W, 3) uint8."""
    frames = read_frames(path, range(min(probe(path).frames, LONGEST))).movedim(-1, 1)
    height, width = frames.shape[2:]
    scale = max(SIZE[0] / height, SIZE[1] / width)
    resized = resize(frames, [round(height * scale), round(width * scale)], antialias=True)
    return center_crop(resized, list(SIZE)).movedim(1, -1).contiguous()


def write_windows(joined: Joined, path: Path) -> int:
    """Write a list of windows with the class that covers more than half of each, else background."""
    lines = ["path,start,end,label"]
    for start in np.arange(0, joined.seconds - WINDOW, STEP):
        label = "background"
        for first, end, name in joined.bouts:
            if min(end, start + WINDOW) - max(first, start) > WINDOW / 2:
                label = name
        lines.append(f"{joined.path},{start:.2f},{start + WINDOW:.2f},{label}")
    path.write_text("\n".join(lines) + "\n")
    return len(lines) - 1


def everest(*arguments: object) -> str:
    command = [sys.executable, "-m", "everest_cli", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def line_of(bouts: list[tuple[float, float, str]], frames: int) -> list[str]:
    """The class of each frame."""
    line = ["-"] * frames
    for start, end, name in bouts:
        if name != "background":
            line[round(start * FPS) : round(end * FPS)] = [name] * (round(end * FPS) - round(start * FPS))
    return line


def check(document: dict[str, Any], joined: Joined) -> float:
    """Compare with plain loops over frames; returns the largest difference, in percent points."""
    (row,) = document["timelines"]
    found = [(bout["start"], bout["end"], bout["label"] or "background") for bout in row["bouts"]]
    frames = document["frames"]
    pair = line_of(joined.bouts, frames), line_of(found, frames)
    expected = definitions.metrics([pair])
    precisions = []
    for name in {name for _, _, name in joined.bouts}:
        truth = [(start, end, 0.0) for start, end, label in joined.bouts if label == name]
        spans = [(b["start"], b["end"], b["probability"]) for b in row["bouts"] if b["label"] == name]
        precisions.append(definitions.average_precision([(truth, spans)], 0.5) or 0.0)
    expected["map@0.5"] = float(np.mean(precisions))
    differences = [abs(document[key] - (value or 0.0)) for key, value in expected.items()]
    if max(differences) > 1e-3:
        raise SystemExit(f"metrics differ: {expected} and {[document[key] for key in expected]}")
    return max(differences)


def run_set(name: str, folder: Path) -> dict[str, Any]:
    """Join, train, predict and score one set."""
    began, rng = time.monotonic(), np.random.default_rng(0)
    train, test = join(name, "train", folder, rng), join(name, "test", folder, rng)
    windows = write_windows(train, folder / f"{name}.csv")
    truth = folder / f"{name}-truth.csv"
    lines = [f"{test.path.name},{start},{end},{label}" for start, end, label in test.bouts]
    truth.write_text("\n".join(["video,start,end,label", *lines]) + "\n")
    run = folder / name
    settings = [
        f"finetune.steps={STEPS}",
        "data.val=null",
        "data.test=null",
        "train.workers=0",
        "data.classes=null",
    ]
    if not (run / "model.safetensors").exists():
        options = [f"--set={setting}" for setting in (*settings, f"data.train={folder / f'{name}.csv'}")]
        everest("finetune", "--recipe", "small", "--init", "none", *options, "--gpus", "cpu", "-o", run, "-q")
    trained = time.monotonic() - began
    scores = {}
    for rules, options in RULES.items():
        plot = ["--plot", folder / f"{name}.png", "--overwrite"] if rules == list(RULES)[-1] else []
        command = ("predict", test.path, "-c", run, "--timeline", "--step", STEP, "--truth", truth)
        document = json.loads(
            everest(*command, *options, *plot, "--batch", 8, "--json", "-q", "--gpus", "cpu")
        )
        difference = check(document, test)
        keys = ("frame_accuracy", "edit", "f1@10", "f1@25", "f1@50", "map@0.5", "event_f1")
        scores[rules] = {key: document[key] for key in keys} | {"largest_difference": round(difference, 6)}
    line = line_of(test.bouts, document["frames"])
    most = max((line.count(label) for label in set(line)), default=0)
    return {
        "train_seconds_of_video": round(train.seconds, 1),
        "test_seconds_of_video": round(test.seconds, 1),
        "windows": windows,
        "bouts": len(test.bouts),
        "classes": len({label for _, _, label in test.bouts}),
        "always_the_most_frequent": round(100 * most / len(line), 2),
        "scores": scores,
        "seconds_joining_and_training": round(trained, 1),
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    folder = parser.parse_args().work
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    settings = {"window": WINDOW, "step": STEP, "steps": STEPS, "recipe": "small", "init": "none", "seed": 0}
    results = {"settings": settings, "sets": {name: run_set(name, folder.absolute()) for name in SETS}}
    (HERE / "results" / "timelines.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
