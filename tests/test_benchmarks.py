"""The scripts of benchmarks/ in miniature on a CPU, and the pages with what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu_first import GFLOP
from steps import Case, clips_for, gflop, our_pass, without_numbers

from everest_cli.output import print_table
from everest_workflows.project.result import MeasuredTest
from everest_workflows.project.summary import class_table, describe_answer

ROOT = Path(__file__).resolve().parents[1]


def measured_on_a_cpu(folder: Path, only: str) -> list[dict[str, Any]]:
    """The rows of `gpu_first.py` for some items."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_first.py"), "--cpu", "--only", only]
    environment = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    subprocess.run([*command, "--out", str(folder)], check=True, env=environment)
    rows = [json.loads(line) for line in (folder / "gpu_first.jsonl").read_text().splitlines()]
    assert [row for row in rows if "error" in row] == []
    return rows


def test_the_first_minutes_of_a_gpu_run_on_a_cpu(tmp_path: Path):
    only = "machine,ceilings,same,step everest-s,step plain-everest-b,step views-b"
    rows = measured_on_a_cpu(tmp_path, only)
    assert [row["gradient_error"] for row in rows if row["item"] == "same as the CPU"] == [0, 0, 0]
    cases = [row["case"] for row in rows if "case" in row]
    assert cases == ["everest-s", "views-b", "plain-everest-b", "everest-s", "views-b"]
    table = (tmp_path / "gpu_first.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table[2:7]] == [f"| {case}" for case in cases]


@pytest.mark.slow
def test_the_loader_and_training_runs_of_a_gpu_run_on_a_cpu(tmp_path: Path):
    rows = measured_on_a_cpu(tmp_path, "videos,loader,run")
    assert all(row["clips_per_second"] > 0 for row in rows if "views" in row)
    assert [row["code"] for row in rows if "run" in row] == [0, 0]


@pytest.mark.parametrize(("recipe", "backbone"), [("k400", "vit-b"), ("videomae-k400", "vit-s")])
def test_the_counted_flops_are_constants(recipe: str, backbone: str):
    model = Case(recipe, "pretrain", (f"model.backbone={backbone}",)).build()
    with without_numbers(model):
        counted = gflop(our_pass(model, torch.float32), clips_for(model, 1))
    assert counted == pytest.approx(GFLOP[recipe, backbone], rel=1e-3)


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def missing(page: str, rows: list[str]) -> list[str]:
    """The rows with which no line of a page begins."""
    lines = (ROOT / page).read_text().splitlines()
    return [row for row in rows if not any(line.startswith(row) for line in lines)]


def test_timelines(capsys: pytest.CaptureFixture[str]):
    rows, recordings = [], results("mouse_recordings")
    for name, of_set in (results("timelines") | {"mouse": recordings}).items():
        for rules, scores in of_set["scores"].items():
            f1 = " / ".join(f"{scores[f'f1@{k}']:.0f}" for k in (10, 25, 50))
            frames = f"{scores['frame_accuracy']:.0f} ({scores['majority_accuracy']:.0f})"
            others = [f"{scores[key]:.0f}" for key in ("mean_class_accuracy", "edit", "map@0.5")]
            rows.append(f"| {' | '.join([name, rules, frames, *others[:2], f1, others[2]])} |")
    assert missing("benchmarks/timelines.md", rows) == []
    paths = {"skipped": 0, "report": "", "checkpoint": "", "figure": ""}
    folds = [fold | paths | {"timelines": fold | paths | {"recordings": []}} for fold in recordings["folds"]]
    measured = recordings["train"] | paths | {"folds": folds}
    measured |= {"timelines": measured}
    test = MeasuredTest.of(measured)
    print_table(*class_table(test))
    rows = [describe_answer(test), measured["judgment"], *capsys.readouterr().out.splitlines()]
    for name, row in recordings["confusion"].items():
        true, model, _, draws = recordings["budget"]["classes"][name].values()
        cells = f"{true:.1f} s", f"{model:.1f} s", "{:.1f} s ({:.1f} to {:.1f})".format(*draws[0])
        rows += [f"| {name} | {' | '.join(each)} |" for each in (map(str, row.values()), cells)]
    assert missing("docs/long-recordings.md", rows) == []


def test_intervals_of_time_budgets():
    found, names, rows = results("budget_coverage"), ("groom", "move", "rear", "still", "jump"), []
    for number in (8, 24):
        for name in names:
            cells = []
            for part in ("all", "animal and day"):
                row = found[f"{number} windows of each animal, {part}"][name]
                cells.append(f"{row['true']:.0f} s")
                cells += [
                    f"{row[f'{of} contains']:.0f} %, ± {row[f'{of} half']:.0f} s"
                    for of in ("model", "watched")
                ]
            rows.append(f"| {number} | {name} | {' | '.join(cells)} | {row['saved']} % |")
    assert missing("docs/evidence.md", rows) == []
    contains = [row["model contains"] for key, of in found.items() if "windows" in key for row in of.values()]
    assert min(contains) >= 90
    assert np.mean(contains) >= 94
    rows = [
        f"| {windows} | {plan['minutes']:.0f} | {' | '.join(f'± {plan[name]:.1f} %' for name in names[:4])} |"
        for windows, plan in found["plan"].items()
        if windows != "5"
    ]
    assert missing("docs/long-recordings.md", rows) == []


def test_curves_of_views():
    rows = []
    for key, values in results("view_features")["curves"]["contrast, uniform and camera"].items():
        cells = [f"{low:.2f} to {high:.2f}" for low, high in values]
        rows.append(f"| `small-views` | `{key}` | {' | '.join(cells)} |")
    assert len(rows) == 4
    assert missing("benchmarks/pretraining.md", rows) == []
