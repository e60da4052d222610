"""A small animal in a large cage: settings of fine-tuning and simple models on held-out blocks of video.

    python benchmarks/mouse.py VIDEOS runs/mouse
    python benchmarks/mouse.py VIDEOS runs/mouse --test frames

VIDEOS has the lists `mouse_train.csv`, `mouse_val.csv` and `mouse_test.csv`. The clips of the first two are
dealt to three folds, whole blocks of a recording together. Each setting trains on two folds and predicts the
third, so each clip is predicted once, by a run with a seed of its own. The same animals are in all folds.
`--test` trains one setting on the training list with three seeds and predicts the test list.

N clips, T frames, H W pixels, P places of an image.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from measuring import HERE, everest, machine
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from everest.config.heads import Head
from everest.metrics.intervals import bootstrap
from everest.probes.classifiers import linear
from everest.probes.probe import difference_image
from everest.video.reader import probe, read_frames
from everest.video.writer import write_video

RESULTS: Final = HERE / "results" / "mouse.json"
FOLDS: Final = 3
SIDE: Final = 16  # rows and columns of an image of the simple models
SEARCHED: Final = 64  # pixels, side of the window in which most pixels change
CUT: Final = 56  # pixels, side of a cropped clip; an animal is about 30 long
NOISE: Final = 3  # gray levels: smaller changes are the compression's
SETTINGS: Final[dict[str, tuple[str, ...]]] = {
    "suggestion": (),
    "frames": ("model.input=frames",),
    "cropped": ("data.size=96",),
}
ALPHAS: Final = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)  # of the ridge, the best on training clips
Clips = dict[str, int]  # the class of each path


def read_list(file: Path) -> Clips:
    rows = (line.rsplit(" ", 1) for line in file.read_text().splitlines())
    return {path: int(label) for path, label in rows}


def block_of(path: str) -> str:
    found = re.search(r"_(g\d+)_c", path)
    assert found is not None
    return found[1]


def deal(clips: Clips, number: int = FOLDS) -> list[Clips]:
    """Folds with whole blocks, and about as many clips of each class."""
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


def cropped(frames: Tensor) -> Tensor:
    """The square of a clip (T, H, W, 3) uint8 around the pixels that change most."""
    luma = frames.float().mean(dim=-1)
    change = luma.amax(dim=0) - luma.amin(dim=0)  # (H, W)
    change = torch.where(change > NOISE, change, 0.0)
    sums = F.avg_pool2d(change[None, None], SEARCHED, stride=1)[0, 0]
    top, left = divmod(int(sums.argmax()), sums.size(1))
    window = change[top : top + SEARCHED, left : left + SEARCHED] + 1e-6
    places = torch.arange(SEARCHED) / window.sum()
    middle = torch.stack([(window.sum(dim=1 - axis) * places).sum() for axis in (0, 1)])
    room = torch.tensor(frames.shape[1:3]) - CUT
    corner = (torch.tensor([top, left]) + middle - CUT / 2).round().int()
    y, x = corner.clamp(min=torch.zeros(2, dtype=torch.int), max=room.int()).tolist()
    return frames[:, y : y + CUT, x : x + CUT].contiguous()


def prepare(videos: Path, folder: Path) -> dict[str, Clips]:
    """Write the cropped clips, unless they are there, and the lists of both kinds; returns the lists."""
    parts = {part: read_list(videos / f"mouse_{part}.csv") for part in ("train", "val", "test")}
    folds = deal(parts["train"] | parts["val"])
    for number, fold in enumerate(folds):
        others = {k: v for other in folds if other is not fold for k, v in other.items()}
        parts |= {f"train{number}": others, f"held{number}": fold}
    for path in parts["train"] | parts["val"] | parts["test"]:
        cut = folder / "cut" / path
        if not cut.exists():
            cut.parent.mkdir(parents=True, exist_ok=True)
            source = probe(videos / path)
            assert source.fps is not None
            frames = read_frames(videos / path, range(source.frames))
            write_video(cut, cropped(frames), round(source.fps))
    for kind, root in (("whole", videos), ("cut", folder / "cut")):
        for name, clips in parts.items():
            lines = [f"{root / path} {label}\n" for path, label in clips.items()]
            (folder / f"{kind}_{name}.csv").write_text("".join(lines))
    (folder / "classes.txt").write_text((videos / "mouse_classes.txt").read_text())
    return parts


def run(folder: Path, setting: str, train: str, held: str, seed: int) -> dict[str, bool]:
    """Whether each held clip is classified right, after training on `train` unless that is done."""
    recipe, name = folder / "suggested.yaml", f"{setting.replace(' ', '-')}-{held}-{seed}"
    kind, predicted = "cut" if setting == "cropped" else "whole", folder / f"{name}.csv"
    if not recipe.exists():
        lists = [f"--{part}={folder / f'whole_{part}.csv'}" for part in ("train", "val", "test")]
        everest("recipes", "suggest", folder, *lists, "--device", "cpu", "-o", recipe, "-q")
    if not predicted.exists():
        changes = [f"data.train={kind}_{train}.csv", "data.val=null", f"data.test={kind}_{held}.csv"]
        changes += [f"train.seed={seed}", "data.cache=memory", "train.workers=0", *SETTINGS[setting]]
        options = [option for change in changes for option in ("--set", change)]
        output = folder / "runs" / name
        everest("finetune", "-r", recipe, "--init", "none", "--gpus", "cpu", *options, "-o", output, "-q")
        everest("eval", "-c", output, "--gpus", "cpu", "--predictions", predicted, "-q")
    with predicted.open(newline="") as file:
        return {row["video"]: row["correct"] == "1" for row in csv.DictReader(file)}


def images(videos: Path, clips: Clips) -> NDArray[np.float32]:
    """The mean image and the mean change of each clip, (N, 2 P)."""
    found = []
    for path in clips:
        frames = read_frames(videos / path, range(probe(videos / path).frames)).permute(3, 0, 1, 2)[None]
        mean = F.adaptive_avg_pool2d(frames.float().mean(dim=(1, 2)), SIDE).flatten(1)
        found.append(torch.cat([mean, difference_image(frames, SIDE)], dim=1))
    return torch.cat(found).numpy()


def simple_models(videos: Path, train: Clips, held: Clips) -> dict[str, list[bool]]:
    """Whether each held clip is classified right, by models that need no encoder."""
    learned, tested = images(videos, train), images(videos, held)
    labels, truth = np.array([*train.values()]), np.array([*held.values()])
    head = Head(outputs=len({*train.values()}))
    frequent = Counter(train.values()).most_common(1)[0][0]
    answers = {
        "most frequent": np.full(len(held), frequent),
        "logistic regression": linear(learned, labels, tested, head, seed=0).argmax(axis=1),
    }
    for name, columns in (("mean", slice(SIDE**2)), ("mean and change", slice(None))):
        model = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=ALPHAS))
        answers[f"ridge, {name}"] = model.fit(learned[:, columns], labels).predict(tested[:, columns])
    return {name: (answer == truth).tolist() for name, answer in answers.items()}


def accuracy(right: list[bool], clips: Sequence[str], against: list[bool] | None = None) -> dict[str, Any]:
    """The accuracy or its difference in points, with a 95 % interval over blocks."""
    values = np.array(right, dtype=float) - (0 if against is None else np.array(against, dtype=float))
    blocks = [block_of(path) for path in clips]

    def mean(counts: NDArray[np.float64]) -> dict[str, float]:
        return {"top1": float(np.average(values, weights=counts))}

    ends = bootstrap(mean, blocks, shares=against is None)["top1"]
    return {"mean": round(100 * values.mean(), 1), "interval": [round(100 * end, 1) for end in ends]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--test", choices=list(SETTINGS), help="train this setting for the test list")
    given = parser.parse_args()
    videos, folder = given.videos.absolute(), given.folder.absolute()
    torch.set_num_threads(1)
    parts = prepare(videos, folder)
    if given.test is None:
        pairs = [(f"train{number}", f"held{number}", number) for number in range(FOLDS)]
        settings = given.settings
    else:
        pairs, settings = [("train", "test", seed) for seed in range(FOLDS)], [given.test]
    right: dict[str, list[bool]] = defaultdict(list)
    clips = [path for _, held, _ in pairs for path in parts[held]]
    for train, held, seed in pairs:
        for name, answers in simple_models(videos, parts[train], parts[held]).items():
            right[name] += answers
        for setting in settings:
            found = run(folder, setting, train, held, seed)
            print(held, setting, f"{np.mean([*found.values()]):.1%}", flush=True)
            by_name = {Path(path).name: answer for path, answer in found.items()}
            right[setting] += [by_name[Path(path).name] for path in parts[held]]
    key = "folds" if given.test is None else "test"
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[key] = {
        "machine": machine(),
        "clips": len(set(clips)),
        "blocks": len({block_of(path) for path in clips}),
        "rows": {name: accuracy(row, clips) for name, row in right.items()},
        "suggestion_minus": {
            name: accuracy(right["suggestion"], clips, row)
            for name, row in right.items()
            if name != "suggestion" and "suggestion" in right
        },
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results[key], indent=2))


if __name__ == "__main__":
    main()
