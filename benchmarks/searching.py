"""Searches and selections by features: do they find the class, the copies, and the clips worth a label?

    python benchmarks/searching.py VIDEOS RUN LIST

VIDEOS holds the clips with their `clips.csv`, RUN is a pre-training run, and LIST has the clips that it was
trained on; what is measured on other clips only is marked as held out. Compared are the encoder of the run,
three encoders of the same shape with new weights, and the mean frame difference. One thread. The results go
to benchmarks/results/searching.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from measuring import HERE
from numpy.typing import NDArray

from everest.checkpoints.load import find_weights
from everest.config.heads import Head
from everest.inference.model import OpenedModel
from everest.inference.over_videos import over_videos
from everest.lists.sample import Sample
from everest.probes.baselines import difference_image, random_encoder
from everest.probes.list_probe import numbered, precision_of_nearest
from everest.probes.probe_heads import linear
from everest.search.duplicates import find_duplicates
from everest.search.feature_file import FeatureFile, read_feature_file
from everest.search.select import k_center
from everest.sweep.statistics import paired, spread
from everest.system.events import silent
from everest.system.weights import write_tensors
from everest.video.reader import probe, read_frames
from everest.video.writer import write_video

SETS: Final = {"weizmann10": "weizmann", "interaction6": "interaction", "surveillance2": "surveillance"}
CHOSEN_ON: Final = "interaction6"  # the set on which the threshold of duplicates is chosen
RANDOM, DIFFERENCES, ENCODER = "random encoder", "difference image", "encoder"
RANDOM_SEEDS: Final = 3
PLANTED: Final = 30  # clips of a set that get copies
KINDS: Final = ("re-encoded", "cropped", "shifted")  # and "mirrored", which is no copy
THRESHOLDS: Final = (0.9, 0.95, 0.97, 0.98, 0.985, 0.99, 0.993, 0.995, 0.997, 0.998, 0.999, 0.9995, 0.9998)
LABELS: Final = (2, 5, 10)  # for each class
SEEDS: Final = 5  # each leaves out another fifth of the clips that may be chosen
ROWS, WIDTH = 100_000, 384
# In a small process: the peak of a child is at least the memory of the process that starts it.
MEASURED: Final = """
import json, resource, subprocess, sys, time
begin = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
wall, used = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
seconds = {"seconds": round(wall, 1), "cpu_seconds": round(used.ru_utime + used.ru_stime, 1)}
print(json.dumps({**seconds, "memory_mb": round(used.ru_maxrss / 1000)}))
"""

Encode = Callable[[torch.Tensor], torch.Tensor]  # (B, C, T, H, W) uint8 to (B, D)


@dataclass(frozen=True)
class ClipSet:
    """The clips of a set."""

    paths: list[Path]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    held_out: NDArray[np.bool_]  # not in the list of the run

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1


def read_set(videos: Path, source: str, trained_on: set[str]) -> ClipSet:
    with (videos / "clips.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == source]
    paths = [videos / row["path"] for row in rows]
    return ClipSet(
        paths,
        numbered([row["class"] for row in rows]),
        numbered([row["group"] for row in rows]),
        np.array([str(path) not in trained_on for path in paths]),
    )


def encode(model: OpenedModel, paths: Sequence[Path], of_clips: Encode, folder: Path) -> FeatureFile:
    """The features of one center view of each video, as the commands read them."""
    samples = [Sample(path=str(path)) for path in paths]
    compute = lambda clips: {"pooled": of_clips(clips)}  # noqa: E731
    rows = []
    for pairs in over_videos(model, samples, compute, batch=8, workers=0, report=silent):
        for sample, values in pairs:
            assert not isinstance(values, str), (sample, values)
            rows.append(values["pooled"].mean(dim=0))
    file = folder / "features.safetensors"
    write_tensors(
        file, {"features": torch.stack(rows)}, metadata={"videos": json.dumps(list(map(str, paths)))}
    )
    return read_feature_file(file)


def plant(paths: Sequence[Path], folder: Path) -> list[tuple[Path, int, str]]:
    """Write copies of some videos: each with the number of its original, and its kind."""
    folder.mkdir()
    planted = []
    long = [n for n, path in enumerate(paths) if probe(path).frames > 2 * round(probe(path).fps or 1)]
    for number in long[:: max(len(long) // PLANTED, 1)][:PLANTED]:
        rate = round(probe(paths[number]).fps or 1)
        frames = read_frames(paths[number], range(probe(paths[number]).frames))  # (F, H, W, C)
        height, width = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2
        frames = frames[:, :height, :width]
        top, left = round(0.05 * height), round(0.05 * width)
        inner = frames[:, top : top + height * 9 // 20 * 2, left : left + width * 9 // 20 * 2]
        for kind, copy, crf in (
            ("re-encoded", frames, 35),
            ("cropped", inner, 18),
            ("shifted", frames[rate:], 18),
            ("mirrored", frames.flip(2), 18),
        ):
            path = folder / f"{number}-{kind}.mp4"
            write_video(path, copy.contiguous(), rate, crf=crf)
            planted.append((path, number, kind))
    return planted


def duplicate_measures(
    file: FeatureFile, planted: Sequence[tuple[Path, int, str]], threshold: float
) -> dict[str, float]:
    """Precision and recall (%) of pairs in one group; originals come first in the file."""
    first = len(file) - len(planted)
    origin = np.arange(len(file))
    for place, (_, number, kind) in enumerate(planted):
        origin[first + place] = -1 - place if kind == "mirrored" else number  # a mirrored clip is alone
    found = [
        pair
        for group in find_duplicates(file, threshold)
        for pair in combinations(sorted([group.kept, *(each.row for each in group.copies)]), 2)
    ]
    right = [(a, b) for a, b in found if origin[a] == origin[b]]
    sizes = [size for size in Counter(origin.tolist()).values() if size > 1]
    result = {
        "precision": 100 * len(right) / len(found) if found else 100.0,
        "recall": 100 * len(right) / sum(size * (size - 1) // 2 for size in sizes),
    }
    kinds = {first + place: kind for place, (_, _, kind) in enumerate(planted)}
    numbers = {first + place: number for place, (_, number, _) in enumerate(planted)}
    with_original = Counter(kinds[b] for a, b in found if b in kinds and a == numbers[b])
    for kind in (*KINDS, "mirrored"):
        result[f"found {kind}"] = 100 * with_original[kind] / (len(planted) // (len(KINDS) + 1))
    return {name: round(value, 1) for name, value in result.items()}


def f1(measures: dict[str, float]) -> float:
    total = measures["precision"] + measures["recall"]
    return 2 * measures["precision"] * measures["recall"] / total if total else 0.0


def label_efficiency(file: FeatureFile, clips: ClipSet) -> dict[str, Any]:
    """Accuracy (%) of a linear probe on the held-out groups, with labels of rows chosen in two ways."""
    results: dict[str, Any] = {}
    features = file.units.astype(np.float32)
    pool = np.flatnonzero(~clips.held_out & ~np.isin(clips.groups, clips.groups[clips.held_out]))
    for each in LABELS:
        count = each * clips.classes
        if count > 0.6 * len(pool):
            continue  # nearly all clips: nothing to choose
        accuracies: dict[str, dict[int, float]] = {"select": {}, "random": {}}
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            offered = rng.permutation(pool)[: round(0.8 * len(pool))]
            chosen = {
                "select": offered[k_center(features[offered], count, ())],
                "random": rng.choice(offered, count, replace=False),
            }
            for way, rows in chosen.items():
                known = clips.labels[rows]
                answers = np.full(int(clips.held_out.sum()), known[0])  # if the chosen rows have one class
                if len(np.unique(known)) > 1:
                    test, head = features[clips.held_out], Head(outputs=clips.classes)
                    answers = linear(features[rows], known, test, head, seed=seed)[0].argmax(axis=1)
                right = answers == clips.labels[clips.held_out]
                accuracies[way][seed] = 100 * float(right.mean())
        difference = paired(accuracies["select"], accuracies["random"])
        results[f"{each} a class"] = {
            **{way: round(spread(list(of.values())).mean, 1) for way, of in accuracies.items()},
            "difference": None if difference is None else round(difference.mean, 1),
            "interval": None if difference is None else difference.interval,
            "labels": count,
        }
    return results


def large(folder: Path) -> dict[str, Any]:
    """Seconds and memory of the commands on 100,000 rows: random ones, so that no two are alike."""
    rng = np.random.default_rng(0)
    starts = torch.arange(ROWS // 20, dtype=torch.float64).repeat(20)
    tensors = {
        "features": torch.from_numpy(rng.standard_normal((ROWS, WIDTH), dtype=np.float32)),
        "starts": starts,
        "ends": starts + 1,
        "video_ids": torch.arange(20).repeat_interleave(ROWS // 20),
    }
    names = [f"{number}.mp4" for number in range(20)]
    write_tensors(folder / "large.safetensors", tensors, metadata={"videos": json.dumps(names)})
    results: dict[str, Any] = {"rows": ROWS, "width": WIDTH}
    for name, words in {
        "import": ["--version"],
        "search": ["search", "3.mp4@77", "--features", "large.safetensors"],
        "select 500": [
            "curate",
            "select",
            "--features",
            "large.safetensors",
            "--count",
            "500",
            "-o",
            "next.csv",
        ],
        "duplicates": ["curate", "duplicates", "--features", "large.safetensors", "-o", "copies.csv"],
    }.items():
        command = [sys.executable, "-c", MEASURED, sys.executable, "-m", "everest_cli", *words]
        measured = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
        results[name] = json.loads(measured.splitlines()[-1])
        print(name, results[name], flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", type=Path, help="folder with clips.csv")
    parser.add_argument("run", type=Path, help="a pre-training run")
    parser.add_argument("list", type=Path, help="the clips that it was trained on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    model = OpenedModel.open(find_weights(str(options.run)), clips=1, crops=1, cpu=True)
    encoders: dict[str, Encode] = {ENCODER: lambda clips: model.encode(clips).pooled}
    for seed in range(RANDOM_SEEDS):
        train = replace(model.recipe.train, seed=seed)
        new = random_encoder(replace(model, recipe=replace(model.recipe, train=train)))
        encoders[f"{RANDOM} {seed}"] = lambda clips, new=new: new.encode(clips).pooled
    encoders[DIFFERENCES] = difference_image
    trained_on = set(options.list.read_text().splitlines())
    document: dict[str, Any] = {"run": "small-views, contrast and camera", "sets": {}}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, source in SETS.items():
            clips = read_set(options.videos.absolute(), source, trained_on)
            planted = plant(clips.paths, folder / name)
            of_set: dict[str, Any] = {
                "clips": len(clips.paths),
                "held_out": int(clips.held_out.sum()),
                "classes": clips.classes,
                "planted_clips": len(planted) // (len(KINDS) + 1),
                "chance": round(
                    100 * float((np.bincount(clips.labels) ** 2).sum()) / len(clips.labels) ** 2, 1
                ),
                "encoders": {},
            }
            for encoder, of_clips in encoders.items():
                whole = encode(model, [*clips.paths, *(path for path, _, _ in planted)], of_clips, folder)
                file = replace(
                    whole,
                    videos=whole.videos[: len(clips.paths)],
                    video_ids=whole.video_ids[: len(clips.paths)],
                    units=whole.units[: len(clips.paths)],
                )
                gallery = (file.units.astype(np.float32), clips.labels, clips.groups)
                held_out = clips.held_out
                queries = (gallery[0][held_out], clips.labels[held_out], clips.groups[held_out])
                of_set["encoders"][encoder] = {
                    "precision@10": precision_of_nearest(*gallery, *gallery),
                    "precision@10, held-out queries": precision_of_nearest(*queries, *gallery),
                    "duplicates": {str(t): duplicate_measures(whole, planted, t) for t in THRESHOLDS},
                    "labels": label_efficiency(file, clips),
                }
                print(name, encoder, of_set["encoders"][encoder]["precision@10"], flush=True)
            document["sets"][name] = of_set
        for encoder in encoders:
            of_chosen = document["sets"][CHOSEN_ON]["encoders"][encoder]["duplicates"]
            best = max(of_chosen, key=lambda threshold: f1(of_chosen[threshold]))
            document.setdefault("duplicate_threshold", {})[encoder] = {"chosen_on": CHOSEN_ON, "value": best}
        document["large"] = large(folder)
    document["seconds"] = round(time.perf_counter() - begin)
    (HERE / "results" / "searching.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
