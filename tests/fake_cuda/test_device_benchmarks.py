"""The benchmarks for a GPU end well on one that computes nothing, and an error of one item is a row."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gpu_page
import measuring
import pytest
import torch
from device_build import Device
from device_runs import ROOT, run_command
from gpu_cases import GFLOP
from saved import gflop, without_numbers
from steps import Case, clips_for, our_pass


def rows_of(device: Device, folder: Path, script: str, *options: str) -> list[dict[str, Any]]:
    command = [str(ROOT / "benchmarks" / script), *options, "--seconds", "0"]
    ended = run_command(device, command, timeout=400, extra={"OUT": str(folder)})
    assert ended.code == 0, ended.stderr
    (path,) = folder.glob("*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row for row in rows if "error" in row] == []
    return rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "options", "items"),
    [
        (
            "A",
            ["--only=machine,same,step everest-s,step plain-e"],
            {"step everest-s", "step plain-everest-b"},
        ),
        ("B", ["--only", "machine,product,same,step blocks-everest-s"], {"step blocks-everest-s"}),
        (
            "C",
            ["--only=machine,videos,loader 1,run 1_view", "--videos=2", "--batch=4", "--run-seconds=25"],
            {"videos", "run 1_view"},
        ),
    ],
)
def test_a_part_of_the_first_minutes_ends_well(device, tmp_path, part, options, items):
    rows = rows_of(device, tmp_path, "gpu_first.py", part, *options)
    assert items <= {row["item"] for row in rows}
    for row in rows:
        if row["item"] == "step everest-s" and row["batch"] == 256:
            assert row["memory_bytes_per_clip"] == pytest.approx(36.3e6, rel=0.02)
            assert row["waits"] is None
        if row["item"] == "step plain-everest-b":
            assert "synchronizing" in row["waits"]
        if row["item"] == "step blocks-everest-s":
            assert row["graph_breaks"] == 0
        if row["item"] == "run 1_view":
            assert row["steps"] > 0


@pytest.mark.slow
def test_a_step_is_published_on_a_page(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = rows_of(device, tmp_path, "gpu_first.py", "A", "--only", "machine,step everest-s,step videomae-s")
    names = [row["case"] for row in rows if "case" in row]
    assert "everest-s" in names
    page = Path(shutil.copy(measuring.PAGE, tmp_path))
    monkeypatch.setattr(measuring, "HERE", tmp_path)
    options = [str(tmp_path / "A.jsonl"), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", ["gpu_page.py", *options])
    gpu_page.main()
    text = page.read_text()
    assert "| everest-s | 256 | no | 1.0 (1.0-1.0) |" in text
    assert "- speed with 256 clips, everest-s / videomae-s: 1, goal 2.0: missed" in text
    assert "computes nothing" in text
    assert "H100 80GB" not in text.partition("<!-- benchmarks/gpu_page.py -->")[2]
    assert json.loads((tmp_path / "results" / "gpu_page.json").read_text())["rows"][0]["machine"]["gpu"]


def test_the_tables_of_the_page_are_what_the_results_give():
    page = measuring.PAGE.read_text()
    rows = json.loads((ROOT / "benchmarks" / "results" / "gpu_page.json").read_text())["rows"]
    tables = [make(rows) for make in gpu_page.TABLES]
    assert all(table and table in page for table in tables)
    assert [make([]) for make in gpu_page.TABLES[1:]] == [""] * (len(tables) - 1)  # nothing was measured


@pytest.mark.parametrize(("recipe", "backbone"), [("k400", "vit-b"), ("videomae-k400", "vit-s")])
def test_the_counted_flops_are_constants(recipe: str, backbone: str):
    model = Case(recipe, "pretrain", (f"model.backbone={backbone}",)).build()
    with without_numbers(model):
        counted = gflop(our_pass(model, torch.float32), clips_for(model, 1))
    assert counted == pytest.approx(GFLOP[recipe, backbone], rel=1e-3)
