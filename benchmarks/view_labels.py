"""Few labels of real clips: fine-tuning from scratch against from pre-training, on people never seen before.

    python benchmarks/view_labels.py VIDEOS runs/features runs/labels
    python benchmarks/view_labels.py VIDEOS runs/features runs/labels --report

Units, held-out groups and pre-trained encoders are the same as in view_features.py, whose folder of
runs is given first. Each arm is fine-tuned with every number of steps, and compared at its best one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
from measuring import HERE, markdown
from view_features import BASE, FOLDS, PARTITIONS, Clips, difference_text, pretrained

import everest
from everest.config.recipe import load_recipe
from everest.models.classifier import VideoClassifier
from everest.sweep.statistics import paired, spread

SETS: Final = ("weizmann10", "interaction6", "cameramotion8")
SCRATCH: Final = "from scratch"
PRETRAINED: Final = "contrast and camera"
LABELS: Final = {2: (200, 400), None: (400, 800)}  # numbers a class, None: all, and the steps for them
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
        *(f"finetune.steps={steps}", f"finetune.warmup_steps={steps // 10}"),
    )
    run = everest.finetune(
        "small", init=init, data=clips.videos, overrides=settings, output=folder / "run", seed=unit, cpu=True
    )
    model = everest.load_model(run)
    assert isinstance(model, VideoClassifier)
    return everest.evaluate(model)["top1"]


def keys() -> Iterator[tuple[str, int | None, int, str]]:
    """Yields set, labels a class, steps and arm of each run: the larger number of steps of all sets first."""
    for place in (1, 0):
        for name, (number, steps), arm in product(SETS, LABELS.items(), (SCRATCH, PRETRAINED)):
            yield name, number, steps[place], arm


def labels_table(results: dict[str, dict[str, float]]) -> str:
    """For each set and number of labels both arms at their best steps, and the difference paired by unit."""
    rows = []
    for name, number in product(SETS, LABELS):
        best = []
        for arm in (SCRATCH, PRETRAINED):
            of_arm = {steps: f"{name} {number or 'all'} {steps} {arm}" for steps in LABELS[number]}
            by_steps = {steps: results[key] for steps, key in of_arm.items() if key in results}
            if by_steps:
                steps = max(by_steps, key=lambda each: spread(list(by_steps[each].values())).mean)
                best.append((steps, {int(unit): value for unit, value in by_steps[steps].items()}))
        if len(best) < 2:  # not run yet
            continue
        cells = [f"{spread(list(units.values())).mean:.1f} ({steps} steps)" for steps, units in best]
        text = difference_text(paired(best[1][1], best[0][1]))
        rows.append([name, str(number or "all"), str(len(best[0][1])), *cells, text])
    return markdown(["set", "labels a class", "units", SCRATCH, PRETRAINED, "difference"], rows)


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
        results: dict[str, Any] = {}
        for path in sorted(folder.glob("*.json")):
            unit, *key, _ = path.name.split(".")
            results.setdefault(" ".join(key), {})[unit] = json.loads(path.read_text())
        RESULTS.write_text(json.dumps({"base": BASE, "results": results}, indent=1) + "\n")
        print(labels_table(results))
        return
    clips = Clips(options.videos.absolute(), load_recipe("small", overrides=BASE))
    encoders = options.encoders.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for (name, number, steps, arm), unit in product(keys(), options.unit or range(FOLDS * PARTITIONS)):
        path = folder / f"{unit}.{name}.{number or 'all'}.{steps}.{arm}.json"
        if path.exists():
            continue
        held_out, rows = clips.held_out(unit, name), clips.rows(name)
        known = labeled([row for row, out in zip(rows, held_out, strict=True) if not out], number, unit)
        tested = [row for row, out in zip(rows, held_out, strict=True) if out]
        init = None
        if arm == PRETRAINED:
            pretrained(arm, unit, clips, encoders, ())
            init = encoders / arm.replace(" ", "-") / str(unit)
        found = top1(path.with_suffix(""), clips, known, tested, init=init, steps=steps, unit=unit)
        path.write_text(json.dumps(found))
        print(path.name, f"{found:.1f}", flush=True)


if __name__ == "__main__":
    main()
