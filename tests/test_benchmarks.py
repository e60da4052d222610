"""The scripts of benchmarks/ in miniature on a CPU, and the pages with what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_page
import gpu_real_page
import measuring
import public_weights
import pytest
import torch
from gpu_cases import GFLOP
from gpu_real import ARMS, IMAGE, MINIATURE
from steps import Case, clips_for, gflop, our_pass, without_numbers
from training_step import TrainingStep

from everest_workflows.project.result import MeasuredTest
from everest_workflows.project.verdict import list_results

ROOT = Path(__file__).resolve().parents[1]
VIDEOS = ROOT.parent / "shared" / "videos"
RESULTS = sorted((ROOT / "benchmarks" / "results" / "gpu_real").glob("*.jsonl"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (VIDEOS / "lips").is_dir():
        pytest.skip(f"no real clips in {VIDEOS}")
    folder = tmp_path_factory.mktemp("clips")
    run = [sys.executable, ROOT / "benchmarks" / "gpu_clips.py", VIDEOS, folder]
    subprocess.run(run, check=True)
    return folder


def check_rows(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row for row in rows if "error" in row] == []
    pretrained = [(row["arm"], row["part"]) for row in rows if "part" in row]
    trained = {name: arm for name, arm in ARMS.items() if arm.trials}
    assert pretrained == [
        (name, part) for name, arm in trained.items() for part in (*["trial"] * len(arm.trials), "run")
    ]
    jobs = [(row["arm"], row["labels"], row["steps"]) for row in rows if row["item"] == "job"]
    tuned = [(arm, labels, MINIATURE.steps[labels or 0]) for arm in ARMS for labels in (2, None)]
    assert sorted(jobs, key=str) == sorted([*tuned, *((arm, None, 0) for arm in [*ARMS, IMAGE])], key=str)
    return rows


def test_a_measured_step_changes_the_weights():
    step = TrainingStep("small", ["data.size=32", "model.width=32", "train.compile=false"])
    before = [weight.clone() for weight in step.model.parameters()]
    assert step.run(step.clips(2, random=True)).isfinite()
    assert not all(map(torch.equal, before, step.model.parameters()))


@pytest.mark.slow
def test_the_miniature_writes_its_rows_and_a_page(clips: Path, tmp_path: Path):
    script = ROOT / "benchmarks" / "gpu_real.py"
    environment = {"OUT": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    run = [sys.executable, str(script), str(clips), "--miniature", "--seed", "4"]
    subprocess.run(run, check=True, env=environment)
    rows = check_rows(tmp_path / "gpu_real.jsonl")
    for row in (row for row in rows if row.get("part") == "run"):
        trials = [each for each in rows if each.get("part") == "trial" and each["arm"] == row["arm"]]
        best = min(trials, key=lambda each: each["losses"][-1])
        assert (row["batch"], row["base_lr"]) == (best["batch"], best["base_lr"])
        assert {each["first_loss"] for each in trials if each["batch"] == row["batch"]} == {row["first_loss"]}
        assert row["seconds"] >= MINIATURE.seconds
    (shares,) = [row["shares"] for row in rows if row["item"] == "draws"]
    assert shares.keys() == {"interaction", "unlabeled"}
    assert sum(shares.values()) == pytest.approx(1)
    (tested,) = [row for row in rows if row["item"] == "tested"]
    counts = f"{len(tested['labels'])} ({len(set(tested['groups']))}; 1)"  # clips (groups; seeds)
    text = gpu_real_page.page(gpu_real_page.Calls([tmp_path / "gpu_real.jsonl"]))
    assert f"| interaction6 | {counts} |" in text
    assert "Too few for a claim" in text


@pytest.mark.slow
def test_the_feed_of_a_gpu_is_measured_in_miniature(tmp_path: Path):
    video = VIDEOS / "odd" / "mae_demo_853x480.avi"
    if not video.is_file():
        pytest.skip(f"no {video}")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_feed.py"), str(video), "--seconds", "0.2"]
    environment = {"OUT": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    subprocess.run([*command, "--processes", "2"], check=True, env=environment)
    rows = [json.loads(line) for line in (tmp_path / "gpu_feed.jsonl").read_text().splitlines()]
    rates = {row["item"]: row["clips_per_second"] for row in rows if "processes" in row}
    assert rates.keys() == {"jpeg 2", "h264 2"}
    assert min(rates.values()) > 0


def test_the_page_is_what_the_committed_rows_give():
    assert gpu_real_page.PAGE.exists() == bool(RESULTS)
    if RESULTS:
        assert gpu_real_page.PAGE.read_text() == gpu_real_page.page(gpu_real_page.Calls(RESULTS))


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
    rows = [*list_results(MeasuredTest.of(measured)), measured["judgment"]]
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


def test_differences_are_paired_by_seed_and_baselines_come_last():
    results = {
        "difference image": {"knn": 40.0, "linear": 50.0},
        "from scratch": {"finetuned": {"0": 50.0, "1": 52.0, "2": 54.0}},
        "hf:a/b": {"knn": 60.0, "linear": 70.0, "finetuned": {"2": 65.0, "0": 60.0, "1": 62.5}},
    }
    rows = public_weights.table(results).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| hf:a/b", "| difference image", "| from scratch"]
    assert rows[0] == "| hf:a/b | 60.0 | 70.0 | 62.5 | **+10.5 (+9.3 to +11.7)** |"


def test_one_call_compares_weights_and_continues(recipe, classifier_run, clip_files, tmp_path, monkeypatch):
    command = ["", recipe, clip_files, tmp_path / "out", classifier_run, "--seeds", "2"]
    monkeypatch.setattr("sys.argv", list(map(str, command)))
    public_weights.main()
    path = tmp_path / "out" / "results.json"
    results = json.loads(path.read_text())
    assert set(results) == {str(classifier_run), "difference image", "from scratch"}
    assert set(results["from scratch"]["finetuned"]) == {"0", "1"}
    path.write_text(json.dumps(results | {"from scratch": {"finetuned": {"0": 12.5, "1": 13.5}}}))
    public_weights.main()  # nothing is measured again
    assert "| from scratch |  |  | 13.0 |" in (tmp_path / "out" / "public_weights.md").read_text()
