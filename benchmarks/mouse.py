"""Mice in a large cage: recordings as a lab would use them, and settings and simple models on single clips.

    python benchmarks/mouse.py VIDEOS runs/mouse
    python benchmarks/mouse.py VIDEOS runs/mouse --clips

VIDEOS has the lists `mouse_train.csv`, `mouse_val.csv` and `mouse_test.csv` of clips of 1.3 s. Blocks of the
source stay together, but the same three animals are in all of them, so all results are about new moments, not
about new animals.

Without `--clips`, the clips of all lists become ten recordings, with a cut every 1.3 s, and one annotation
file. `everest train --folds --init` (weights of ViT-Ti) tests each recording once. `everest budget` estimates
the seconds of each class from windows that are filled from the ground truth. The results are in
results/mouse_recordings.json.

With `--clips`, the clips of the first two lists are dealt to three folds. Each setting trains on two folds
and predicts the third, by a run with a seed of its own. The results are in results/mouse.json.

N clips, P places of an image.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
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
from timelines import PARTS, score

from everest.annotations.bout import Bout
from everest.annotations.formats import read_annotations, write_annotations
from everest.config.heads import Head
from everest.inference.timelines import Timelines
from everest.metrics.intervals import bootstrap
from everest.models.linear import difference_image
from everest.probes.linear import linear
from everest.video.reader import read_frames, video_info
from everest.video.writer import write_video

FOLDS: Final = 3
SIDE: Final = 16  # rows and columns of an image of the simple models
SETTINGS: Final[dict[str, tuple[str, ...]]] = {"suggestion": (), "frames": ("model.input=frames",)}
ALPHAS: Final = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)  # of the ridge, the best on training clips
RECORDINGS, RECORDING_FOLDS = 10, 5
INIT: Final = "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k"
FPS: Final = 15
CRF: Final = 4  # of H.264; at 18, a keyframe changes more pixels than the animal
WINDOW, DRAWN, DRAWS = 2, 30, 20  # seconds of a window, windows to check for a budget, seeds
KEPT: Final = (
    *("top1", "metric", "interval", "chance", "majority", "majority_class", "linear_pixels", "difference"),
    *("candidates", "inputs", "behaviors", "chosen", "reason", "videos", "groups", "smooth"),
    *("frame_accuracy", "frame_interval", "majority_accuracy", "mean_class_accuracy", "f1@50"),
)
Clips = dict[str, int]  # the class of each path


def read_list(file: Path) -> Clips:
    rows = (line.rsplit(" ", 1) for line in file.read_text().splitlines())
    return {path: int(label) for path, label in rows}


def block_of(path: str) -> str:
    return re.findall(r"_(g\d+)_c", path)[0]


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


def prepare(videos: Path, folder: Path) -> dict[str, Clips]:
    """Write the lists of the folds and of the parts; returns them."""
    parts = {part: read_list(videos / f"mouse_{part}.csv") for part in PARTS}
    folds = deal(parts["train"] | parts["val"])
    for number, fold in enumerate(folds):
        others = {k: v for other in folds if other is not fold for k, v in other.items()}
        parts |= {f"train{number}": others, f"held{number}": fold}
    folder.mkdir(parents=True, exist_ok=True)
    for name, clips in parts.items():
        lines = [f"{videos / path} {label}\n" for path, label in clips.items()]
        (folder / f"{name}.csv").write_text("".join(lines))
    (folder / "classes.txt").write_text((videos / "mouse_classes.txt").read_text())
    return parts


def run(folder: Path, setting: str, train: str, held: str, seed: int) -> dict[str, bool]:
    """Whether each held clip is classified right, after training on `train` unless that is done."""
    recipe, name = folder / "suggested.yaml", f"{setting}-{held}-{seed}"
    predicted = folder / f"{name}.csv"
    if not recipe.exists():
        lists = [f"--{part}={folder / part}.csv" for part in PARTS]
        everest("recipes", "suggest", folder, *lists, "--device", "cpu", "-o", recipe, "-q")
    if not predicted.exists():
        changes = [f"data.train={train}.csv", "data.val=null", f"data.test={held}.csv"]
        changes += [f"train.seed={seed}", "data.cache=memory", "train.workers=0", *SETTINGS[setting]]
        options = [option for change in changes for option in ("--set", change)]
        output = folder / "runs" / name
        everest("finetune", "-r", recipe, "--init", "none", "--gpus", "cpu", *options, "-o", output, "-q")
        everest("eval", "-c", output, "--gpus", "cpu", "--predictions", predicted, "-q")
    with predicted.open(newline="") as file:
        return {Path(row["video"]).name: row["correct"] == "1" for row in csv.DictReader(file)}


def images(videos: Path, clips: Clips) -> NDArray[np.float32]:
    """The mean image and the mean change of each clip, (N, 2 P)."""
    found = []
    for path in clips:
        frames = read_frames(videos / path, range(video_info(videos / path).frames)).permute(3, 0, 1, 2)[None]
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


def compare(videos: Path, folder: Path) -> dict[str, Any]:
    """The accuracy of each setting and simple model on the held-out clips of all folds."""
    parts, held = prepare(videos, folder), [f"held{number}" for number in range(FOLDS)]
    right: dict[str, list[bool]] = defaultdict(list)
    clips = [path for name in held for path in parts[name]]
    for seed, name in enumerate(held):
        for model, answers in simple_models(videos, parts[f"train{seed}"], parts[name]).items():
            right[model] += answers
        for setting in SETTINGS:
            found = run(folder, setting, f"train{seed}", name, seed)
            print(name, setting, f"{np.mean([*found.values()]):.1%}", flush=True)
            right[setting] += [found[Path(path).name] for path in parts[name]]
    rest = {name: row for name, row in right.items() if name != "suggestion"}
    rows = {
        "machine": machine(),
        "clips": len(set(clips)),
        "blocks": len({block_of(path) for path in clips}),
        "rows": {name: accuracy(row, clips) for name, row in right.items()},
        "suggestion_minus": {name: accuracy(right["suggestion"], clips, row) for name, row in rest.items()},
    }
    return {"folds": rows}


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
        frames = {path: read_frames(videos / path, range(video_info(videos / path).frames)) for path in order}
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
        For each class the true and the model's seconds and bouts, the estimate of each draw with the ends of
        its 95 % interval, and how many of these contain the true number.
    """
    bouts, checked, found = read_annotations(truth), timeline.with_name("checked.csv"), {}
    rows = [f"{bout.video},{bout.start!r},{bout.end!r},{bout.label}\n" for bout in bouts]
    options = ("budget", "--timeline", timeline, "--smooth", smooth)
    for seed in range(DRAWS):
        draw = ("--draw", DRAWN, "--window", WINDOW, "--seed", seed)
        everest(*options, *draw, "--output", checked, "--overwrite")
        checked.write_text(checked.read_text().replace("to check", "checked") + "".join(rows))
        document = json.loads(everest(*options, "--checked", checked, "--json"))
        for entry in document["classes"]:
            seconds = [bout.seconds for bout in bouts if bout.label == entry["name"]]
            for what, true in (("seconds", sum(seconds)), ("bouts", len(seconds))):
                row, of_class = entry[what], found.setdefault(entry["name"], {})
                known = {"true": round(true, 1), "model": round(row["naive"], 1), "contain": 0, "draws": []}
                numbers = of_class.setdefault(what, known)
                numbers["contain"] += row["interval"][0] <= true <= row["interval"][1]
                numbers["draws"].append([round(end, 1) for end in (row["estimate"], *row["interval"])])
    return {"window": WINDOW, "checked": DRAWN, "windows": document["windows"], "classes": found}


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
    recordings = [Path(path).name for path in result["recordings"]]
    return {
        "machine": machine(),
        "minutes": result["minutes"],
        "gray levels of change": changed,
        "train": {key: result[key] for key in (*KEPT, "judgment")} | {"recordings": recordings},
        "folds": [{key: fold[key] for key in KEPT} for fold in result["folds"]],
        "scores": scores,
        "confusion": {name: {other: counts[name, other] for other in names} for name in names},
        "budget": budgets(timeline, result["smooth"], annotated),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", action="store_true", help="compare settings on single clips")
    parser.add_argument("--init", default=INIT, help="weights for the recordings [%(default)s]")
    given = parser.parse_args()
    torch.set_num_threads(1)
    file = HERE / "results" / ("mouse.json" if given.clips else "mouse_recordings.json")
    earlier = json.loads(file.read_text()) if file.exists() else {}
    videos, folder = given.videos.absolute(), given.folder.absolute()
    results = earlier | (compare(videos, folder) if given.clips else record(videos, folder, given.init))
    file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
