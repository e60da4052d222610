import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import everest, start
from small_runs import called, json_of, refused

from everest.system.files import is_unfinished
from everest.system.locks import is_running


def results(folder: Path) -> dict[str, Any]:
    """The results of a sweep without times."""
    document = json.loads((folder / "results.json").read_text())
    for arm in document["arms"]:
        for row in arm["seeds"]:
            del row["hours"]
    return document


@pytest.mark.slow
def test_a_sweep_runs_reports_and_is_not_run_again(recipe: Path, tmp_path: Path, clip_files: Path):
    """One fine-tuning serves two arms; the third fails, and does not end the others."""
    (tmp_path / "wrong.csv").write_text(f"{clip_files}/clip0.mp4 0\n{clip_files}/clip1.mp4 7\n")
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        f"recipe: {recipe}\nstages: [finetune, eval]\nset: {{finetune.epochs: 1}}\n"
        "arms:\n  one: {eval.clips: 1}\n  two: {eval.clips: 2}\n"
        f"  wrong: {{data.train: {tmp_path}/wrong.csv}}\n"
    )
    out = tmp_path / "out"
    command = ["sweep", sweep, "-o", out, "--seeds", "3,", "--jobs", 2]
    ended = called(*command, code=69)
    assert ended.stdout == f"{out}\n"
    lines = [line for line in ended.stderr.splitlines() if line.startswith("[")]
    assert len(lines) == 5
    assert [line for line in lines if "one and 1 more arm, seed 3: finetune, validation top-1" in line]
    assert [line for line in lines if "wrong, seed 3: finetune, failed: " in line and "wrong.csv:2" in line]
    assert [line for line in lines if "wrong, seed 3: eval, skipped, because its finetune has failed" in line]
    assert "failed: wrong, seed 3: finetune/" in ended.stderr
    document = results(out)
    assert document["jobs"] == {"all": 5, "finished": 3}
    assert [failure["arms"] for failure in document["failures"]] == [["wrong"], ["wrong"]]
    assert [len(list((out / stage).glob("*.json"))) for stage in ("finetune", "eval")] == [0, 2]
    evaluated = [json.loads(path.read_text()) for path in (out / "eval").glob("*.json")]
    assert sorted(each["views"]["clips"] for each in evaluated) == [1, 2]

    reported = json_of("sweep report", out)
    arms = [(arm["arm"], arm["seeds"]) for arm in reported["arms"]]
    assert arms == [("one", [3]), ("two", [3]), ("wrong", [])]
    values = {each["views"]["clips"]: each["top1"] for each in evaluated}
    assert [arm["values"] for arm in reported["arms"][:2]] == [[values[1]], [values[2]]]
    assert reported["arms"][0]["gmacs"] == reported["arms"][1]["gmacs"] > 0
    assert (out / "report.png").is_file()
    shown = called("sweep", "report", out, "--metric", "macro_f1").stdout
    assert "one seed: no interval" in shown
    assert "failed: wrong, seed 3" in shown

    # The list is corrected: only the failed jobs run.
    files = {path: path.stat().st_mtime_ns for path in out.glob("*/*/model.safetensors")}
    again = called("sweep", sweep, "-o", out, "--seeds", "3,", "--dry-run")
    assert len(again.stdout.splitlines()) == 5
    (tmp_path / "wrong.csv").write_text(f"{clip_files}/clip0.mp4 0\n{clip_files}/clip1.mp4 1\n")
    retried = [line for line in called(*command).stderr.splitlines() if line.startswith("[")]
    stages = [line.partition(" wrong, seed 3: ")[2].partition(",")[0] for line in retried]
    assert stages == ["finetune", "eval"]
    assert results(out)["jobs"] == {"all": 5, "finished": 5}
    sweep.write_text(sweep.read_text().partition("  wrong")[0])
    kept = called(*command)
    assert "the arm 'wrong' of the earlier call is not compared any more" in kept.stderr
    assert "[" not in kept.stderr
    assert kept.stderr.endswith(f"next:\n  everest sweep report {out}\n")
    assert results(out)["failures"] == []
    assert results(out)["arms"] == document["arms"][:2]
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_wrong_options_are_refused_and_nothing_is_written(recipe: Path, tmp_path: Path):
    out = tmp_path / "out"
    for options, code, message in (
        ("--over finetune.base_lr", 2, "--over finetune.base_lr: give section.key=value,value"),
        ("--over finetune.base_lrr=1", 2, "unknown key; did you mean 'base_lr'?"),
        ("--seeds none", 2, "--seeds: give a number of seeds"),
        ("--stages eval", 2, "--stages: eval needs finetune"),
        ("--against x", 2, "--against: unknown name 'x'"),
        ("--set train.seed=1", 2, "train.seed: a sweep sets it; give --seeds"),
        ("--init gone", 6, "no such checkpoint"),
        ("--gpus many", 2, "--gpus many: give auto"),
        ("--data gone", 4, "gone: no such folder"),
        ("--set data.test=gone.csv", 4, "gone.csv: no such list or folder"),
        ("--equal gmacs --over pretrain.selection.keep_ratio=0.3,0.6", 2, "pretrain.epochs: arms of equal"),
    ):
        shown = refused("sweep", recipe, "-o", out, *options.split(), code=code)
        assert message in shown
        assert len(shown.splitlines()) == 1
        assert not out.exists()


