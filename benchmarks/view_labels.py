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


def top1(
    folder: Path,
    clips: Clips,
    known: list[Row],
    tested: list[Row],
    *,
    init: Path | None,
    steps: int,
    rate: float,
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
        *(f"finetune.steps={steps}", f"finetune.warmup_steps={steps // 10}", f"finetune.base_lr={rate}"),
    )
    run = everest.finetune(
        "small", init=init, data=clips.videos, overrides=settings, output=folder / "run", seed=unit, cpu=True
    )
    model = everest.load_model(run)
    assert isinstance(model, VideoClassifier)
    return everest.evaluate(model)["top1"]


class Key(NamedTuple):
    """A fine-tuning: its data and settings."""

    name: str  # of the set
    number: int | None  # labels a class
    steps: int
    rate: float
    arm: str

    def __str__(self) -> str:
        return f"{self.name} {self.number or 'all'} {self.steps} {self.rate} {self.arm}"


def keys() -> Iterator[Key]:
    for number, steps in LABELS.items():
        yield from starmap(Key, product(SETS, [number], steps, RATES, (SCRATCH, PRETRAINED)))


def labels_table(results: dict[str, dict[str, float]]) -> str:
    """Both arms of each set and number of labels, with equal steps and each with its best; paired by unit."""
    rows = []
    for name, number in product(SETS, sorted(LABELS, key=lambda number: number or 1000)):
        for steps in (*LABELS[number], None):
            best = []
            for arm in (SCRATCH, PRETRAINED):
                found = [key for key in keys() if key[:2] == (name, number) and key.arm == arm]
                found = [key for key in found if len(results.get(str(key), ())) >= FEWEST]
                found = [key for key in found if steps in (None, key.steps)]
                if found:
                    best.append(max(found, key=lambda key: spread(list(results[str(key)].values())).mean))
            if len(best) < 2:  # not run yet
                continue
            units = [{int(unit): value for unit, value in results[str(key)].items()} for key in best]
            cells = [
                f"{spread(list(values.values())).mean:.1f} ({key.steps} steps, {key.rate})"
                for key, values in zip(best, units, strict=True)
            ]
            text = difference_text(paired(units[1], units[0]))
            rows.append([name, str(number or "all"), str(steps or "best"), str(len(units[0])), *cells, text])
    return markdown(["set", "labels a class", "steps", "units", SCRATCH, PRETRAINED, "difference"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", type=Path, help="folder of the lists")
    parser.add_argument("encoders", type=Path, help="of the runs of view_features.py, where it resumes")
    parser.add_argument("folder", type=Path, help="of runs and results, where a later call resumes")
    parser.add_argument("--unit", type=int, action="append", help="one of several; none: all")
    parser.add_argument("--report", action="store_true", help=f"write {RESULTS.name} and print its table")
    options = parser.parse_args()
    folder = options.folder.absolute()
    if options.report:
        results = read_units(folder)
        RESULTS.write_text(json.dumps({"base": BASE, "results": results}, indent=1) + "\n")
        print(labels_table(results))
        return
    clips = Clips(options.videos.absolute(), load_recipe("small", overrides=BASE))
    encoders = options.encoders.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for key, unit in product(keys(), options.unit or range(FEWEST)):
        path = folder / f"{unit} {key}.json"
        if path.exists():
            continue
        held_out, rows = clips.held_out(unit, key.name), clips.rows(key.name)
        known = labeled([row for row, out in zip(rows, held_out, strict=True) if not out], key.number, unit)
        tested = [row for row, out in zip(rows, held_out, strict=True) if out]
        init = None
        if key.arm == PRETRAINED:
            init = run_folder(encoders, key.arm, unit)
            if not (init / "model.safetensors").exists():
                pretrained(key.arm, unit, clips, encoders)
        runs = folder / f"{unit}-{str(key).replace(' ', '-').replace(',', '')}"
        found = top1(runs, clips, known, tested, init=init, steps=key.steps, rate=key.rate, unit=unit)
        path.write_text(json.dumps(found))
        print(path.name, f"{found:.1f}", flush=True)
        rmtree(runs)


if __name__ == "__main__":
    main()
