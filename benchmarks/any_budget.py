"""One checkpoint for all budgets of computation, and clips that keep tokens by their content, on real clips.

    python benchmarks/any_budget.py VIDEOS runs/budgets
    python benchmarks/any_budget.py VIDEOS runs/budgets --report

A unit is a third of the groups (persons, cameras) that is held out, and a seed, as in view_features.py. For
each unit a classifier is fine-tuned from scratch with each keep ratio of `ARMS`: fixed ones, and a range of
which each step draws one. Each is then evaluated on the held-out clips with several keep ratios, and with
thresholds on importance, which are chosen on the training clips for the same mean keep ratios. A call that
was stopped is resumed. Differences are paired by unit.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from pathlib import Path
from shutil import rmtree
from typing import Any, Final

from held_out_clips import FOLDS, PARTITIONS, Clips
from measuring import HERE, difference_text, markdown
from view_features import BASE

import everest
from everest.config.recipe import load_recipe
from everest.models.classifier import VideoClassifier
from everest.sweep.statistics import paired, spread

SETS: Final = ("surveillance2", "interaction6")
CONTENT: Final = SETS[:1]  # evaluated with thresholds, too
STEPS: Final = 400
SETTINGS: Final = (  # of all runs
    *(*BASE, "data.size=48", "data.flip=false", "data.val=null", "train.workers=0"),
    *("eval.clips=1", "eval.crops=1", f"finetune.steps={STEPS}", f"finetune.warmup_steps={STEPS // 10}"),
)
RANGE: Final = "[0.3, 1.0]"
ARMS: Final = (RANGE, "0.3", "1.0")  # keep ratios of fine-tuning
KEEPS: Final = (0.1, 0.2, 0.3, 0.6, 1.0)  # of evaluation
MEANS: Final = KEEPS[:-1]  # of thresholds
RESULTS: Final = HERE / "results" / "any_budget.json"
Results = dict[str, dict[str, dict[str, Any]]]  # by set, arm and unit, as `evaluated`


def fine_tuned(folder: Path, clips: Clips, lists: dict[str, Path], arm: str, unit: int) -> Path:
    """The run of a keep ratio, trained on the known clips of a unit."""
    settings = (
        *SETTINGS,
        *(f"data.{name}={path}" for name, path in lists.items()),
        f"finetune.selection.keep_ratio={arm}",
    )
    return everest.finetune(
        "small", init=None, data=clips.videos, overrides=settings, output=folder, seed=unit, cpu=True
    )


def evaluated(run: Path, lists: dict[str, Path], *, by_content: bool) -> dict[str, Any]:
    """Accuracy, keep ratio and GMACs of a view on the held-out clips, by keep ratio and by threshold."""
    model = everest.load_model(run)
    assert isinstance(model, VideoClassifier)
    above: tuple[float, ...] = ()
    if by_content:  # thresholds are chosen on the known clips
        known = everest.evaluate(model, test=str(lists["train"]), keep_above=(0.0,))["thresholds"]
        above = tuple(row["above"] for row in known if row["keep"] in MEANS)
    rows = everest.evaluate(model, test=str(lists["test"]), keep=KEEPS, keep_above=above)["sweep"]
    found = [{name: row[name] for name in ("top1", "keep", "gmacs")} for row in rows]
    return {
        "keep": dict(zip(map(str, KEEPS), found, strict=False)),
        "above": dict(zip(map(str, MEANS), found[len(KEEPS) :], strict=False)),
    }


def write_lists(folder: Path, clips: Clips, name: str, unit: int) -> dict[str, Path]:
    """The clips that a unit knows and those that it holds out, as lists."""
    folder.mkdir(parents=True, exist_ok=True)
    held_out, rows = clips.held_out(unit, name), clips.rows(name)
    lists = {part: folder / f"{name}-{unit}-{part}.csv" for part in ("train", "test")}
    for part, is_held_out in (("train", False), ("test", True)):
        chosen = [row for row, out in zip(rows, held_out, strict=True) if out == is_held_out]
        text = "".join(f"{clips.videos / path},{label}\n" for path, label, _ in chosen)
        lists[part].write_text(f"path,label\n{text}")
    return lists


def budgets_table(results: Results) -> str:
    """For each set and keep ratio of evaluation the accuracy of each arm, and the range less the others."""
    rows = []
    for name, keep in product(results, map(str, KEEPS)):
        accuracy = {
            arm: {int(unit): found["keep"][keep]["top1"] for unit, found in units.items()}
            for arm, units in results[name].items()
        }
        gmacs = {found["keep"][keep]["gmacs"] for found in results[name][RANGE].values()}
        cells = [f"{spread(list(accuracy[arm].values())).mean:.1f}" for arm in ARMS]
        cells += [difference_text(paired(accuracy[RANGE], accuracy[arm])) for arm in ARMS[1:]]
        rows.append([name, str(len(accuracy[RANGE])), keep, f"{gmacs.pop():.3f}", *cells])
    trained = ["trained with 0.3 to 1.0", *(f"with {arm}" for arm in ARMS[1:])]
    differences = [f"range less {arm}" for arm in ARMS[1:]]
    return markdown(["set", "units", "keep ratio", "GMACs", *trained, *differences], rows)


def content_table(results: Results) -> str:
    """Accuracy and GMACs of a view with thresholds, and with keep ratios that cost as much in the mean."""
    rows = []
    for name, arm, mean in product(CONTENT, ARMS[:2], map(str, MEANS)):
        units = results[name][arm]
        pairs = {unit: (found["keep"][mean], found["above"][mean]) for unit, found in units.items()}
        cells = [
            f"{spread([pair[i]['top1'] for pair in pairs.values()]).mean:.1f} "
            f"({spread([pair[i]['gmacs'] for pair in pairs.values()]).mean:.3f})"
            for i in range(2)
        ]
        fixed, by_content = ({int(u): pair[i]["top1"] for u, pair in pairs.items()} for i in range(2))
        text = difference_text(paired(by_content, fixed))
        rows.append([name, arm.strip("[]").replace(", ", " to "), mean, str(len(units)), *cells, text])
    titles = ["keep ratio (GMACs)", "threshold (mean GMACs)", "threshold less keep ratio"]
    return markdown(["set", "trained with", "mean keep ratio", "units", *titles], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", type=Path, help="folder of the lists")
    parser.add_argument("folder", type=Path, help="of runs and results, where a later call resumes")
    parser.add_argument("--unit", type=int, action="append", help="one of several; none: all")
    parser.add_argument("--report", action="store_true", help=f"write {RESULTS.name} and print its tables")
    options = parser.parse_args()
    folder = options.folder.absolute()
    if options.report:
        results: Results = {}
        for path in sorted(folder.glob("*.json")):
            name, unit, arm = path.stem.split(" ", 2)
            results.setdefault(name, {}).setdefault(arm, {})[unit] = json.loads(path.read_text())
        RESULTS.write_text(json.dumps({"settings": SETTINGS, "results": results}, indent=1) + "\n")
        print(budgets_table(results), content_table(results), sep="\n\n")
        return
    clips = Clips(options.videos.absolute(), load_recipe("small", overrides=BASE))
    for unit, name, arm in product(options.unit or range(FOLDS * PARTITIONS), SETS, ARMS):
        path = folder / f"{name} {unit} {arm}.json"
        if path.exists():
            continue
        began = time.monotonic()
        run, lists = path.with_suffix(""), write_lists(folder, clips, name, unit)
        fine_tuned(run, clips, lists, arm, unit)
        path.write_text(json.dumps(evaluated(run, lists, by_content=name in CONTENT)))
        print(path.stem, f"{time.monotonic() - began:.0f} s", flush=True)
        rmtree(run)


if __name__ == "__main__":
    main()