def test_a_folder_that_is_no_sweep_is_refused(recipe: Path, tmp_path: Path, clip_files: Path):
    assert "holds other files" in refused("sweep", recipe, "-o", clip_files, code=2)
    assert "name the folder of `everest sweep`" in refused("sweep report", clip_files, code=2)
    (tmp_path / "results.json").write_text('{"arms": 5}')
    assert "results.json: damaged" in refused("sweep report", tmp_path, code=2)


def test_a_job_ends_with_its_sweep(tmp_path: Path):
    """Also before its first step, where no loop looks after the parent."""
    code = (
        "import sys, time; sys.argv = ['everest']\n"
        "from everest.system.signals import end_with_parent\n"
        "end_with_parent(); print('ready', flush=True); time.sleep(60)"
    )
    parent = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {code!r}], stdout=subprocess.PIPE,\n"
        "    env={**os.environ, 'EVEREST_PARENT': str(os.getpid())}, start_new_session=True)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 30
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the job outlived its sweep"
        time.sleep(0.05)


def jobs_in(folder: Path) -> list[Path]:
    """The runs that a process trains."""
    return [run for run in folder.glob("*/*") if run.is_dir() and is_running(run)]


@pytest.mark.slow
def test_a_killed_sweep_ends_with_the_results_of_one_that_was_not(recipe: Path, tmp_path: Path):
    """Two arms and two seeds, with one pre-training for each seed."""
    options = ["--over", "finetune.base_lr=0.1,0.2", "--seeds", 2, "--jobs", 2, "--gpus", "cpu"]
    options += ["--set", "pretrain.epochs=30", "--set", "finetune.epochs=20"]
    began = time.monotonic()
    everest("sweep", recipe, "-o", tmp_path / "whole", *options, timeout=1200)
    seconds = time.monotonic() - began
    rng = random.Random(0)
    for _ in range(3):
        process = start("sweep", recipe, "-o", tmp_path / "killed", *options)
        time.sleep(rng.uniform(0.15, 0.5) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    everest("sweep", recipe, "-o", tmp_path / "killed", *options, timeout=1200)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    assert results(tmp_path / "whole")["jobs"] == {"all": 10, "finished": 10}
    whole, killed = (sorted(tmp_path.glob(f"{name}/*/*/model.safetensors")) for name in ("whole", "killed"))
    assert [path.parts[-3:] for path in whole] == [path.parts[-3:] for path in killed]
    assert not [path for path in (tmp_path / "killed").rglob("*") if is_unfinished(path.name)]
    reports = [everest("sweep", "report", tmp_path / name, "--json").stdout for name in ("whole", "killed")]
    first, second = (json.loads(text)["arms"] for text in reports)
    for arm in (*first, *second):
        del arm["hours"]
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_jobs_and_another_sweep_is_refused(recipe, tmp_path, number):
    out = tmp_path / "out"
    options = ["--stages", "pretrain", "--set", "pretrain.epochs=3000", "--gpus", "cpu"]
    command = [sys.executable, "-m", "everest_cli", "sweep", str(recipe), "-o", str(out), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 120
    while not list(out.glob("pretrain/*/state/step-*.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    busy = refused("sweep", recipe, "-o", out, *options, code=2)
    assert "another sweep runs there now" in busy
    process.send_signal(number)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert messages.splitlines()[-1] == "stopped: 0 of 1 jobs finished; the same command resumes"
    assert jobs_in(out) == []
    assert "saved" in next(out.glob("pretrain/*.log")).read_text()
