"""Accuracy by size: small classifiers, from scratch and with a teacher, on people never seen before.

    python benchmarks/students.py VIDEOS runs/features runs/students
    python benchmarks/students.py VIDEOS runs/features runs/students --report

Units, held-out groups and pre-trained encoders are the same as in view_labels.py. The teacher is the encoder
of view_features.py, fine-tuned. Each student starts from scratch, and has the steps and the learning rate of
the teacher. Differences are paired by unit.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any, Final

from held_out_clips import Clips
from measuring import HERE, difference_text, markdown, read_units
from view_features import BASE, run_folder
from view_labels import PRETRAINED, Row

import everest
from everest.config.recipe import load_recipe
from everest.models.classifier import VideoClassifier
from everest.models.cost import count_macs
from everest.models.memory import count_weights
from everest.sweep.statistics import paired, spread

SETS: Final = ("interaction6", "weizmann10")
UNITS: Final = 3
STEPS: Final = 400
TEACHER: Final = "teacher"
STUDENTS: Final = {  # changes of the recipe
    "width 32, 1 block": ("model.width=32", "model.depth=1", "model.heads=2"),
    "width 64, 2 blocks": ("model.width=64", "model.depth=2", "model.heads=2"),
}
WAYS: Final = ("from scratch", "with teacher")
ARMS: Final = (TEACHER, *(f"{size}, {way}" for size, way in product(STUDENTS, WAYS)))
RESULTS: Final = HERE / "results" / "students.json"


def trained(
    folder: Path, clips: Clips, known: list[Row], tested: list[Row], *, arm: str, init: Path | None, unit: int
) -> dict[str, Any]:
    """The accuracy of an arm on held-out clips, its parameters and its GMACs a clip.

    Args:
        folder: of the runs of a set and unit, with that of the teacher.
    """
    lists = {name: folder / f"{name}.csv" for name in ("train", "test")}
    for name, rows in (("train", known), ("test", tested)):
        text = "".join(f"{clips.videos / path},{label}\n" for path, label, _ in rows)
        lists[name].write_text(f"path,label\n{text}")
    size, _, way = arm.rpartition(", ")
    settings = (
        *(*BASE, *(f"data.{name}={path}" for name, path in lists.items())),
        *("data.flip=false", "data.val=null", "train.workers=0", "eval.clips=1", "eval.crops=1"),
        *(f"finetune.steps={STEPS}", f"finetune.warmup_steps={STEPS // 10}", *STUDENTS.get(size, ())),
        *((f"finetune.teacher={folder / TEACHER}",) if way == WAYS[1] else ()),
    )
    output = folder / arm.replace(", ", "-").replace(" ", "-")
    run = everest.finetune(
        "small", init=init, data=clips.videos, overrides=settings, output=output, seed=unit, cpu=True
    )
    model = everest.load_model(run)
    assert isinstance(model, VideoClassifier)
    return {
        "top1": everest.evaluate(model)["top1"],
        "parameters": count_weights(model.spec).total,
        "gmacs": count_macs(model.spec).total / 1e9,
    }


def students_table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """For each set and arm its accuracy; with a teacher less from scratch, paired by unit."""
    rows = []
    for name, arm in product(SETS, ARMS):
        units = {int(unit): found for unit, found in results.get(f"{name} {arm}", {}).items()}
        if len(units) < UNITS:  # not run yet
            continue
        size, _, way = arm.rpartition(", ")
        text = ""
        if way == WAYS[1]:
            before = results[f"{name} {size}, {WAYS[0]}"]
            difference = paired(
                {unit: found["top1"] for unit, found in units.items()},
                {int(unit): found["top1"] for unit, found in before.items()},
            )
            text = difference_text(difference)
        values = [units[unit]["top1"] for unit in sorted(units)]
        shown = f"{spread(values).mean:.1f} ({', '.join(f'{value:.1f}' for value in values)})"
        one = next(iter(units.values()))
        rows.append([name, arm, f"{one['parameters'] / 1e3:.0f} k", f"{one['gmacs']:.3f}", shown, text])
    return markdown(["set", "classifier", "parameters", "GMACs a clip", "top-1 (units)", "difference"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", type=Path, help="folder of the lists")
    parser.add_argument("encoders", type=Path, help="of the runs of view_features.py")
    parser.add_argument("folder", type=Path, help="of runs and results, where a later call resumes")
    parser.add_argument("--report", action="store_true", help=f"write {RESULTS.name} and print its table")
    options = parser.parse_args()
    folder = options.folder.absolute()
    if options.report:
        results = read_units(folder)
        RESULTS.write_text(json.dumps({"base": BASE, "steps": STEPS, "results": results}, indent=1) + "\n")
        print(students_table(results))
        return
    clips = Clips(options.videos.absolute(), load_recipe("small", overrides=BASE))
    for name, arm, unit in product(SETS, ARMS, range(UNITS)):
        path = folder / f"{unit} {name} {arm}.json"
        if path.exists():
            continue
        held_out, rows = clips.held_out(unit, name), clips.rows(name)
        known = [row for row, out in zip(rows, held_out, strict=True) if not out]
        tested = [row for row, out in zip(rows, held_out, strict=True) if out]
        init = run_folder(options.encoders.absolute(), PRETRAINED, unit) if arm == TEACHER else None
        runs = folder / f"{name}-{unit}"
        runs.mkdir(parents=True, exist_ok=True)
        found = trained(runs, clips, known, tested, arm=arm, init=init, unit=unit)
        path.write_text(json.dumps(found))
        print(path.stem, found, flush=True)


if __name__ == "__main__":
    main()
