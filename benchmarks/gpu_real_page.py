"""Writes benchmarks/evidence/gpu_real.md from the rows of `gpu_real.py`, one file for each call.

    python benchmarks/gpu_real_page.py benchmarks/results/gpu_real/*.jsonl

Accuracies are means over classes. Differences are paired by held-out clip. Their 95 % intervals come from
drawing groups (talkers, source videos, sequences, clusters of colors) and seeds with replacement. A claim
needs three seeds and ten groups.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from gpu_real import ARMS, IMAGE, SCRATCH, TESTED
from gpu_rows import Row
from measuring import HERE, markdown
from numpy.typing import NDArray

from everest.metrics.intervals import FEW_GROUPS

PAGE: Final = HERE / "evidence" / "gpu_real.md"
DRAWS: Final = 10_000
FEWEST: Final = 3  # seeds of a claim
KINDS: Final = {  # heading, the column of right answers, labels a class, the baseline
    "Fine-tuned, all labels": ("right", None, SCRATCH),
    "Fine-tuned, two labels per class": ("right", 2, SCRATCH),
    "Frozen features, logistic regression": ("linear_right", None, IMAGE),
    "Frozen features, nearest neighbors": ("knn_right", None, IMAGE),
}
Values = NDArray[np.float64]  # (N,) of the held-out clips of some seeds


class Calls:
    """The rows of all calls.

    Raises:
        SystemExit: calls have other settings than the first, or two of them have one seed.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.rows: list[Row] = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        self.machines = [row for row in self.rows if row["item"] == "machine"]
        self.tested = {(row["set"], row["seed"]): row for row in self.rows if row["item"] == "tested"}
        seeds = sorted(row["seed"] for row in self.machines)
        if len(set(seeds)) < len(seeds):
            raise SystemExit(f"seeds {seeds}: each call needs a seed of its own")
        first, *others = self.machines
        for row in others:
            if row["settings"] != first["settings"]:
                raise SystemExit(f"seed {row['seed']} has other settings than seed {first['seed']}")

    def right(self, name: str, arm: str, column: str, labels: int | None) -> dict[int, list[int]]:
        """The right answers of an arm by seed."""
        wanted = {"item": "job", "set": name, "arm": arm, "labels": labels}
        return {
            row["seed"]: row[column] for row in self.rows if column in row and wanted.items() <= row.items()
        }


def weights_of(labels: list[int]) -> Values:
    """The weight of each clip, with which all classes count the same."""
    return 1 / np.bincount(labels)[labels]


class Held(NamedTuple):
    """The held-out clips of some seeds, one after the other."""

    weights: Values
    groups: list[str]
    seeds: list[int]

    def mean(self, values: Values) -> float:
        """The weighted mean, in percent."""
        return float(100 * np.average(values, weights=self.weights))

    def interval(self, values: Values) -> tuple[float, float]:
        """The 95 % interval, in percent, of the weighted mean."""
        rng = np.random.default_rng(0)
        drawn = []
        for names in (self.seeds, self.groups):
            unique, numbers = np.unique(names, return_inverse=True)
            counts = rng.multinomial(len(unique), np.full(len(unique), 1 / len(unique)), size=DRAWS)
            drawn.append(counts[:, numbers])
        weights = drawn[0] * drawn[1] * self.weights  # (draws, N)
        total = weights.sum(axis=1)  # zero where no drawn group is of a drawn seed
        low, high = np.quantile((weights @ values)[total > 0] / total[total > 0], [0.025, 0.975])
        return 100 * float(low), 100 * float(high)


