"""Searches by features: do they find the class?

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from measuring import HERE
from numpy.typing import NDArray

from everest.checkpoints.load import find_weights
from everest.inference.model import OpenedModel
from everest.inference.over_videos import over_videos
from everest.lists.sample import Sample
from everest.probes.baselines import difference_image, random_encoder
from everest.probes.list_probe import numbered, precision_of_nearest
from everest.search.feature_file import FeatureFile, read_feature_file
from everest.system.events import silent
from everest.system.weights import write_tensors

SETS: Final = {"weizmann10": "weizmann", "interaction6": "interaction", "surveillance2": "surveillance"}
RANDOM, DIFFERENCES, ENCODER = "random encoder", "difference image", "encoder"
RANDOM_SEEDS: Final = 3
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


def large(folder: Path) -> dict[str, Any]:
    """Seconds and memory of a search among 100,000 random rows."""
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
            of_set: dict[str, Any] = {
                "clips": len(clips.paths),
                "held_out": int(clips.held_out.sum()),
                "classes": clips.classes,
                "chance": round(
                    100 * float((np.bincount(clips.labels) ** 2).sum()) / len(clips.labels) ** 2, 1
                ),
                "encoders": {},
            }
            for encoder, of_clips in encoders.items():
                file = encode(model, clips.paths, of_clips, folder)
                gallery = (file.units.astype(np.float32), clips.labels, clips.groups)
                held_out = clips.held_out
                queries = (gallery[0][held_out], clips.labels[held_out], clips.groups[held_out])
                of_set["encoders"][encoder] = {
                    "precision@10": precision_of_nearest(*gallery, *gallery),
                    "precision@10, held-out queries": precision_of_nearest(*queries, *gallery),
                }
                print(name, encoder, of_set["encoders"][encoder]["precision@10"], flush=True)
            document["sets"][name] = of_set
        document["large"] = large(folder)
    document["seconds"] = round(time.perf_counter() - begin)
    (HERE / "results" / "searching.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
