"""The tables of measured values in docs/ have the values of the committed results."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from view_labels import BEST, SCRATCH, best_key, measured_units

ROOT = Path(__file__).resolve().parents[1]


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def missing(page: str, rows: list[str]) -> list[str]:
    """The rows that are not lines of a page."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
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
    assert missing("timelines.md", rows) == []


def test_searching_by_encoders_that_have_not_seen_the_groups():
    arms = {
        "recipe `small-views`": "contrast, uniform and camera",
        "pixels (EVEREST)": "everest",
        "untrained": "random encoder",
        "none: the mean frame difference": "difference image",
    }
    found = results("view_features")["results"]
    rows = []
    for title, arm in arms.items():
        of_sets = [
            [unit[name]["retrieval"] for unit in found[arm].values()]
            for name in ("weizmann10", "interaction6", "surveillance2")
        ]
        rows.append(f"| {title} | {' | '.join(f'{fmean(values):.1f} %' for values in of_sets)} |")
    assert missing("searching.md", rows) == []


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
    assert missing("pretraining-works.md", rows) == []


SETS = {
    "ten actions": "weizmann10",
    "six interactions": "interaction6",
    "eight camera motions": "cameramotion8",
}
ARMS = {
    "none (an untrained encoder)": "random encoder",
    "an image of frame differences, no encoder": "difference image",
    "predicting pixels (EVEREST)": "everest",
    "between views, as suggested": "the same, 4 times the steps",
    "logistic regression on an untrained encoder": "random encoder",
    "logistic regression on frame differences": "difference image",
    "logistic regression on suggested pre-training": "the same, 4 times the steps",
}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def evidence(part: str) -> list[list[str]]:
    """The rows of a table of benchmarks/evidence/tables.md, which is compared with the results elsewhere."""
    text = (ROOT / "benchmarks" / "evidence" / "tables.md").read_text()
    table = text.partition(f"<!-- evidence: {part} -->")[2].partition("<!-- end of")[0]
    return [cells(line) for line in table.splitlines() if line.startswith("| ")]


def tutorial_rows(page: str) -> dict[str, list[str]]:
    lines = (ROOT / "docs" / "tutorials" / page).read_text().splitlines()
    return {row[0]: row[1:] for row in map(cells, lines) if row}


@pytest.mark.parametrize(
    ("page", "part"), [("unlabeled-archive.md", "features-knn"), ("few-labels.md", "features-few")]
)
def test_tutorials_have_the_accuracies_of_frozen_features(page: str, part: str):
    table = evidence(part)
    columns = [table[0].index(name) for name in SETS.values()]
    values = {row[0]: [row[column].partition("<br>")[0] for column in columns] for row in table}
    rows = {title: row for title, row in tutorial_rows(page).items() if title in ARMS}
    assert len(rows) >= 3
    assert rows == {title: values[ARMS[title]] for title in rows}


def test_the_tutorial_on_few_labels_has_the_gains_of_fine_tuning():
    header, _, *table = evidence("labels")
    scratch, pretrained = header.index("from scratch"), header.index("the same, 4 times the steps")
    values = {}
    for row in table:
        accuracy, _, difference = row[pretrained].partition("<br>")
        values[tuple(row[:3])] = [*(cell.partition(" (")[0] for cell in (row[scratch], accuracy)), difference]
    lines = (ROOT / "docs" / "tutorials" / "few-labels.md").read_text().splitlines()
    sets = SETS | {
        "fights, surveillance cameras": "surveillance2",
        "table tennis": "tabletennis2",
        "26 silently spoken letters": "letters26",
    }
    rows = [row for row in map(cells, lines) if row and row[0] in sets and len(row) == 6]
    assert len(rows) == 20
    assert [row[3:] for row in rows] == [values[sets[row[0]], row[1], row[2]] for row in rows]


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


def test_the_tutorial_on_a_moving_camera_has_the_differences_of_the_claims():
    values = {row[0]: f"{row[2]} ({row[3]})" for row in evidence("claims") if "without the motion" in row[0]}
    shown = [row[-1].strip("*") for row in tutorial_rows("moving-camera.md").values() if " to " in row[-1]]
    assert len(shown) == 6
    assert "-13.1 (-18.9 to -7.3)" in shown  # the claim is that it is worse: +13.1, with the other sign
    assert {value for value in shown if not value.startswith("-13.1")} <= set(values.values())
