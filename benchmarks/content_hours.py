"""Ten hours in which actions fill 5 % of the time: a keep ratio and a threshold of equal mean cost.

    python benchmarks/content_hours.py WORK [--hours 10] [--seeds 3]

The file is that of footage.py, joined from the test and validation clips of interaction6. A classifier of the
six actions and of background is fine-tuned on windows of a recording of the training clips, half of them
background. The threshold is chosen on that recording, for the mean keep ratio `KEEP`. A call that was stopped
is resumed; the results are in results/content_hours.json, the table in docs/evidence.md.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import footage
import numpy as np
from measuring import HERE, SHARED, difference_text, markdown
from timelines import everest

from everest.sweep.statistics import paired, spread

ACTIONS: Final = SHARED / "videos" / "actions"
RECORDINGS: Final = {"known": ("train",), "tested": ("val", "test")}  # the lists of clips of each
KNOWN_HOURS: Final = 2.0
WINDOW: Final = 2.0  # seconds
STEPS: Final = 400
KEEP: Final = 0.1  # of predictions; 0.15 in training, as the recipe has
METRICS: Final = {"map@0.5": "mAP at 0.5", "f1@25": "F1 at 25 %", "frame_accuracy": "frames"}
RESULTS: Final = HERE / "results" / "content_hours.json"


def recording(folder: Path, name: str, hours: float) -> tuple[Path, list[footage.Bout]]:
    """A long video and its actions; written once."""
    path, table = folder / f"{name}.mp4", folder / f"{name}.json"
    if not table.exists():
        lists = [ACTIONS / f"interaction6_{part}.csv" for part in RECORDINGS[name]]
        clips = [ACTIONS / line.split()[0] for text in lists for line in text.read_text().splitlines()]
        table.write_text(json.dumps(footage.write_recording(path, clips, hours)))
    return path, json.loads(table.read_text())


def class_at(actions: list[footage.Bout], start: float) -> str:
    """The action that covers more than half of a window, else background."""
    for first, last, name in actions:
        if min(last, start + WINDOW) - max(first, start) > WINDOW / 2:
            return name
    return "background"


def write_windows(folder: Path, path: Path, actions: list[footage.Bout]) -> dict[str, Path]:
    """Lists of windows of the known recording: `train`, half of them background, and `uniform` ones."""
    starts = np.arange(0, actions[-1][1] - WINDOW, 0.5)
    rows = [f"{path},{start},{start + WINDOW},{class_at(actions, start)}" for start in starts]
    acting = [row for row in rows if not row.endswith("background")]
    still = [row for row in rows if row.endswith("background")]
    draws = random.Random(0)
    chosen = {"train": acting + draws.sample(still, len(acting)), "uniform": draws.sample(rows, 500)}
    lists = {name: folder / f"{name}.csv" for name in chosen}
    for name, listed in chosen.items():
        lists[name].write_text("\n".join(["path,start,end,label", *listed]) + "\n")
    return lists


def measured(folder: Path, lists: dict[str, Path], tested: Path, truth: Path, seed: int) -> dict[str, Any]:
    """Train a seed; for each keep ratio and threshold the scores and the mean GMACs of a window."""
    run = folder / f"run{seed}"
    settings = [
        *("data.cache=memory", "data.classes=null", "data.flip=false", "data.val=null", "train.workers=0"),
        *(f"data.train={lists['train']}", f"data.test={lists['uniform']}"),
        *(f"finetune.steps={STEPS}", "finetune.stride=1"),
    ]
    options = [f"--set={setting}" for setting in settings]
    common = ("--gpus", "cpu", "-q")
    if not (run / "model.safetensors").exists():
        everest(
            *("finetune", "--recipe", "small", "--init", "none", *options, *common),
            *("--seed", seed, "-o", run),
        )
    evaluated = json.loads(
        everest("eval", "--checkpoint", run, "--keep", KEEP, "--keep-above", "0", "--json", *common)
    )
    (above,) = (row["above"] for row in evaluated["thresholds"] if row["keep"] == KEEP)
    found = {}
    for way, option in (("ratio", f"--keep={KEEP}"), ("threshold", f"--keep-above={above}")):
        document = json.loads(
            everest(
                *("predict", tested, "--checkpoint", run, "--timeline", "--window", WINDOW, option),
                *("--smooth", "2", "--bouts", "--truth", truth, "--batch", 16, "--json", *common),
            )
        )
        windows = document["timelines"][0]["windows"]
        fixed = evaluated["sweep"][0]["gmacs"]
        gmacs = fixed if way == "ratio" else fmean(window["gmacs"] for window in windows)
        found[way] = {**{name: document[name] for name in METRICS}, "gmacs": gmacs}
    return found


def content_hours_table(results: dict[str, dict[str, Any]]) -> str:
    """The mean scores and GMACs of the keep ratio and of the threshold, and their differences."""
    rows = []
    for way in ("ratio", "threshold"):
        gmacs = spread([found[way]["gmacs"] for found in results.values()]).mean
        row = [f"keep ratio {KEEP}" if way == "ratio" else "threshold", str(len(results)), f"{gmacs:.4f}"]
        for metric in METRICS:
            values, fixed = (
                {int(seed): found[name][metric] for seed, found in results.items()} for name in (way, "ratio")
            )
            text = f"<br>{difference_text(paired(values, fixed))}" if way == "threshold" else ""
            row.append(f"{spread(list(values.values())).mean:.1f}{text}")
        rows.append(row)
    return markdown(["tokens", "seeds", "mean GMACs of a window", *METRICS.values()], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--hours", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    folder = options.work.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    lists = write_windows(folder, *recording(folder, "known", KNOWN_HOURS))
    tested, actions = recording(folder, "tested", options.hours)
    truth = folder / "truth.csv"
    lines = [f"{tested.name},{start},{end},{name}" for start, end, name in actions]
    truth.write_text("\n".join(["video,start,end,label", *lines]) + "\n")
    for seed in range(options.seeds):
        path = folder / f"seed{seed}.json"
        if not path.exists():
            path.write_text(json.dumps(measured(folder, lists, tested, truth, seed)))
    results = {
        str(seed): json.loads((folder / f"seed{seed}.json").read_text()) for seed in range(options.seeds)
    }
    RESULTS.write_text(
        json.dumps({"hours": options.hours, "keep": KEEP, "results": results}, indent=1) + "\n"
    )
    print(content_hours_table(results))


if __name__ == "__main__":
    main()
