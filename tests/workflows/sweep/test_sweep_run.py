import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import everest, start
from small_runs import called, json_of, refused

from everest.system.events import ignore_event
from everest.system.files import is_unfinished
from everest.system.launch import Devices
from everest.system.locks import is_running
from everest.system.processes import num_cores
from everest.system.signals import Stopped
from everest_workflows.sweep import run as sweep_run
from everest_workflows.sweep.request import read_request
from everest_workflows.sweep.results import JobNumbers
from everest_workflows.sweep.run import JobLauncher, run_sweep
from everest_workflows.sweep.sweep_jobs import plan_sweep


def results(folder: Path) -> dict[str, Any]:
    """The results of a sweep without times and memory."""
    document = json.loads((folder / "results.json").read_text())
    for variant in document["variants"]:
        for row in variant["seeds"]:
            del row["hours"], row["memory_bytes"]
    return document


@pytest.mark.slow
def test_a_sweep_runs_reports_and_is_not_run_again(recipe: Path, tmp_path: Path, clip_files: Path):
    """One fine-tuning serves two variants; the third fails, and does not end the others."""
    (tmp_path / "wrong.csv").write_text(f"{clip_files}/clip0.mp4 0\n{clip_files}/clip1.mp4 7\n")
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        f"recipe: {recipe}\nstages: [finetune, eval]\nset: {{finetune.epochs: 1}}\n"
        "variants:\n  one: {eval.clips: 1}\n  two: {eval.clips: 2}\n"
        f"  wrong: {{data.train: {tmp_path}/wrong.csv}}\n"
    )
    out = tmp_path / "out"
    command = ["sweep", sweep, "-o", out, "--seeds", "3,", "--jobs", 2]
    ended = called(*command, code=69)
    assert ended.stdout == f"{out}\n"
    lines = [line for line in ended.stderr.splitlines() if line.startswith("[")]
    assert len(lines) == 5
    assert [line for line in lines if "one (and 1 more), seed 3: finetune, val top-1" in line]
    assert [line for line in lines if "wrong, seed 3: finetune, failed: " in line and "wrong.csv:2" in line]
    assert [line for line in lines if "wrong, seed 3: eval, skipped, because its finetune has failed" in line]
    assert "wrong, seed 3: finetune/" in ended.stderr
    document = results(out)
    assert document["jobs"] == {"all": 5, "finished": 3}
    assert [failure["variants"] for failure in document["failures"]] == [["wrong"], ["wrong"]]
    assert [len(list((out / stage).glob("*.json"))) for stage in ("finetune", "eval")] == [0, 2]
    evaluated = [json.loads(path.read_text()) for path in (out / "eval").glob("*.json")]
    assert sorted(each["views"]["clips"] for each in evaluated) == [1, 2]

    reported = json_of("sweep report", out)
    variants = [(variant["variant"], variant["seeds"]) for variant in reported["variants"]]
    assert variants == [("one", [3]), ("two", [3]), ("wrong", [])]
    values = {each["views"]["clips"]: each["top1"] for each in evaluated}
    assert [variant["values"] for variant in reported["variants"][:2]] == [[values[1]], [values[2]]]
    assert reported["variants"][0]["gmacs"] == reported["variants"][1]["gmacs"] > 0
    figure = (out / "report.png").read_bytes()
    page = (out / "report.html").read_text()
    assert all(name in page for name in ("Δ vs.", "training GMACs", "data:image/png"))
    shown = called("sweep", "report", out, "--metric", "macro_f1").stdout
    assert ((out / "report.png").read_bytes(), (out / "report-macro_f1.png").is_file()) == (figure, True)
    assert "one seed: no interval" in shown
    assert "wrong, seed 3: eval/" in shown
    assert [len(path.read_text().splitlines()) for path in (out / "eval").glob("*.csv")] == [5, 5]
    metrics = ["--metric", "top1", "--metric", "macro_f1"]
    table = called("sweep", "report", out, *metrics, "--format", "latex").stdout
    assert table.startswith("\\begin{table}\n\\centering\n\\begin{tabular}{lrrr")
    assert "GMACs a view" in table

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
    assert "[" not in kept.stderr
    assert kept.stderr.endswith(f"next:\n  everest sweep report {out}\n")
    assert results(out)["failures"] == []
    assert results(out)["variants"] == document["variants"][:2]
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_wrong_options_are_refused_and_nothing_is_written(recipe: Path, tmp_path: Path):
    out = tmp_path / "out"
    for options, code, message in (
        ("--over finetune.base_lr", 2, "--over finetune.base_lr: give section.key=value,value"),
        ("--over finetune.base_lrr=1", 2, "unknown key; did you mean 'base_lr'?"),
        ("--seeds none", 2, "--seeds: give a number of seeds"),
        ("--stages eval", 2, "eval needs finetune"),
        ("--set train.seed=1", 2, "train.seed: a sweep sets it; give --seeds"),
        (f"--init {recipe}", 6, "not a safetensors file, or a damaged one"),
        ("--gpus many", 2, "--gpus many: give auto"),
        ("--data gone", 4, "gone: no such folder"),
        ("--set data.test=gone.csv", 4, "gone.csv: no such list or folder"),
    ):
        shown = refused("sweep", recipe, "-o", out, *options.split(), code=code)
        assert message in shown
        assert len(shown.splitlines()) == 1
        assert not out.exists()


