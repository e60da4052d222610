"""How many windows to check: the intervals of a time budget, planned from the tests of a model's folds."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from everest.config.heads import MULTI_LABEL, Head
from everest.errors import DataError, UserError
from everest.lists.groups import NAME_PATTERNS
from everest.system.text import damage_errors, load_json
from everest.system.types import Floats
from everest_workflows.annotations.bout import BACKGROUND
from everest_workflows.recordings.checked_windows import Extents, divide_footage
from everest_workflows.recordings.project_folder import FOLDS_FOLDER, RESULT_FILE, SELECTED
from everest_workflows.recordings.totals import CheckedAmounts, Estimate, pool, squared_quantile

PLANNED: Final = (5, 10, 20, 50, 100, 200)  # windows of each group
CLICK_SECONDS: Final = 5.0  # heuristic: of a person for each window, besides watching it once
FOLD_TESTS: Final = f"{FOLDS_FOLDER}/*/report/outputs.json"


def _find_files(model: str, pattern: str) -> list[Path]:
    """The files of a pattern in the folder of `everest train` that holds a model, if it has one."""
    if not model or not Path(model).exists():
        return []
    folders = [Path(model), *Path(model).absolute().parents[:2]]
    return next(filter(None, (sorted(folder.glob(pattern)) for folder in folders)), [])


def read_training_methods(model: str) -> str:
    """The methods of `everest train` and a space; empty for other models."""
    for file in _find_files(model, RESULT_FILE):
        with suppress(UserError):  # the estimate does not need it
            document = load_json(file, fix="")
            if isinstance(document, dict) and isinstance(document.get("methods"), str):
                return f"{document['methods']} "
    return ""


def has_fold_tests(model: str) -> bool:
    """Whether `--plan` has what it needs."""
    return bool(_find_files(model, FOLD_TESTS))


def find_group_pattern(model: str) -> str | None:
    """The value of `--group` that finds the groups of training in the names of its recordings."""
    for file in _find_files(model, "lists/train.csv")[:1]:
        with file.open(encoding="utf-8", newline="") as rows:
            groups = {(Path(row["path"]).name, row.get("group")) for row in csv.DictReader(rows)}
        for pattern in NAME_PATTERNS:
            matches = [(re.search(pattern, name), group) for name, group in groups]
            if matches and all(match and match[1] == group for match, group in matches):
                return pattern
    return None


def read_fold_tests(model: str, head: Head, names: Sequence[str]) -> dict[str, CheckedAmounts]:
    """The labels and predictions of each class in the windows that `everest train --folds` tested, by group.

    Args:
        model: the folder or the weights, as a saved timeline names them.
    """
    files = _find_files(model, FOLD_TESTS)
    if not files:
        fix = "train with --folds N, and run budget in the folder in which timeline ran"
        raise DataError(f"--plan: no tests of folds beside {model or 'the model'}; {fix}")
    labels, predicted, groups = [], [], []
    for file in files:
        fix = "train again in a new folder"
        with damage_errors(file, fix=fix):
            document = load_json(file, fix=fix)
            outputs = np.array(document["outputs"][SELECTED], np.float64).reshape(-1, len(names))
            groups += document["groups"]
            for values, label in zip(outputs, document["labels"], strict=True):
                present = np.arange(len(names)) == values.argmax()
                predicted.append(values >= head.thresholds if head.task == MULTI_LABEL else present)
                labels.append(np.isin(np.arange(len(names)), label))
    _, cells = np.unique(groups, return_inverse=True)
    counts = np.bincount(cells)
    return {
        name: CheckedAmounts(
            labeled=np.array(labels, np.float64)[:, index],
            predicted=np.array(predicted, np.float64)[:, index],
            cells=cells,
            windows=counts,
            predicted_left=np.zeros(len(counts)),
            is_fraction=True,
        )
        for index, name in enumerate(names)
        if name != BACKGROUND
    }


def plan_windows(
    extents: Extents,
    groups: Mapping[str, Collection[str]],
    tests: Mapping[str, CheckedAmounts],
    seconds: float,
) -> list[dict[str, Any]]:
    """Plan checked windows of some seconds, equally many in each group of recordings.

    Returns:
        For all recordings (group: empty) and each group, and each number of windows that it has: `group`,
        `windows`, `minutes` to check, `half_width` (half of the 95 % interval of each class, in seconds), and
        the seconds of `footage`.
    """
    strata = [*groups.values()] or [extents]
    sizes = np.array([len(divide_footage({v: extents[v] for v in videos}, seconds)) for videos in strata])
    footage = np.array([sum(extents[v][1] - extents[v][0] for v in videos) for videos in strata])
    numbers = [number for number in PLANNED if number < sizes.min()]
    if not numbers:
        raise DataError(f"--plan: a group has only {sizes.min()} windows of {seconds:g} s; use less --window")
    rows = []
    for number in numbers:
        left_seconds = footage - number * seconds
        of_classes = {
            label: _plan_half_widths(test, number, sizes, left_seconds) for label, test in tests.items()
        }
        for index, name in enumerate(["", *groups]):
            windows = number if name else number * len(sizes)
            rows.append(
                {
                    "group": name,
                    "windows": windows,
                    "minutes": round(windows * (seconds + CLICK_SECONDS) / 60, 1),
                    "half_width": {label: half_widths[index] for label, half_widths in of_classes.items()},
                    "footage": round(float(footage[index - 1] if name else footage.sum()), 3),
                }
            )
    return rows


def _plan_half_widths(
    test: CheckedAmounts, number: int, sizes: NDArray[np.int64], left_seconds: Floats
) -> list[float]:
    """Half of the 95 % interval of a class, in seconds: of all recordings, then of each of C groups.

    Args:
        number: of checked windows in each group.
        sizes, left_seconds: (C,) windows of each group, and the seconds of those that are not checked.
    """
    weight = test.tune()
    effect, ratio = test.variation(weight)
    left = sizes - number
    fractions = left / left.sum()
    of_all = float((fractions**2 / number + fractions / left.sum()).sum())
    _, of_groups = pool(np.full(len(sizes), number), left, ratio)
    scale = squared_quantile(len(sizes) * (number - 1) - (weight > 0)) * effect
    mean = float(test.labeled.mean())
    half_widths = []
    for part, length in zip([of_all, *of_groups], [left_seconds.sum(), *left_seconds], strict=True):
        _, low, high = Estimate(mean, scale * float(part), is_fraction=True).total(mean, float(length))
        half_widths.append(round((high - low) / 2, 1))
    return half_widths
