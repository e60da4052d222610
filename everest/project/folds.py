"""The accuracy over all folds together: each group is tested by a model that has not seen it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from everest.inference.bouts import BoutRules
from everest.inference.timelines import Timelines
from everest.lists.reading import read_samples
from everest.metrics.intervals import bootstrap
from everest.prepare.split import group_of
from everest.project.measure import PREDICTIONS, measure_run
from everest.project.recordings import SCORES, score
from everest.project.request import RESULT, write_document
from everest.system.events import Report, notice
from everest.system.run_folder import FINETUNE
from everest.system.text import read_json


def measure_folds(
    project: dict[str, Any], folder: Path, finetune: Callable[..., Path], report: Report
) -> dict[str, Any]:
    """Train and test the remaining folds; returns the metrics over all folds.

    Args:
        project: the document of project.json.
        finetune: takes `output` and `overrides`.
    """
    rows, annotations = [], project["request"]["annotations"]
    for number, lists in enumerate(project["folds"], start=1):
        own = folder / str(number)
        if not (own / RESULT).exists():
            report(notice(f"fold {number} of {len(project['folds'])}"))
            of_lists = [f"data.{name}={json.dumps(path)}" for name, path in lists.items()]
            run = finetune(output=own / FINETUNE, overrides=[*project["request"]["overrides"], *of_lists])
            window = project["window"]
            measured = measure_run(run, own, annotations=annotations, window=window, report=report)
            write_document(own / RESULT, measured)
        rows.append(read_json(own / RESULT))
    pooled = _pooled(rows, project)
    if annotations is not None:
        folds = [Timelines.load(fold["timeline"]) for fold in rows]
        rules = [BoutRules(smooth=fold["smooth"]) for fold in rows]
        bouts = [of_video for fold, rule in zip(folds, rules, strict=True) for of_video in fold.bouts(rule)]
        together = replace(folds[0], videos=[video for fold in folds for video in fold.videos])
        scores, _ = score(together, bouts, annotations, report)
        pooled |= {key: scores[key] for key in SCORES} | {"smooth": median(rule.smooth for rule in rules)}
    return {**pooled, "report": None, "folds": rows}


def _pooled(rows: Sequence[dict[str, Any]], project: dict[str, Any]) -> dict[str, Any]:
    """The accuracy over the test videos of all folds, with its interval over their groups."""
    labels: list[str] = []
    groups: list[str] = []
    correct: list[bool] = []
    for row, lists in zip(rows, project["folds"], strict=True):
        samples = read_samples(Path(lists["test"]), root=Path(project["root"]), labeled=False).samples
        group = {sample.video_id: group_of(sample) for sample in samples}
        with (
            Path(row["report"])
            .with_name(PREDICTIONS)
            .open(newline="", encoding="utf-8", errors="surrogateescape") as file
        ):
            for prediction in csv.DictReader(file):
                labels.append(prediction["label"])
                groups.append(group[prediction["video"]])
                correct.append(prediction["correct"] == "1")
    right = np.array(correct, dtype=np.float64)
    interval = bootstrap(lambda counts: {"top1": float(np.average(right, weights=counts))}, groups)["top1"]
    ((frequent, most),) = Counter(labels).most_common(1)
    linear = [row["linear_pixels"] for row in rows]
    weights = [row["videos"] for row in rows]
    return {
        "top1": round(100 * float(right.mean()), 4),
        "metric": "top1",
        "interval": [round(100 * end, 4) for end in interval],
        "chance": rows[0]["chance"],
        "majority": round(100 * most / len(labels), 4),
        "majority_class": frequent,
        "linear_pixels": None if None in linear else round(float(np.average(linear, weights=weights)), 4),
        "videos": len(labels),
        "groups": len(set(groups)),
        "skipped": sum(row["skipped"] for row in rows),
    }
