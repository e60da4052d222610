"""Letters read from the lips of a new talker: from scratch, and from pre-training on other people's mouths.

    python benchmarks/view_letters.py LIPS runs/letters --seed 0 --seed 1
    python benchmarks/view_letters.py LIPS runs/letters --report

The recipe is what `everest recipes suggest` writes for the lists, with fewer steps. Both arms are evaluated
with their last weights, on the validation list and on the test list, of one talker each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Final

from measuring import HERE, difference_text, everest, markdown

from everest.sweep.report import paired, spread

ARMS: Final = {"sc": "from scratch", "ft": "from pre-training"}
LISTS: Final = ("val", "test")
PRETRAIN: Final = ("pretrain.steps=1200", "pretrain.warmup_steps=120", "pretrain.probe.every=0")
FINETUNE: Final = (
    "finetune.steps=800",
    "finetune.warmup_steps=80",
    "finetune.mixup=0",
    "finetune.selection.keep_ratio=0.15",
)
RESULTS: Final = HERE / "results" / "view_letters.json"
Results = dict[str, dict[str, dict[str, float]]]  # accuracies by list, arm and seed


def run_seed(seed: int, lips: Path, folder: Path) -> None:
    """All runs of a seed; what an earlier call has finished stays."""
    recipe = folder / "my.yaml"
    if not recipe.exists():
        lists = ("--train", "letters26_train.csv", "--pretrain", "pretrain.csv")
        everest("recipes", "suggest", lips, *lists, "--device", "cpu", "--output", recipe)
    common = ("--recipe", recipe, "--seed", seed, "--set", "train.workers=0", "--gpus", "cpu", "-q")
    start = folder / f"pre-{seed}"
    everest("pretrain", *common, *(f"--set={value}" for value in PRETRAIN), "-o", start)
    for arm, init in (("ft", start), ("sc", "none")):
        run = folder / f"{arm}-{seed}"
        everest("finetune", *common, *(f"--set={value}" for value in FINETUNE), "--init", init, "-o", run)
        for name in LISTS:
            tested = ("--set", f"data.test=letters26_{name}.csv", "--which", "newest", "--gpus", "cpu")
            found = everest("eval", "-c", run, *tested, "--json", "-q")
            (folder / f"{arm}-{seed}-{name}.json").write_text(found)


def collected(folder: Path) -> Results:
    """The accuracies by list, arm and seed."""
    return {
        name: {
            title: {
                path.stem.split("-")[1]: json.loads(path.read_text())["top1"]
                for path in sorted(folder.glob(f"{arm}-*-{name}.json"))
            }
            for arm, title in ARMS.items()
        }
        for name in LISTS
    }


def letters_table(results: Results) -> str:
    """Both arms with their difference, paired by seed, for each list."""
    rows = []
    for name, by_arm in results.items():
        before, after = ({int(seed): top1 for seed, top1 in by_arm[arm].items()} for arm in ARMS.values())
        means = [f"{spread(list(units.values())).mean:.1f}" for units in (before, after)]
        rows.append([name, str(len(before)), *means, difference_text(paired(after, before))])
    return markdown(["list", "seeds", *ARMS.values(), "difference"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "lips", type=Path, help="folder of the lists letters26_train.csv, ... and pretrain.csv"
    )
    parser.add_argument("folder", type=Path, help="of runs and results, where a later call resumes")
    parser.add_argument("--seed", type=int, action="append", default=[], help="one of several")
    parser.add_argument("--report", action="store_true", help=f"write {RESULTS.name} and print its table")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for seed in options.seed:
        run_seed(seed, options.lips.absolute(), options.folder.absolute())
    if options.report:
        results = collected(options.folder)
        document = {"settings": [*PRETRAIN, *FINETUNE], "results": results}
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")
        print(letters_table(results))


if __name__ == "__main__":
    main()
