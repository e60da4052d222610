"""Several processes, also on two nodes: the same numbers as one, one error shown once."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from processes import TWO, UNMIXED, everest, killed_run_of_two, start, wait_for_rows
from small_runs import logged, run, same_run, sets, weights

from everest.errors import EnvironmentProblem, RecipeError
from everest.system.launch import Devices, read_devices
from everest.system.processes import adopt_slurm, is_launched
from everest.system.run_folder import RunFolder
from everest.system.signals import PARENT_VARIABLE


@pytest.mark.slow  # between views: fast
def test_two_processes_with_half_the_batch_each_equal_one(recipe: Path, tmp_path: Path):
    options = ["--recipe", recipe, "--set", "pretrain.epochs=20"]
    run("pretrain", *options, "-o", tmp_path / "one", "--gpus", "cpu", "--set", "train.micro_batch=4")
    shown = everest("pretrain", *options, "-o", tmp_path / "two", *TWO)
    assert shown.stdout.splitlines() == [str(tmp_path / "two")]
    assert logged(tmp_path / "two") == pytest.approx(logged(tmp_path / "one"), abs=1e-5)
    two, one = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert two.keys() == one.keys()
    assert all(two[name].shape == one[name].shape for name in one)
    assert max((two[name] - one[name]).abs().max() for name in one) < 1e-3


@pytest.mark.slow
def test_drop_path_does_not_depend_on_processes_and_micro_batches(recipe: Path, tmp_path: Path):
    plain = sets(*UNMIXED[:3], "finetune.epochs=20")  # with drop path
    command = ["finetune", "--recipe", recipe, "--init", "none", *plain]
    for name, clips in (("one", 4), ("four", 1)):
        run(*command, "-o", tmp_path / name, "--gpus", "cpu", "--set", f"train.micro_batch={clips}")
    everest(*command, "-o", tmp_path / "two", *TWO)
    run(*command, "-o", tmp_path / "none", "--set", "finetune.drop_path=0", "--gpus", "cpu")
    for name in ("four", "two"):
        assert logged(tmp_path / name) == pytest.approx(logged(tmp_path / "one"), abs=1e-5)
    assert logged(tmp_path / "none") != pytest.approx(logged(tmp_path / "one"), abs=1e-3)


@pytest.mark.slow
def test_evaluation_does_not_depend_on_the_number_of_processes(recipe, clip_files, tmp_path):
    run("finetune", "--recipe", recipe, "--init", "none", "-o", tmp_path / "run", "--gpus", "cpu")
    (tmp_path / "list.csv").write_text("".join(f"{clip_files}/clip{i % 4}.mp4 {i % 2}\n" for i in range(5)))
    files, measured = [], []
    for processes in (1, 3):
        files.append(tmp_path / f"{processes}.csv")
        more = ["--report", tmp_path / f"page{processes}", "--json", "-q"]
        options = ["--set", f"data.test={tmp_path}/list.csv", "--gpus", "cpu", "--processes", processes]
        shown = everest("eval", "-c", tmp_path / "run", "--predictions", files[-1], *options, *more)
        document = json.loads(shown.stdout)
        assert document["videos"] == 5
        measured.append({key: document[key] for key in ("top1", "clip_top1", "intervals", "per_class")})
    assert files[0].read_text() == files[1].read_text()
    assert measured[0] == measured[1]
    assert len({(tmp_path / f"page{n}" / "confusion.png").read_bytes() for n in (1, 3)}) == 1


@pytest.mark.slow
def test_a_killed_run_of_two_resumes_to_the_same_bits(recipe: Path, tmp_path: Path):
    options = sets("pretrain.epochs=30")
    whole, parts = killed_run_of_two(["pretrain", "--recipe", recipe, *options], tmp_path, rows=5)
    assert same_run(parts, whole)


@pytest.mark.slow
def test_a_run_of_two_resumes_with_one(recipe: Path, tmp_path: Path):
    options = ["--recipe", recipe, *sets("pretrain.epochs=30")]
    run("pretrain", *options, "-o", tmp_path / "whole", "--gpus", "cpu")
    parts = tmp_path / "parts"
    process = start("pretrain", *options, "-o", parts, *TWO)
    wait_for_rows(parts, 5, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert logged(parts)[-1] != logged(tmp_path / "whole")[-1]
    run("pretrain", *options, "-o", parts, "--gpus", "cpu")
    assert logged(parts) == pytest.approx(logged(tmp_path / "whole"), abs=1e-4)


@pytest.mark.slow
def test_one_killed_process_ends_all_and_the_run_can_be_resumed(recipe: Path, tmp_path: Path):
    options = ["--recipe", recipe, "--set", "pretrain.epochs=40", "-o", tmp_path / "run"]
    command = [sys.executable, "-m", "everest_cli", "pretrain", *map(str, options), *TWO]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_rows(tmp_path / "run", 5, process)
    other = next(child for child in psutil.Process(process.pid).children() if child.environ()["RANK"] == "1")
    other.kill()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 5, stderr
    assert stderr.count("was killed by SIGKILL") == 1
    assert "Traceback" not in stderr
    everest("pretrain", *options, *TWO)
    assert len(logged(tmp_path / "run")) == 40


def test_an_error_of_the_user_that_mentions_connections_is_shown(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(PARENT_VARIABLE, str(os.getpid()))
    ended = everest("recipes", "show", tmp_path / "connections" / "nope.yaml", code=2)
    assert "connections/nope.yaml: cannot be read" in ended.stderr


@pytest.mark.slow
def test_an_error_of_all_is_shown_once(recipe: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for name, option, code, message in (
        ("run", "--set=data.train=gone.csv", 4, "gone.csv"),
        ("run", "--set=pretrain.batch_size=3", 2, "does not divide over 2 processes"),
        ("mine", "-q", 2, "is not a run folder"),
    ):
        ended = everest("pretrain", "--recipe", recipe, "-o", tmp_path / name, option, *TWO, code=code)
        assert ended.stderr.count(message) == 1
        assert "Traceback" not in ended.stderr
        assert ended.stdout == ""


@pytest.mark.slow
def test_torchrun_needs_no_help(recipe: Path, tmp_path: Path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    options = ["--recipe", recipe, "-o", tmp_path / "run", "--gpus", "cpu"]
    command = [*torchrun, "-m", "everest_cli", "pretrain", *map(str, options)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == str(tmp_path / "run")
    assert RunFolder(tmp_path / "run").read_environment().plan.processes == 2


def test_devices_are_read_from_the_options():
    assert read_devices("cpu", None) == Devices(type="cpu")
    assert read_devices("cpu", 4) == Devices(type="cpu", num_processes=4)
    for gpus in ("", "two", "0,2", "2,", "-1", "0"):
        with pytest.raises(RecipeError):
            read_devices(gpus, None)
    with pytest.raises(EnvironmentProblem, match="--gpus 99: this machine has"):
        read_devices("99", None)
    with pytest.raises(RecipeError, match="--processes goes with --gpus cpu"):
        read_devices("auto", 2)


def test_a_task_of_slurm_becomes_a_process_of_torch():
    expected = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"}
    hosts = {"node3": "node3", "a,b": "a", "gpu[07-09,11]": "gpu07", "gpu[1,3]": "gpu1", "x1,y[2-3]": "x1"}
    for nodes, first in hosts.items():
        steps = {"NUM_TASKS": "16", "TASKS_PER_NODE": "8(x2)", "NODELIST": nodes}
        environment = {f"SLURM_STEP_{name}": value for name, value in steps.items()}
        environment |= {"SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456"}
        adopt_slurm(environment)
        assert (expected | {"MASTER_ADDR": first}).items() <= environment.items()
        assert 20000 <= int(environment["MASTER_PORT"]) < 40000


@pytest.mark.slow
def test_of_the_tasks_of_slurm_only_the_first_prints(recipe: Path, tmp_path: Path):
    steps = {"NUM_TASKS": "2", "TASKS_PER_NODE": "2", "NODELIST": "localhost"}
    shared = {f"SLURM_STEP_{name}": value for name, value in steps.items()}
    shared["SLURM_JOB_ID"] = str(os.getpid())
    command = [sys.executable, "-m", "everest_cli", "pretrain", "--recipe", recipe, "--gpus", "cpu"]
    command += ["--set", "pretrain.epochs=1", "-o", tmp_path / "run"]
    tasks = [
        subprocess.Popen(  # as srun starts them
            list(map(str, command)),
            env=os.environ | shared | {"SLURM_PROCID": task, "SLURM_LOCALID": task},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for task in "01"
    ]
    shown = [task.communicate(timeout=120) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], shown
    assert shown[0][0].splitlines()[0] == str(tmp_path / "run")
    assert "2 processes" in shown[0][1]
    assert "Warning" not in shown[0][1]
    assert shown[1] == ("", "")


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ("WORLD_SIZE=2", "the environment has WORLD_SIZE, but not RANK, LOCAL_RANK, MASTER_PORT, "),
        ("RANK=7 LOCAL_RANK=7 WORLD_SIZE=1", "but not MASTER_PORT, MASTER_ADDR: a "),
        (
            "RANK=x LOCAL_RANK=0 WORLD_SIZE=1 MASTER_PORT=1 MASTER_ADDR=here",
            "RANK=x in the environment is not a number; unset it",
        ),
    ],
)
def test_incomplete_or_wrong_variables_of_a_launcher_are_named(monkeypatch, variables: str, problem: str):
    monkeypatch.setenv("LOCAL_RANK", "-1")
    assert not is_launched()
    monkeypatch.delenv("LOCAL_RANK")
    for variable in variables.split():
        monkeypatch.setenv(*variable.split("="))
    with pytest.raises(EnvironmentProblem, match=re.escape(problem)):
        is_launched()


@pytest.mark.slow
def test_a_first_signal_at_a_terminal_is_answered_at_once(tmp_path: Path, recipe: Path):
    run = RunFolder(tmp_path / "run")
    command = ["pretrain", "--recipe", str(recipe), "-o", str(run.path)]
    command += ["--set=pretrain.epochs=400", "--gpus=cpu"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "everest_cli", *command])
    os.set_blocking(terminal, False)
    shown, signaled, deadline = b"", False, time.monotonic() + 300
    while time.monotonic() < deadline:
        if not signaled and len(run.rows()) >= 2:
            os.kill(pid, signal.SIGINT)
            signaled = True
        try:
            shown += os.read(terminal, 2**16)
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:  # the terminal is closed: the command has ended
            break
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert b"SIGINT: saving after this step; a second one ends without saving" in shown
    assert shown.index(b"saving after this step") < shown.index(b"saved after step")


PAGE = Path(__file__).parents[3] / "docs" / "large.md"


def nodes(*options: object) -> list[subprocess.Popen[str]]:
    """Start the command of the page on two nodes of this machine, with a process each and other options."""
    (line,) = re.findall(r"^torchrun (.* -m everest_cli pretrain) ", PAGE.read_text(), re.MULTILINE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = line.replace("HOST", "127.0.0.1").replace("29500", str(port)).replace("node 8", "node 1")
    torchrun, pipe = [sys.executable, "-m", "torch.distributed.run"], subprocess.PIPE
    started = []
    for rank in (0, 1):
        words = line.replace("--node-rank 0", f"--node-rank {rank}").split()
        command = [*torchrun, *words, *map(str, options), "--gpus", "cpu"]
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
    return started


def ended(started: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """The exit codes, the outputs and the messages of both nodes."""
    return [(node.returncode, *shown) for node in started if (shown := node.communicate(timeout=300))]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_two_nodes_train_like_one_and_resume_after_one_is_gone(recipe: Path, tmp_path: Path, lost: int):
    options = ["--recipe", recipe, *sets("pretrain.epochs=30", "train.save_every=5"), "-o"]
    everest("pretrain", *options, tmp_path / "one", *TWO, timeout=300)
    first = nodes(*options, tmp_path / "two")
    wait_for_rows(tmp_path / "two", 7, first[0])
    for process in (first[lost], *psutil.Process(first[lost].pid).children(recursive=True)):
        process.kill()  # as when the machine fails: nothing of the node is left
    codes = ended(first)
    assert codes[lost][0] == -signal.SIGKILL
    code, _, messages = codes[1 - lost]
    assert code == 1, messages  # of torchrun
    assert "error: another process of the run is gone; see its output, and run the same" in messages
    assert len(logged(tmp_path / "two")) < 30
    for rank, (code, shown, messages) in enumerate(ended(nodes(*options, tmp_path / "two"))):
        assert code == 0, messages
        assert shown.split() == ([] if rank else [str(tmp_path / "two")])
    assert same_run(tmp_path / "two", tmp_path / "one")
    assert RunFolder(tmp_path / "two").read_environment().plan.processes == 2
