"""How often the intervals of time budgets contain the true seconds, and how many windows the model saves.

    python benchmarks/budget_coverage.py runs/mouse

The folder is one of benchmarks/mouse.py: `annotated.csv`, `behavior` with its folds, and
`timeline.safetensors` with the predictions of models that had not seen the recording. Its recordings, with
the errors of the model in them, are spliced at random into footage of six animals on three days; each animal
prefers other recordings. In an eighth of the splices, `rear` is called `jump`, a rare class. Windows of 2 s
are sampled for each animal, filled from the ground truth, and reported for all footage and for each animal
and day.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from measuring import HERE, write_results

from everest_workflows.annotations.bout import CHECKED, Bout, group_by_video
from everest_workflows.annotations.formats import read_annotations
from everest_workflows.recordings.bouts import BoutRules
from everest_workflows.recordings.checked_windows import sample_windows
from everest_workflows.recordings.time_budget import compute_time_budget
from everest_workflows.recordings.timelines import Timelines
from everest_workflows.recordings.window_plan import plan_windows, read_fold_tests

ANIMALS, DAYS, SECONDS = 6, 3, 300.0  # of footage for each animal and day
WINDOW: Final = 2.0
DRAWS: Final = (8, 24)  # windows of each animal
RENAMED, RARE, RARE_FRACTION = "rear", "jump", 0.125
Splice = tuple[float, list[Bout], list[Bout]]  # seconds, true and predicted bouts


def read_splices(folder: Path) -> list[Splice]:
    timelines = Timelines.load(folder / "timeline.safetensors")
    truth = group_by_video(read_annotations(folder / "annotated.csv"))
    bouts_of = timelines.bouts(BoutRules(smooth=WINDOW))
    return [
        (video.extent[1], truth[Path(video.video).name], [bout.to_bout() for bout in by_head[""]])
        for video, by_head in zip(timelines.videos, bouts_of, strict=True)
    ]


def make_footage(splices: list[Splice], rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """The extents of recordings, and their true and predicted bouts by recording."""
    extents, found = {}, (defaultdict(list), defaultdict(list))
    for animal in range(ANIMALS):
        preferred = rng.dirichlet(np.full(len(splices), 1.5))
        for day in range(DAYS):
            weights = 0.6 * preferred + 0.4 * rng.dirichlet(np.ones(len(splices)))
            video, at = f"m{animal}_day{day}", 0.0
            extents[video] = (0.0, SECONDS)
            while at < SECONDS:
                length, *parts = splices[rng.choice(len(splices), p=weights)]
                new_name = RARE if rng.random() < RARE_FRACTION else RENAMED
                for of_video, bouts in zip(found, parts, strict=True):
                    for bout in bouts:
                        start, end = at + bout.start, min(at + min(bout.end, length), SECONDS)
                        label = new_name if bout.label == RENAMED else bout.label
                        if start < end:
                            new: Any = {"video": video, "start": start, "end": end, "label": label}
                            of_video[video].append(replace(bout, **new))
                at += length
    return extents, *found


def simulate(splices: list[Splice], number: int, seed: int) -> list[tuple[dict[str, Any], float]]:
    """The rows of one draw, each with the true seconds."""
    extents, truth, predicted = make_footage(splices, np.random.default_rng(seed))
    strata = [[f"m{animal}_day{day}" for day in range(DAYS)] for animal in range(ANIMALS)]
    sampled = sample_windows(extents, {}, WINDOW, number, seed=seed, strata=strata)
    checked: dict[str, list[Bout]] = defaultdict(list)
    for video, start, end in sampled:
        seen = [bout for bout in truth[video] if bout.start < end and bout.end > start]
        checked[video] += [Bout(video=video, start=start, end=end, label=CHECKED), *seen]
    groups = {video: [video] for video in extents}
    rows = compute_time_budget(extents, predicted, checked, strata=strata, groups=groups)["rows"]
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for bout in (bout for bouts in truth.values() for bout in bouts):
        for group in ("", bout.video):
            sums[group, bout.label] += bout.seconds
    return [(row, sums[row["group"], row["class"]]) for row in rows if row["class"] != "background"]


def summarize(rows: list[tuple[dict[str, Any], float]]) -> dict[str, float]:
    """Percent of intervals that contain the truth, and the mean half-widths in seconds."""
    spans = {"model": [row["interval"] for row, _ in rows]}
    spans["watched"] = [row["watched_only"]["interval"] for row, _ in rows]
    summary = {"true": float(np.mean([true for _, true in rows]))}
    trues = [true for _, true in rows]
    for name, intervals in spans.items():
        pairs = zip(intervals, trues, strict=True)
        hits = [low - 0.01 <= true <= high + 0.01 for (low, high), true in pairs]
        summary |= {f"{name} contains": 100 * np.mean(hits), f"{name} half": np.diff(intervals).mean() / 2}
    saved = np.mean([row["saved_windows"] for row, _ in rows])
    return {name: round(float(value), 1) for name, value in summary.items()} | {"saved": round(100 * saved)}


def plan_hours(folder: Path) -> dict[str, Any]:
    """Half-widths in percent of the time by windows of each animal: 200 hours of ten animals."""
    timelines = Timelines.load(folder / "timeline.safetensors")
    (head,) = timelines.classes.heads
    tests = read_fold_tests(str(folder / "behavior"), head, timelines.classes.names_of_head(head))
    groups = {f"m{animal}": [f"m{animal}_{hour}" for hour in range(20)] for animal in range(10)}
    extents = {video: (0.0, 3600.0) for videos in groups.values() for video in videos}
    rows = [row for row in plan_windows(extents, groups, tests, WINDOW) if row["group"] == "m0"]
    return {
        str(row["windows"]): {
            "minutes": round(10 * row["minutes"], 1),
            **{name: round(half / 720, 1) for name, half in row["half_width"].items()},
        }
        for row in rows
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, default=500, help="draws of each kind [%(default)s]")
    given = parser.parse_args()
    splices = read_splices(given.folder)
    results: dict[str, Any] = {"draws": given.draws, "plan": plan_hours(given.folder)}
    for number in DRAWS:
        found = [row for seed in range(given.draws) for row in simulate(splices, number, seed)]
        for part, is_group in (("all", False), ("animal and day", True)):
            rows = [(row, true) for row, true in found if bool(row["group"]) == is_group]
            classes = dict.fromkeys(row["class"] for row, _ in rows)
            key = f"{number} windows of each animal, {part}"
            results[key] = {
                name: summarize([pair for pair in rows if pair[0]["class"] == name]) for name in classes
            }
    write_results(HERE / "results" / "budget_coverage.json", results)


if __name__ == "__main__":
    main()
