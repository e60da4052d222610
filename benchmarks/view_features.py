"""Frozen features after pre-training on real clips: do they show the action of people never seen before?

    python benchmarks/view_features.py VIDEOS runs/features --variant contrast --variant everest
    python benchmarks/view_features.py VIDEOS runs/features --report

VIDEOS is the folder of actions or, with a folder of runs of its own, that of lips, which has unlabeled
clips too. A unit is a third of the groups (persons, cameras) that is held out, and a seed; there are three
units for each of two partitions. An encoder is pre-trained on the clips of all other groups, without
labels. Then classifiers of its features learn the labels of these clips, and answer about the held-out
ones. Every unit is a file of its own, so that a call that was stopped is resumed. Units from 6 on divide
the groups in other ways. Differences are paired by unit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import measuring
import numpy as np
import torch
from evidence_tables import DIFFERENCES, RANDOM
from held_out_clips import FOLDS, LETTERS, PARTITIONS, Clips
from measuring import HERE, read_units
from numpy.typing import NDArray

import everest
from everest.config.heads import Head
from everest.config.recipe import load_recipe
from everest.inference.opened_model import encode_clips
from everest.models.base import PretrainingModel
from everest.models.image_classifier import difference_image
from everest.models.spec import pretrain_spec
from everest.probes import classifiers
from everest.probes.linear import linear
from everest.probes.probe import DIFFERENCE_SIDE

RESULTS: Final = HERE / "results" / "view_features.json"
RESULTS_OF_LETTERS: Final = HERE / "results" / "view_features_letters.json"
BASE: Final = (
    *("data.size=64", "data.channels=1", "data.mean=[0.45]", "data.std=[0.225]"),
    *("model.tubelet=[4,8,8]", "model.positions=separable", "model.input=differences"),
    *("train.precision=fp32", "train.workers=1", "pretrain.stride=2", "finetune.stride=2"),
    *("pretrain.steps=600", "pretrain.warmup_steps=60", "pretrain.batch_size=48", "pretrain.base_lr=0.0053"),
)
VIEWS: Final = ("pretrain.objective=views",)


def sampled(uniform: float) -> str:
    values = f"strategy: sampled, keep_ratio: 0.25, visible_ratio: null, uniform: {uniform}"
    return f"pretrain.selection={{{values}}}"


LABELED_ONLY: Final = "the same, labeled videos only"
SUGGESTED: Final = (*VIEWS, sampled(1.0), "pretrain.camera_motion=1")
VARIANTS: Final[dict[str, tuple[str, ...]]] = {
    "everest": (),
    "videomae": ("pretrain.selection={strategy: tube, mask_ratio: 0.9}",),
    "contrast": (*VIEWS, sampled(0.5)),
    "contrast, uniform": (*VIEWS, sampled(1.0)),
    "contrast, importance": (*VIEWS, sampled(0.0)),
    "contrast and camera": (*VIEWS, sampled(0.5), "pretrain.camera_motion=1"),
    "contrast, uniform and camera": SUGGESTED,
    "the same, trained again": SUGGESTED,  # on another processor
    "the same, 4 times the steps": (*SUGGESTED, "pretrain.steps=2400", "pretrain.warmup_steps=240"),
    "the same, twice the width": (*SUGGESTED, "model.width=256", "model.heads=8"),
    "the same, twice the batch": (*SUGGESTED, "pretrain.batch_size=96", "pretrain.base_lr=0.00375"),
    "the same, frames as input": (*SUGGESTED, "model.input=frames"),
    "the same, smaller crops": (*SUGGESTED, "pretrain.views.crop_area=[0.2,1.0]"),
    LABELED_ONLY: SUGGESTED,  # of lips: without the clips of other mouths
    "everest and camera": ("pretrain.camera_motion=1",),
}
CURVES: Final = ("loss", "view_top1", "view_spread", "camera_loss")
AT: Final = (slice(0, 10), slice(110, 130), slice(290, 310), slice(580, 600))  # steps
FEW, DRAWS = 2, 10  # labels a class of the measure `few`, and how often they are sampled


def run_folder(folder: Path, variant: str, unit: int) -> Path:
    """Where a unit of a variant is pre-trained."""
    return folder / variant.replace(", ", "-").replace(" ", "-") / str(unit)


def pretrained(variant: str, unit: int, clips: Clips, folder: Path) -> PretrainingModel:
    """The model of a variant, trained on clips that a unit does not hold out, but not on `cameramotion8`."""
    run = run_folder(folder, variant, unit)
    listed = run.with_suffix(".csv")
    listed.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{path}\n" for path in clips.unlabeled if variant != LABELED_ONLY]
    for name in clips.sets:
        if name != "cameramotion8":
            held_out = clips.held_out(unit, name)
            kept = [row for row, out in zip(clips.rows(name), held_out, strict=True) if not out]
            lines += [f"{clips.videos / path}\n" for path, _, _ in kept]
    listed.write_text("".join(lines))
    data = [f"train.seed={unit}", f"data.root={clips.videos}", f"data.pretrain={listed.absolute()}"]
    settings = [part for each in (*data, *BASE, *VARIANTS[variant]) for part in ("--set", each)]
    command = ("pretrain", "--recipe", "small", *settings, "-o", run, "-q", "--gpus", "cpu")
    measuring.everest(*command, show=True)
    model = everest.load_model(run)
    assert isinstance(model, PretrainingModel)
    return model


@torch.no_grad()
def tokens_of(model: PretrainingModel, clips: torch.Tensor) -> NDArray[np.float32]:
    """The encoded tokens (N, K, D) of clips (N, C, T, H, W) uint8."""
    parts = (encode_clips(model, model.pixels.normalize(part), None).tokens for part in clips.split(32))
    return torch.cat(list(parts)).float().numpy()


def accuracy(answers: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The percentage of right answers (N, C)."""
    return 100 * float((answers.argmax(axis=1) == labels).mean())


