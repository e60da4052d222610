"""The tables of measured values in docs/ and benchmarks/ have the values of the committed results."""

import json
from pathlib import Path
from typing import Any

from everest.project.result import MeasuredTest
from everest.project.verdict import result_lines

ROOT = Path(__file__).resolve().parents[1]


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def missing(page: str, rows: list[str]) -> list[str]:
    """The rows with which no line of a page begins."""
    lines = (ROOT / page).read_text().splitlines()
    return [row for row in rows if not any(line.startswith(row) for line in lines)]


def test_timelines():
    rows, recordings = [], results("mouse_recordings")
    for name, of_set in (results("timelines") | {"mouse": recordings}).items():
        for rules, scores in of_set["scores"].items():
            f1 = " / ".join(f"{scores[f'f1@{k}']:.0f}" for k in (10, 25, 50))
            frames = f"{scores['frame_accuracy']:.0f} ({scores['majority_accuracy']:.0f})"
            others = [f"{scores[key]:.0f}" for key in ("mean_class_accuracy", "edit", "map@0.5")]
            rows.append(f"| {' | '.join([name, rules, frames, *others[:2], f1, others[2]])} |")
    assert missing("benchmarks/timelines.md", rows) == []
    paths = {"skipped": 0, "report": "", "checkpoint": "", "figure": ""}
    folds = [fold | paths | {"recordings": []} for fold in recordings["folds"]]
    measured = recordings["train"] | paths | {"folds": folds}
    rows = [*result_lines(MeasuredTest.of(measured)), measured["judgment"]]
    for name, row in recordings["confusion"].items():
        true, model, _, draws = recordings["budget"]["classes"][name]["seconds"].values()
        cells = f"{true:.1f} s", f"{model:.1f} s", "{:.1f} s ({:.1f} to {:.1f})".format(*draws[0])
        rows += [f"| {name} | {' | '.join(each)} |" for each in (map(str, row.values()), cells)]
    assert missing("docs/long-recordings.md", rows) == []


def test_curves_of_views():
    rows = []
    for arm, title in (("contrast, uniform and camera", "`small-views`"), ("sigreg", "`sigreg`")):
        for key, values in results("view_features")["curves"][arm].items():
            cells = [f"{low:.2f} to {high:.2f}" for low, high in values]
            rows.append(f"| {title} | `{key}` | {' | '.join(cells)} |")
    assert len(rows) == 6
    assert missing("benchmarks/pretraining.md", rows) == []
