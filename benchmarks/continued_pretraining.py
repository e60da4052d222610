"""Accuracy after E epochs of pre-training on the demo's videos: from nothing, and from other videos' weights.

    python benchmarks/continued_pretraining.py FOLDER --other /data/videos --seeds 0,1,2

The other weights are of the demo's model, pre-trained on the clips of `--other` (a folder with a list
pretrain.csv). Every row is printed when it is there; rows that FOLDER has already are not computed again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from everest.system.events import silent
from everest_demo.demo import DEMO_SET
from everest_demo.steps import VIDEOS, DemoSteps, one_thread

ARMS = {"nothing": (10, 20), "continued": (5, 10)}  # epochs
OTHER_EPOCHS = 20


def row(steps: DemoSteps, other: Path, arm: str, epochs: int) -> dict[str, object]:
    """Pre-train, fine-tune and test one arm."""
    warmup = "pretrain.warmup_epochs=1"
    recipe = steps.recipe("demo", f"pretrain.epochs={epochs}", warmup)
    encoder = steps.pretrain(f"{arm}-{epochs}", recipe, init=other if arm == "continued" else None)
    top1 = steps.finetune(f"{arm}-{epochs}-tuned", recipe, init=encoder)
    return {"seed": steps.seed, "arm": arm, "epochs": epochs, "top1": top1}


def other_weights(steps: DemoSteps, videos: Path) -> Path:
    """The demo's model, pre-trained on other videos."""
    overrides = (f'data.root="{videos}"', "data.pretrain=pretrain.csv", "data.flip=true")
    recipe = steps.recipe("demo", *overrides, f"pretrain.epochs={OTHER_EPOCHS}")
    return steps.pretrain("other", recipe)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    rows = []
    for seed in map(int, arguments.seeds.split(",")):
        folder = arguments.folder / str(seed)
        folder.mkdir(parents=True, exist_ok=True)
        steps = DemoSteps(folder=folder, seed=seed, report=silent)
        if not (folder / VIDEOS).is_dir():
            steps.render(DEMO_SET)
        other = folder / "other" / "model.safetensors"
        if not other.is_file():
            other_weights(steps, arguments.other)
        for arm, counts in ARMS.items():
            for epochs in counts:
                saved = folder / f"{arm}-{epochs}.json"
                if not saved.is_file():
                    saved.write_text(json.dumps(row(steps, other, arm, epochs)))
                rows.append(json.loads(saved.read_text()))
                print(rows[-1], flush=True)
    for arm, counts in ARMS.items():
        for epochs in counts:
            found = [row["top1"] for row in rows if (row["arm"], row["epochs"]) == (arm, epochs)]
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            print(f"{arm}, {epochs} epochs: {statistics.mean(found):.1f} % +- {spread:.1f}")


if __name__ == "__main__":
    with one_thread():
        main()