def table(calls: Calls, column: str, labels: int | None, baseline: str) -> str:
    """The accuracy of each arm on each set, and its difference from the baseline."""
    others = [arm for arm in ARMS if arm != baseline]
    rows = []
    for name in TESTED:
        found = {arm: calls.right(name, arm, column, labels) for arm in (baseline, *others)}
        complete = {arm: right for arm, right in found.items() if right}
        shared = set.intersection(*map(set, complete.values())) if baseline in complete else set()
        if not (seeds := sorted(shared)):  # that all arms have
            rows.append([name, *["not run"] * (3 + len(others))])
            continue
        tested = [calls.tested[name, seed] for seed in seeds]
        held = Held(
            np.concatenate([weights_of(row["labels"]) for row in tested]),
            [group for row in tested for group in row["groups"]],
            [row["seed"] for row in tested for _ in row["groups"]],
        )
        right = {
            arm: np.concatenate([np.array(of_seed[seed], dtype=float) for seed in seeds])
            for arm, of_seed in complete.items()
        }
        groups, classes = len(set(held.groups)), len(set(tested[0]["labels"]))
        cells = [name, f"{len(held.groups)} ({groups}; {len(seeds)})", f"{100 / classes:.1f}"]
        cells.append(f"{held.mean(right[baseline]):.1f}")
        for arm in others:
            if arm not in right:
                cells.append("not run")
                continue
            difference = right[arm] - right[baseline]
            low, high = held.interval(difference)
            text = f"{held.mean(difference):+.1f} ({low:+.1f} to {high:+.1f})"
            claims = len(seeds) >= FEWEST and groups >= FEW_GROUPS and not low <= 0 <= high
            cells.append(f"{held.mean(right[arm]):.1f}<br>{f'**{text}**' if claims else text}")
        rows.append(cells)
    shown = [arm.replace(SCRATCH, "untrained") if baseline == IMAGE else arm for arm in others]
    return markdown(["set", "held-out clips (groups; seeds)", "chance", baseline, *shown], rows)


def cost_table(calls: Calls) -> str:
    """What each arm saw in its seconds, and how its loss fell."""
    rows = []
    for row in (row for row in calls.rows if row.get("part") == "run"):
        lr = row["base_lr"] * row["batch"] / 256
        cells = [row["arm"], str(row["seed"]), str(row["batch"]), f"{lr:.2g}", f"{row['seconds']:.0f}"]
        cells += [f"{row['steps']:,}", f"{row['clips']:,}", f"{1e3 * row['seconds'] / row['steps']:.0f}"]
        rows.append([*cells, f"{row['first_loss']:.3f}", f"{row['losses'][-1]:.3f}"])
    head = ["pre-training", "seed", "batch", "learning rate", "seconds", "steps", "clip views", "ms per step"]
    return markdown([*head, "first loss", "last loss"], rows)


def page(calls: Calls) -> str:
    seeds = len(calls.machines)
    gpus = sorted({row.get("gpu", row["cpu"]) for row in calls.machines})
    warning = "" if seeds >= FEWEST else " **Too few for a claim.**"
    introduction = (
        "Written by `benchmarks/gpu_real_page.py`. Pre-training sees no clip of the held-out groups, a third "
        "that changes with the seed. The first number is the accuracy in percent, averaged over classes. "
        "Below is the difference from the baseline, in points, with its 95 % interval over groups and seeds; "
        "a bold difference has three seeds and ten groups and excludes zero. "
        f"Seeds: {seeds} ({', '.join(gpus)}).{warning}"
    )
    draws = [row["shares"] for row in calls.rows if row["item"] == "draws"]
    shares = markdown(
        ["source", "share of the views of pre-training (%)"],
        [[name, f"{100 * np.mean([share[name] for share in draws]):.1f}"] for name in draws[0]],
    )
    limits = (
        "The last loss is the mean of the last tenth of the steps, by which trials chose batch and rate. "
        "The input is frames for EVEREST and VideoMAE, and their differences for views and *from scratch*. "
        "Some actors of interaction6 appear in several groups."
    )
    parts = ["# Pre-training on real clips, with a ViT-S", introduction, limits, cost_table(calls), shares]
    for heading, kind in KINDS.items():
        parts += [f"## {heading}", table(calls, *kind)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    text = page(Calls(options.files))
    options.page.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
