"""Writes benchmarks/evidence/gpu_real.md from the rows of `gpu_real.py`, one file for each call.

    python benchmarks/gpu_real_page.py benchmarks/results/gpu_real/*.jsonl

Differences are paired by held-out clip and averaged over calls, each with a seed of its own. Their 95 %
intervals come from drawing groups (talkers, source videos, sequences, clusters of colors) and seeds with
replacement. A claim needs three seeds and ten groups.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

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
Right = NDArray[np.float64]  # (seeds, clips): whether a held-out clip is classified correctly


class Calls(NamedTuple):
    """The rows of all calls.

    Attributes:
        groups: of the held-out clips, by set.
        most_frequent: percent of the held-out clips of the largest class among them, by set.
    """

    rows: list[Row]
    groups: dict[str, list[str]]
    most_frequent: dict[str, float]

    @classmethod
    def read(cls, files: Iterable[Path]) -> Calls:
        """Raises SystemExit if calls held out other clips, or two of them have one seed."""
        rows, tested, seeds = [], {}, []
        for file in files:
            of_call = [json.loads(line) for line in file.read_text().splitlines()]
            seeds += [row["seed"] for row in of_call if row["item"] == "machine"]
            for row in (row for row in of_call if row["item"] == "tested"):
                if tested.setdefault(row["set"], row)["paths"] != row["paths"]:
                    raise SystemExit(f"{file}: {row['set']}: holds out other clips than the other calls")
            rows += of_call
        if len(set(seeds)) < len(seeds):
            raise SystemExit(f"seeds {sorted(seeds)}: each call needs a seed of its own")
        largest = {
            name: 100 * np.bincount(row["labels"]).max() / len(row["labels"]) for name, row in tested.items()
        }
        return cls(rows, {name: row["groups"] for name, row in tested.items()}, largest)

    def right(
        self, name: str, arm: str, column: str, labels: int | None, decay: float | None
    ) -> dict[int, list[int]]:
        """The right answers of an arm by seed."""
        wanted = {"set": name, "arm": arm, "labels": labels, "decay": decay}
        return {
            row["seed"]: row[column]
            for row in self.rows
            if row["item"] == "job" and column in row and wanted.items() <= row.items()
        }

    def decays(self) -> list[float]:
        """The layer decays of fine-tuning."""
        return sorted({row["decay"] for row in self.rows if row.get("decay")}, reverse=True)


def interval(difference: Right, groups: list[str], rng: np.random.Generator) -> tuple[float, float]:
    """The 95 % interval, in points, of the mean of a difference."""
    names, numbers = np.unique(groups, return_inverse=True)
    sums = np.stack(
        [difference[:, numbers == group].sum(axis=1) for group in range(len(names))]
    )  # (groups, seeds)
    sizes = np.bincount(numbers)
    chosen = rng.integers(len(names), size=(DRAWS, len(names)))  # (draws, groups)
    seeds = rng.integers(len(difference), size=(DRAWS, len(difference)))  # (draws, seeds)
    means = sums[chosen[:, :, None], seeds[:, None, :]].sum(axis=1).mean(axis=1) / sizes[chosen].sum(axis=1)
    low, high = 100 * np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def table(calls: Calls, column: str, labels: int | None, baseline: str, decay: float | None) -> str:
    """The accuracy of each arm on each set, and its difference from the baseline."""
    others = [arm for arm in (*ARMS, SCRATCH) if arm != baseline]
    rows = []
    for name in (name for name in TESTED if name in calls.groups):
        found = {arm: calls.right(name, arm, column, labels, decay) for arm in (baseline, *others)}
        size = f"{len(calls.groups[name])} ({len(set(calls.groups[name]))})"
        cells = [name, size, f"{calls.most_frequent[name]:.1f}"]
        if not found[baseline]:
            rows.append([*cells, *["not run"] * (1 + len(others))])
            continue
        cells.append(f"{100 * np.mean(list(found[baseline].values())):.1f}")
        for arm in others:
            seeds = sorted(found[arm].keys() & found[baseline].keys())
            if not seeds:
                cells.append("not run")
                continue
            values, base = (
                np.array([found[of][seed] for seed in seeds], dtype=float) for of in (arm, baseline)
            )
            low, high = interval(values - base, calls.groups[name], np.random.default_rng(0))
            text = f"{100 * (values - base).mean():+.1f} ({low:+.1f} to {high:+.1f})"
            is_enough = len(seeds) >= FEWEST and len(set(calls.groups[name])) >= FEW_GROUPS
            claims = is_enough and not low <= 0 <= high
            cells.append(f"{100 * values.mean():.1f}<br>{f'**{text}**' if claims else text}")
        rows.append(cells)
    shown = ["untrained encoder" if arm == SCRATCH and baseline == IMAGE else arm for arm in others]
    return markdown(["set", "held-out clips (groups)", "largest class", baseline, *shown], rows)


def cost_table(calls: Calls) -> str:
    """What each arm saw in its seconds."""
    done = [row for row in calls.rows if "warm_up_seconds" in row]
    rows = []
    for arm in ARMS:
        of_arm = [row for row in done if row["arm"] == arm]
        if of_arm:
            keys = ("seconds", "steps", "clips", "ms")
            rows.append([arm, *(f"{np.mean([row[key] for row in of_arm]):,.0f}" for key in keys)])
    return markdown(["pre-training", "seconds", "steps", "clip views", "ms per step"], rows)


def page(calls: Calls) -> str:
    machines: list[dict[str, Any]] = [row for row in calls.rows if row["item"] == "machine"]
    seeds = len(machines)
    gpus = sorted({row.get("gpu", row["cpu"]) for row in machines})
    warning = "" if seeds >= FEWEST else " **Too few for a claim.**"
    introduction = (
        "Written by `benchmarks/gpu_real_page.py`. Pre-training sees no clip of the held-out groups. "
        "The first number is the accuracy in percent. Below is the difference from the baseline, in points, "
        "with its 95 % interval over groups and seeds; a bold difference has ten groups and excludes zero. "
        f"Seeds: {seeds} ({', '.join(gpus)}).{warning}"
    )
    limits = (
        "The loss of the pixel objectives hardly fell, so they had not begun to learn. "
        "In tennis7, the held-out groups have another mix of classes than the known ones. "
        "Some actors of interaction6 appear in several groups."
    )
    parts = [
        "# Pre-training on real clips, with a ViT-S",
        introduction,
        limits,
        cost_table(calls),
    ]
    for heading, (column, labels, baseline) in KINDS.items():
        for decay in calls.decays() if column == "right" else [None]:
            found = table(calls, column, labels, baseline, decay)
            suffix = f" (layer decay {decay:g})" if decay is not None else ""
            parts += [f"## {heading}{suffix}", found]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    text = page(Calls.read(options.files))
    options.page.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
