"""Few labels of real clips: fine-tuning from scratch against from pre-training, on people never seen before.

    python benchmarks/view_labels.py VIDEOS runs/features runs/labels
    python benchmarks/view_labels.py VIDEOS runs/features runs/labels --report

Units, held-out groups and pre-trained encoders are the same as in view_features.py, whose folder of
runs is given first. Each arm is fine-tuned with every number of steps and every learning rate, and compared
at its best ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import product, starmap
from pathlib import Path
from shutil import rmtree
from typing import Final, NamedTuple

import numpy as np
from held_out_clips import Clips
from measuring import HERE, difference_text, markdown, read_units
from view_features import BASE, pretrained, run_folder

import everest
from everest.config.recipe import load_recipe
from everest.models.classifier import VideoClassifier
from everest.sweep.statistics import paired, spread

SETS: Final = ("interaction6", "cameramotion8", "weizmann10")
SCRATCH: Final = "from scratch"
PRETRAINED: Final = "contrast, uniform and camera"
ARMS: Final = (SCRATCH, PRETRAINED)
LABELS: Final = {  # numbers a class, None: all, and the steps for them
    2: (100, 400),
    None: (400, 1200),
    1: (100, 400),
    5: (100, 400),
}
FEWEST: Final = 5  # units of each setting
RATES: Final = (0.016, 0.004)  # base_lr; the first is the recipe's
RESULTS: Final = HERE / "results" / "view_labels.json"
Row = tuple[str, int, str]  # path, label and group of a clip


def labeled(rows: list[Row], number: int | None, unit: int) -> list[Row]:
    """At most `number` clips of each class, drawn by the unit."""
    if number is None:
        return rows
    order = np.random.default_rng(unit).permutation(len(rows))
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
    arm: str

    def __str__(self) -> str:
        return f"{self.name} {self.number or 'all'} {self.steps} {self.rate} {self.arm}"


def top1(
    folder: Path,
    clips: Clips,
    known: list[Row],
    tested: list[Row],
    *,
    init: Path | None,
    key: Key,
    unit: int,
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
        f"finetune.base_lr={key.rate}",
    )
    run = everest.finetune(
        "small", init=init, data=clips.videos, overrides=settings, output=folder / "run", seed=unit, cpu=True
    )
    model = everest.load_model(run)
    assert isinstance(model, VideoClassifier)
    return everest.evaluate(model)["top1"]


def keys() -> Iterator[Key]:
    for number, steps in LABELS.items():
        yield from starmap(Key, product(SETS, [number], steps, RATES, ARMS))


def best_key(
    results: dict[str, dict[str, float]], name: str, number: int | None, steps: int | None, arm: str
) -> Key | None:
    """The settings of an arm with the highest mean; None for the steps: any number of them."""
    found = [key for key in keys() if (key.name, key.number, key.arm) == (name, number, arm)]
    found = [key for key in found if steps in (None, key.steps) and len(results.get(str(key), ())) >= FEWEST]
    return max(found, key=lambda key: spread(list(results[str(key)].values())).mean, default=None)


def labels_table(results: dict[str, dict[str, float]]) -> str:
    """The arms of each set and number of labels, with equal steps and each with its best; paired by unit."""
    rows = []
    for name, number in product(SETS, sorted(LABELS, key=lambda number: number or 1000)):
        for steps in (*LABELS[number], None):
            best = {arm: best_key(results, name, number, steps, arm) for arm in ARMS}
            units = {
                arm: {int(unit): value for unit, value in results[str(key)].items()}
                for arm, key in best.items()
                if key is not None
            }
            if SCRATCH not in units or len(units) < 2:  # not run yet
                continue
            cells = []
            for arm, key in best.items():
                if key is None:
                    cells.append("")
                    continue
                mean = spread(list(units[arm].values())).mean
                difference = "" if arm == SCRATCH else difference_text(paired(units[arm], units[SCRATCH]))
                cells.append(
                    f"{mean:.1f} ({key.steps} steps, {key.rate})<br>{difference}".removesuffix("<br>")
                )
            rows.append([name, str(number or "all"), str(steps or "best"), str(len(units[SCRATCH])), *cells])
    return markdown(["set", "labels a class", "steps", "units", *ARMS], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", type=Path, help="folder of the lists")
    parser.add_argument("encoders", type=Path, help="of the runs of view_features.py, where it resumes")
    parser.add_argument("folder", type=Path, help="of runs and results, where a later call resumes")
    parser.add_argument("--unit", type=int, action="append", help="one of several; none: all")
    parser.add_argument("--set", action="append", choices=SETS, help="one of several; none: all")
    parser.add_argument("--arm", action="append", choices=ARMS, help="one of several; none: all")
    parser.add_argument("--labels", action="append", type=int, help="a class, 0: all; none: every number")
    parser.add_argument("--report", action="store_true", help=f"add the units to {RESULTS.name}")
    options = parser.parse_args()
    folder = options.folder.absolute()
    if options.report:
        results = json.loads(RESULTS.read_text())["results"]
        for key, units in read_units(folder).items():
            results[key] = results.get(key, {}) | units
        RESULTS.write_text(json.dumps({"base": BASE, "results": results}, indent=1) + "\n")
        print(labels_table(results))
        return
    clips = Clips(options.videos.absolute(), load_recipe("small", overrides=BASE))
    encoders = options.encoders.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {number or None for number in options.labels or LABELS}
    chosen = [key for key in keys() if key.name in (options.set or SETS) and key.number in numbers]
    chosen = [key for key in chosen if key.arm in (options.arm or ARMS)]
    for key, unit in product(chosen, options.unit or range(FEWEST)):
        path = folder / f"{unit} {key}.json"
        if path.exists():
            continue
        held_out, rows = clips.held_out(unit, key.name), clips.rows(key.name)
        known = labeled([row for row, out in zip(rows, held_out, strict=True) if not out], key.number, unit)
        tested = [row for row, out in zip(rows, held_out, strict=True) if out]
        init = None
        if key.arm != SCRATCH:
            init = run_folder(encoders, key.arm, unit)
            if not (init / "model.safetensors").exists():
                pretrained(key.arm, unit, clips, encoders)
        runs = folder / f"{unit}-{str(key).replace(' ', '-').replace(',', '')}"
        found = top1(runs, clips, known, tested, init=init, key=key, unit=unit)
        path.write_text(json.dumps(found))
        print(path.name, f"{found:.1f}", flush=True)
        rmtree(runs)


if __name__ == "__main__":
    main()
