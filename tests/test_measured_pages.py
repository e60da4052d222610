"""The tables of measured values in docs/ have the values of the committed results."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from view_labels import BEST, SCRATCH, best_key, measured_units

ROOT = Path(__file__).resolve().parents[1]


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def missing(page: str, rows: list[str]) -> list[str]:
    """The rows that are not lines of a page."""
    lines = (ROOT / page).read_text().splitlines()
    return [row for row in rows if row not in lines]


def test_timelines():
    rows = []
    for name, of_set in results("timelines").items():
        for rules, scores in of_set["scores"].items():
            f1 = " / ".join(f"{scores[f'f1@{k}']:.0f}" for k in (10, 25, 50))
            frames = f"{scores['frame_accuracy']:.0f} ({scores['always_the_most_frequent']:.0f})"
            others = [f"{scores[key]:.0f}" for key in ("mean_class_accuracy", "edit", "map@0.5")]
            rows.append(f"| {' | '.join([name, rules, frames, *others[:2], f1, others[2]])} |")
    assert rows
    assert missing("docs/timelines.md", rows) == []


def test_costs_of_views():
    rows = [
        f"| {row['arm']} | {row['visible']} | {row['gmacs']:.1f} | {row['megabytes']:.0f} MB |"
        for row in results("view_cost")["rows"]
    ]
    lines = (ROOT / "docs" / "methods.md").read_text().splitlines()
    assert [row for row in rows if not any(line.startswith(row) for line in lines)] == []


def test_curves_between_views():
    titles = {"contrast, uniform and camera": "`small-views`", "sigreg": "`sigreg`"}
    rows = []
    for arm, title in titles.items():
        for key, values in results("view_features")["curves"][arm].items():
            cells = [f"{low:.2f} to {high:.2f}" for low, high in values]
            rows.append(f"| {title} | `{key}` | {' | '.join(cells)} |")
    assert len(rows) == 6
    assert missing("benchmarks/pretraining.md", rows) == []


SETS = {
    "ten actions": "weizmann10",
    "six interactions": "interaction6",
    "eight camera motions": "cameramotion8",
}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


LONGER = "the same, 4 times the steps"
README_FEATURES = {
    "nearest neighbors of an untrained encoder": "random encoder",
    "nearest neighbors of the frozen pre-trained encoder, 600 steps": "the same, trained again",
    "the same after 2400 steps of pre-training": LONGER,
}
README_LABELS = {  # labels a class, and arm
    "fine-tuned from scratch, two labels a class": (2, SCRATCH),
    "fine-tuned from the encoder of 2400 steps, the same labels": (2, LONGER),
    "fine-tuned from scratch with all labels": (None, SCRATCH),
    "fine-tuned from the encoder of 2400 steps, all labels": (None, LONGER),
}


def test_the_readme_has_the_accuracies_of_real_clips():
    lines = (ROOT / "README.md").read_text().splitlines()
    table = {row[0]: row[1:] for row in map(cells, lines) if row}
    names = [SETS[title] for title in table["classifier"]]
    features, labels = results("view_features")["results"], results("view_labels")["results"]
    expected = {
        title: [f"{fmean(unit[name]['knn'] for unit in features[arm].values()):.0f}" for name in names]
        for title, arm in README_FEATURES.items()
    }
    of_image = features["difference image"].values()
    one, many = (
        [f"{fmean(unit[name][measure] for unit in of_image):.0f}" for name in names]
        for measure in ("nearest", "knn")
    )
    title = "nearest neighbors of an image of frame differences, no encoder (with one neighbor, not 20: "
    expected[f"{title}{', '.join(one)})"] = many
    for title, (number, arm) in README_LABELS.items():
        expected[title] = []
        for name in names:
            shown: dict[str, float] = {}
            keys = {each: best_key(labels, name, number, None, each) for each in (SCRATCH, LONGER)}
            for way in BEST.values():  # a later way has more units and draws
                units = {each: measured_units(labels, key, *way) for each, key in keys.items()}
                shown = units[arm] if all(units.values()) else shown
            expected[title].append(f"{fmean(shown.values()):.0f}")
    assert {title: table[title] for title in expected} == expected