def test_a_folder_that_is_no_sweep_is_refused(recipe: Path, tmp_path: Path, clip_files: Path):
    assert "holds other files" in refused("sweep", recipe, "-o", clip_files, code=2)
    assert "name the folder of `everest sweep`" in refused("sweep report", clip_files, code=2)


DELETES_ITS_LOG = "import os; os.unlink(os.readlink('/proc/self/fd/2')); os._exit(3)"
FAILS = "import os, sys; print('error: no list', file=sys.stderr); sys.exit(4)"
# Stands in for a job that saves at a signal.
SAVES = (
    "import os, signal, time\n"
    "def stop(*_): os.write(2, b'saved\\n'); os._exit(5)\n"  # print may be interrupted by itself
    "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, stop)\n"
    "os.write(2, b'ready\\n')\n"
    "while True: time.sleep(0.05)"  # not once: a signal just before a sleep is handled after it
)


def swept(recipe: Path, folder: Path, code: str, *, jobs: int = 1, emit=ignore_event) -> dict[str, Any]:
    """Run a sweep of two seeds whose jobs are this Python code."""
    plan = plan_sweep(read_request(str(recipe), seeds="2"), data=None)
    program, devices = [sys.executable, "-c", code], Devices(type="cpu")
    return run_sweep(plan, folder, JobLauncher(program=program, devices=devices, parallel=jobs), emit)


def test_jobs_that_need_a_failed_one_are_skipped_and_the_error_is_that_of_the_last_call(recipe, tmp_path):
    silent_ends = ("import os; os._exit(3)", DELETES_ITS_LOG)
    for code, error in ((FAILS, "no list"), *((code, "no message") for code in silent_ends)):
        document = swept(recipe, tmp_path / "out", code)
        errors = [failure["error"] for failure in document["failures"]]
        assert [text.partition(" (messages")[0] for text in errors[:3]] == [
            f"failed: {error}",
            "skipped, because its pretrain has failed",
            "skipped, because its finetune has failed",
        ]
        assert (len(errors), document["jobs"]) == (6, {"all": 6, "finished": 0})
    again, plan = (read_request(str(path), seeds="2") for path in (tmp_path / "out" / "sweep.yaml", recipe))
    assert plan_sweep(again, data=None).jobs().keys() == plan_sweep(plan, data=None).jobs().keys()