def few_of_each(
    known: NDArray[np.int64], labels: NDArray[np.int64], seed: int
) -> Iterator[NDArray[np.int64]]:
    """Yields `DRAWS` times the numbers of at most `FEW` random known clips of each class."""
    rng = np.random.default_rng(seed)
    for _ in range(DRAWS):
        order = rng.permutation(known)
        yield np.concatenate([order[labels[order] == label][:FEW] for label in np.unique(labels[known])])


def measured(
    features: NDArray[np.float32], rows: list[tuple[str, int, str]], held_out: NDArray[np.bool_], seed: int
) -> dict[str, float]:
    """Percentages of right answers about the held-out clips, and of the precision of their ten nearest."""
    labels, groups = np.array([label for _, label, _ in rows]), np.array([group for *_, group in rows])
    known, head = ~held_out, Head(outputs=int(labels.max()) + 1)
    of_known = (features[known], labels[known], features[held_out], head)
    answers = {"linear": linear(*of_known, seed=seed), "knn": classifiers.nearest_neighbors(*of_known)}
    found = {name: accuracy(answer, labels[held_out]) for name, answer in answers.items()}
    near = classifiers.measure_precision(
        classifiers.LabeledFeatures(features[held_out], labels[held_out], groups[held_out]),
        classifiers.LabeledFeatures(features[known], labels[known], groups[known]),
    )
    assert near is not None
    few = []
    for sampled in few_of_each(np.flatnonzero(known), labels, seed):
        answer = linear(features[sampled], labels[sampled], features[held_out], head, seed=seed)
        few.append(accuracy(answer, labels[held_out]))
    return {**found, "retrieval": near, "few": float(np.mean(few))}


def of_unit(variant: str, unit: int, clips: Clips, folder: Path) -> dict[str, Any]:
    """The measures of every set for one variant or baseline."""
    model = None
    if variant == RANDOM:
        torch.manual_seed(unit)
        built = pretrain_spec(clips.recipe).build().eval()
        assert isinstance(built, PretrainingModel)
        model = built
    elif variant != DIFFERENCES:
        model = pretrained(variant, unit, clips, folder)
    result = {}
    for name in clips.sets:
        pixels, rows, held_out = clips.pixels(name), clips.rows(name), clips.held_out(unit, name)
        if model is None:
            result[name] = measured(difference_image(pixels, DIFFERENCE_SIDE).numpy(), rows, held_out, unit)
            continue
        tokens = tokens_of(model, pixels)  # (N, K, D)
        result[name] = measured(tokens.mean(axis=1), rows, held_out, unit)
        labels = np.array([label for _, label, _ in rows])
        answers = classifiers.attentive(
            *(tokens[~held_out], labels[~held_out], tokens[held_out], Head(outputs=int(labels.max()) + 1)),
            heads=model.encoder.num_heads,
            seed=unit,
            device=torch.device("cpu"),
        )
        result[name]["attentive"] = accuracy(answers, labels[held_out])
    return result


def curves(folder: Path, variant: str) -> dict[str, list[list[float]]]:
    """The lowest and the highest mean over the units of each value between views, near the steps of `AT`."""
    by_unit = []
    for path in sorted(run_folder(folder, variant, 0).parent.glob("*/metrics.jsonl")):
        rows = [row for row in map(json.loads, path.read_text().splitlines()) if "view_spread" in row]
        if len(rows) >= AT[-1].stop:
            known = [name for name in CURVES if name in rows[0]]
            by_unit.append({name: [fmean(row[name] for row in rows[at]) for at in AT] for name in known})
    return {
        name: [
            [round(edge(unit[name][place] for unit in by_unit), 3) for edge in (min, max)]
            for place in range(len(AT))
        ]
        for name in CURVES
        if by_unit and name in by_unit[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", type=Path, help="folder of the lists")
    parser.add_argument("folder", type=Path, help="of runs and results, where a later call resumes")
    parser.add_argument("--arm", action="append", choices=VARIANTS, help="one of several; none: all")
    parser.add_argument("--unit", type=int, action="append", help="one of several; none: all")
    parser.add_argument("--report", action="store_true", help="add the units to the results")
    options = parser.parse_args()
    clips = Clips(options.videos.absolute(), load_recipe("small", overrides=BASE))
    folder = options.folder.absolute()
    if options.report:
        written = RESULTS_OF_LETTERS if clips.sets == [LETTERS] else RESULTS
        document = json.loads(written.read_text()) if written.exists() else {"results": {}, "curves": {}}
        earlier, found = document["results"], read_units(folder)
        variants = [variant for variant in (RANDOM, DIFFERENCES, *VARIANTS) if variant in {*earlier, *found}]
        results = {variant: {**earlier.get(variant, {}), **found.get(variant, {})} for variant in variants}
        of_runs = {variant: values for variant in variants if (values := curves(folder, variant))}
        document = {
            "base": BASE,
            "variants": VARIANTS,
            "results": results,
            "curves": document["curves"] | of_runs,
        }
        measuring.write_results(written, document)
        return
    folder.mkdir(parents=True, exist_ok=True)
    variants = (RANDOM, DIFFERENCES, *(options.variant or VARIANTS))
    for unit, variant in product(options.unit or range(FOLDS * PARTITIONS), variants):
        path = folder / f"{unit} {variant}.json"
        if not path.exists():
            found = of_unit(variant, unit, clips, folder)
            path.write_text(json.dumps(found))
            linear_top1 = {name: round(values["linear"], 1) for name, values in found.items()}
            print(path.stem, linear_top1, flush=True)


if __name__ == "__main__":
    main()
