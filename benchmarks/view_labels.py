"""Few labels of real clips: fine-tuning from scratch against from pre-training, on people never seen before.

    python benchmarks/view_labels.py VIDEOS runs/features runs/labels
    python benchmarks/view_labels.py VIDEOS runs/features runs/labels --report

VIDEOS is the folder of actions, or that of lips with other folders of runs. Units, held-out groups and
pre-trained encoders are the same as in view_features.py, whose folder of runs is given first. Each variant is
fine-tuned with every number of steps, learning rate and fraction of kept tokens, and compared at its best
ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import product, starmap
from pathlib import Path
from shutil import rmtree
from statistics import fmean
from typing import Final, NamedTuple

import numpy as np
from held_out_clips import LETTERS, Clips
from measuring import HERE, difference_text, markdown, read_units, write_results
from view_features import BASE, pretrained, run_folder

import everest
from everest.config.recipe import load_recipe
from everest.models.classifier import VideoClassifier
from everest_workflows.sweep.statistics import compare_pairs

SETS: Final = ("interaction6", "cameramotion8", "weizmann10", "surveillance2", "tabletennis2", LETTERS)
SCRATCH: Final = "from scratch"
PRETRAINED: Final = "contrast, uniform and camera"
VARIANTS: Final = (SCRATCH, PRETRAINED, "the same, 4 times the steps")
LABELS: Final = {  # numbers a class, None: all, and the steps for them
    2: (100, 400),
    None: (400, 1200, 2400),
    1: (100, 400),
    5: (100, 400),
}
FIRST: Final = range(5)  # units of each setting, on which the best one is chosen
WHOLE: Final = range(9)  # units of three whole partitions
DRAWS: Final = 3  # of the labels and seeds; settings are chosen on the first one
BEST: Final = {  # the best settings of each variant, with draws and units: the last ones are the most certain
    "best": (1, FIRST),
    f"best, {DRAWS} draws": (DRAWS, FIRST),
    "best, 3 partitions": (1, WHOLE),
    f"best, {DRAWS} draws, 3 partitions": (DRAWS, WHOLE),
}
RATES: Final = (0.016, 0.004)  # base_lr; the first is the recipe's
KEPT: Final = (0.15, 0.5)  # keep ratios; the first is the recipe's
RESULTS: Final = HERE / "results" / "view_labels.json"
Row = tuple[str, int, str]  # path, label and group of a clip


def labeled(rows: list[Row], number: int | None, seed: int) -> list[Row]:
    """At most `number` random clips of each class."""
    if number is None:
        return rows
    order = np.random.default_rng(seed).permutation(len(rows))
    chosen: dict[int, list[Row]] = {}
    for place in order:
        chosen.setdefault(rows[place][1], []).append(rows[place])
    return [row for of_class in chosen.values() for row in of_class[:number]]


class Key(NamedTuple):
    """A fine-tuning: its data and settings."""

    name: str  # of the set
    number: int | None  # labels a class
    steps: int
    rate: float
    kept: float
    variant: str
    draw: int = 0  # of the labels and the seed

    def __str__(self) -> str:
        text = f"{self.name} {self.number or 'all'} {self.steps} {self.rate} {self.variant}"
        kept = "" if self.kept == KEPT[0] else f" kept {self.kept}"
        return text + kept + (f" draw {self.draw}" if self.draw else "")


def top1(
    folder: Path, clips: Clips, known: list[Row], tested: list[Row], *, init: Path | None, key: Key, seed: int
) -> float:
    """The accuracy on held-out clips after fine-tuning with the known ones."""
    folder.mkdir(parents=True, exist_ok=True)
    lists = {name: folder / f"{name}.csv" for name in ("train", "test")}
    for name, rows in (("train", known), ("test", tested)):
        text = "".join(f"{clips.videos / path},{label}\n" for path, label, _ in rows)
        lists[name].write_text(f"path,label\n{text}")
    settings = (
        *BASE,
        *(f"data.{name}={path}" for name, path in lists.items()),
        *("data.flip=false", "data.val=null", "train.workers=0", "eval.clips=1", "eval.crops=1"),
        *(f"finetune.steps={key.steps}", f"finetune.warmup_steps={key.steps // 10}"),
        f"train.seed={seed}",
        *(f"finetune.base_lr={key.rate}", f"finetune.selection.keep_ratio={key.kept}"),
    )
    run = everest.finetune(
        "small", init=init, data=clips.videos, overrides=settings, output=folder / "run", cpu=True
    )
    model = everest.load_model(run)
    assert isinstance(model, VideoClassifier)
    return everest.evaluate(model)["top1"]


def of_unit(folder: Path, clips: Clips, encoders: Path, key: Key, unit: int) -> float:
    """The accuracy on the clips that a unit holds out."""
    seed = 1000 * key.draw + unit
    held_out, rows = clips.held_out(unit, key.name), clips.rows(key.name)
    known = [row for row, out in zip(rows, held_out, strict=True) if not out]
    tested = [row for row, out in zip(rows, held_out, strict=True) if out]
    init = None if key.variant == SCRATCH else run_folder(encoders, key.variant, unit)
    runs = folder / f"{unit}-{str(key).replace(' ', '-').replace(',', '')}"
    known = labeled(known, key.number, seed)
    found = top1(runs, clips, known, tested, init=init, key=key, seed=seed)
    rmtree(runs)
    return found


def keys() -> Iterator[Key]:
    for number, steps in LABELS.items():
        yield from starmap(Key, product(SETS, [number], steps, RATES, KEPT, VARIANTS))


def best_key(
    results: dict[str, dict[str, float]], name: str, number: int | None, steps: int | None, variant: str
) -> Key | None:
    """The settings of a variant with the highest mean; None for the steps: any number of them."""
    found = [key for key in keys() if (key.name, key.number, key.variant) == (name, number, variant)]
    means = {
        key: fmean(values)
        for key in found
        if steps in (None, key.steps) and (values := measured_units(results, key).values())
    }
    return max(means, key=means.__getitem__, default=None)


def measured_units(
    results: dict[str, dict[str, float]], key: Key | None, draws: int = 1, units: range = FIRST
) -> dict[int, float]:
    """The mean over the first draws of the labels by unit; empty if one of them was not run."""
    if key is None:
        return {}
    found = [results.get(str(key._replace(draw=draw)), {}) for draw in range(draws)]
    if not all(str(unit) in values for values in found for unit in units):
        return {}
    return {unit: fmean(values[str(unit)] for values in found) for unit in units}


def labels_table(results: dict[str, dict[str, float]]) -> str:
    """The variants of each set and number of labels, at equal steps and each at its best; paired by unit."""
    rows = []
    for name, number in product(SETS, sorted(LABELS, key=lambda number: number or 1000)):
        of_steps = [(str(steps), steps, 1, FIRST) for steps in LABELS[number]]
        for shown, steps, draws, units in (*of_steps, *((shown, None, *of) for shown, of in BEST.items())):
            best = {variant: best_key(results, name, number, steps, variant) for variant in VARIANTS}
            found = {variant: measured_units(results, key, draws, units) for variant, key in best.items()}
            if found[SCRATCH] and any(found[variant] for variant in VARIANTS[1:]):  # else not run yet
                cells = [variant_cell(best[variant], found[variant], found[SCRATCH]) for variant in VARIANTS]
                rows.append([name, str(number or "all"), shown, str(len(units)), *cells])
    return markdown(["set", "labels a class", "steps", "units", *VARIANTS], rows)


def variant_cell(key: Key | None, units: dict[int, float], from_scratch: dict[int, float]) -> str:
    """The mean accuracy of a variant, its settings and its difference from scratch."""
    if key is None or not units:
        return ""
    text = f"{fmean(units.values()):.1f} ({key.steps} steps, {key.rate}, {100 * key.kept:g} %)"
    return (
        text if key.variant == SCRATCH else f"{text}<br>{difference_text(compare_pairs(units, from_scratch))}"
    )


def kept_table(results: dict[str, dict[str, float]]) -> str:
    """The larger fraction of kept tokens less the smaller one, with one learning rate, paired by unit."""
    rows = []
    for name, number in product(SETS, LABELS):
        for variant, steps in product(VARIANTS, LABELS[number]):
            keys = [Key(name, number, steps, RATES[0], kept, variant) for kept in KEPT]
            smaller, larger = (measured_units(results, key) for key in keys)
            if smaller and larger:
                means = [f"{fmean(units.values()):.1f}" for units in (smaller, larger)]
                difference = difference_text(compare_pairs(larger, smaller))
                rows.append([name, str(number or "all"), str(steps), variant, *means, difference])
    fractions = [f"{100 * kept:g} % kept" for kept in KEPT]
    return markdown(["set", "labels a class", "steps", "pre-training", *fractions, "difference"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", type=Path, help="folder of the lists")
    parser.add_argument("encoders", type=Path, help="of the runs of view_features.py, where it resumes")
    parser.add_argument("folder", type=Path, help="of runs and results, where a later call resumes")
    parser.add_argument("--unit", type=int, action="append", help="one of several; none: all")
    parser.add_argument("--set", action="append", choices=SETS, help="one of several; none: all")
    parser.add_argument("--arm", action="append", choices=VARIANTS, help="one of several; none: all")
    numbers = [number or 0 for number in LABELS]
    parser.add_argument("--labels", action="append", type=int, choices=numbers, help="a class, 0: all")
    parser.add_argument(
        "--draw",
        type=int,
        default=0,
        choices=range(DRAWS),
        help="another draw of labels and seeds, with the best settings",
    )
    parser.add_argument("--report", action="store_true", help=f"add the units to {RESULTS.name}")
    options = parser.parse_args()
    folder = options.folder.absolute()
    results = json.loads(RESULTS.read_text())["results"]
    for key, units in read_units(folder).items():
        results[key] = results.get(key, {}) | units
    if options.report:
        write_results(RESULTS, {"base": BASE, "results": results})
        print(labels_table(results), kept_table(results), sep="\n\n")
        return
    clips = Clips(options.videos.absolute(), load_recipe("small", overrides=BASE))
    encoders = options.encoders.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    chosen_numbers = {number or None for number in options.labels or LABELS}
    sets, variants, units = options.set or SETS, options.variant or VARIANTS, options.unit or FIRST
    chosen = [key for key in keys() if key.name in clips.sets and key.name in sets]
    chosen = [key for key in chosen if key.number in chosen_numbers and key.variant in variants]
    if options.draw:
        best = [best_key(results, key.name, key.number, None, key.variant) for key in chosen]
        chosen = [key._replace(draw=options.draw) for key in dict.fromkeys(best) if key is not None]
    paths = {(key, unit): folder / f"{unit} {key}.json" for key, unit in product(chosen, units)}
    missing = [each for each, path in paths.items() if not path.exists()]
    for variant, unit in dict.fromkeys((key.variant, unit) for key, unit in missing):
        if variant != SCRATCH:  # resumes, and leaves a complete run as it is
            pretrained(variant, unit, clips, encoders)
    for key, unit in missing:
        found = of_unit(folder, clips, encoders, key, unit)
        paths[key, unit].write_text(json.dumps(found))
        print(paths[key, unit].name, f"{found:.1f}", flush=True)


if __name__ == "__main__":
    main()