def test_an_evaluation_without_metrics_is_a_failure(recipe, tmp_path, monkeypatch: pytest.MonkeyPatch):
    trained = JobNumbers({}, 0.0, 0.0)
    read = sweep_run.read_job
    monkeypatch.setattr(
        sweep_run, "read_job", lambda job, folder: read(job, folder) if job.stage == "eval" else trained
    )
    failures = swept(recipe, tmp_path / "out", "print('[]')")["failures"]
    assert [failure["error"] for failure in failures] == ["failed: ended without a result"] * 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_jobs_at_once_and_starts_no_others(recipe, tmp_path, number: signal.Signals):
    def stop() -> None:
        while sum("ready" in log.read_text() for log in tmp_path.glob("out/pretrain/*.log")) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Stopped, match="stopped: 0 of 6 jobs finished; the same command resumes") as stopped:
        swept(recipe, tmp_path / "out", SAVES, jobs=2)
    thread.join()
    assert stopped.value.exit_code == 128 + number
    logs = list(tmp_path.glob("out/*/*.log"))
    assert [log.read_text() for log in logs] == ["ready\nsaved\n"] * 2
    assert signal.getsignal(number) == before


def test_an_error_of_the_sweep_ends_its_jobs(recipe: Path, tmp_path: Path):
    """One of two jobs at once fails, and its report cannot be written."""
    code = (
        "import os, sys, time\n"
        f"try: os.open({str(tmp_path / 'first')!r}, os.O_CREAT | os.O_EXCL)\n"
        "except FileExistsError: sys.exit(1)\n"
        "print(os.getpid(), file=sys.stderr, flush=True); time.sleep(60)"
    )

    def fail(event: dict[str, Any]) -> None:
        if "failed" in str(event):
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        swept(recipe, tmp_path / "out", code, jobs=2, emit=fail)
    pids = [int(text) for log in tmp_path.glob("out/*/*.log") if (text := log.read_text().strip())]
    assert len(pids) == 1
    assert not psutil.pid_exists(pids[0]) or psutil.Process(pids[0]).status() == psutil.STATUS_ZOMBIE


def test_each_job_at_once_has_its_device(monkeypatch: pytest.MonkeyPatch):
    two, cpu = Devices(type="cuda", num_processes=2), Devices(type="cpu")
    gpus = [{"EVEREST_JOBS": "3", "CUDA_VISIBLE_DEVICES": name} for name in ("0", "1", "0")]
    halves = [{"EVEREST_JOBS": "2", "OMP_NUM_THREADS": str(max(1, num_cores() // 2))}] * 2
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for devices, jobs, name, environments in (
        (Devices(type="cuda", num_processes=4), 1, "auto", [{"CUDA_VISIBLE_DEVICES": "0,1,2,3"}]),
        (two, 1, "auto", [{"CUDA_VISIBLE_DEVICES": "0,1"}]),
        (two, 3, "1", gpus),
        (cpu, 1, "cpu", [{}]),
        (cpu, 2, "cpu", halves),
    ):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        launcher = JobLauncher(program=["everest"], devices=devices, parallel=jobs)
        assert (launcher.gpus, launcher.environments) == (name, environments)
        if devices is cpu:
            monkeypatch.setenv("OMP_NUM_THREADS", "7")  # the user's own choice
            assert launcher.environments == [{} if jobs == 1 else {"EVEREST_JOBS": str(jobs)}] * jobs


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
    """Two variants and two seeds, with one pre-training for each seed."""
    options = ["--over", "finetune.base_lr=0.1,0.2", "--seeds", 2, "--jobs", 2, "--gpus", "cpu"]
    options += ["--set", "pretrain.epochs=12", "--set", "finetune.epochs=8"]
    began = time.monotonic()
    everest("sweep", recipe, "-o", tmp_path / "whole", *options, timeout=1200)
    seconds = time.monotonic() - began
    rng = random.Random(0)
    for _ in range(2):
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
    first, second = (json.loads(text)["variants"] for text in reports)
    for variant in (*first, *second):
        del variant["hours"], variant["memory_bytes"]
    assert first == second


@pytest.mark.slow
def test_a_signal_saves_the_jobs_and_another_sweep_is_refused(recipe: Path, tmp_path: Path):
    number, out = signal.SIGTERM, tmp_path / "out"
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
