"""Two nodes: two torchrun launchers on this machine that meet over loopback, with a process each."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from processes import TWO, everest, wait_for_rows
from small_runs import logged, same_run

from everest.system.run_folder import RunFolder


def nodes(*command: object) -> list[subprocess.Popen[str]]:
    """Start a command on both nodes, as the same line with another rank is typed on each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
    started = []
    for rank in (0, 1):
        line = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *words,
            "--node-rank",
            rank,
            "-m",
            "everest_cli",
        ]
        line += [*command, "--gpus", "cpu"]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(list(map(str, line)), stdout=pipe, stderr=pipe, text=True))
    return started


def ended(started: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """The exit codes, the outputs and the messages of both nodes."""
    return [(node.returncode, *shown) for node in started if (shown := node.communicate(timeout=300))]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_two_nodes_train_like_one_and_resume_after_one_is_gone(recipe: Path, tmp_path: Path, lost: int):
    command = ["pretrain", "--recipe", recipe, "--set=pretrain.epochs=30", "--set=train.save_every=5", "-o"]
    everest(*command, tmp_path / "one", *TWO, timeout=300)
    first = nodes(*command, tmp_path / "two")
    wait_for_rows(tmp_path / "two", 7, first[0])
    for process in (first[lost], *psutil.Process(first[lost].pid).children(recursive=True)):
        process.kill()  # as when the machine fails: nothing of the node is left
    codes = ended(first)
    assert codes[lost][0] == -signal.SIGKILL
    code, _, messages = codes[1 - lost]
    assert code == 1, messages  # of torchrun
    assert "error: another process of the run is gone; run the same command" in messages
    assert len(logged(tmp_path / "two")) < 30
    for rank, (code, shown, messages) in enumerate(ended(nodes(*command, tmp_path / "two"))):
        assert code == 0, messages
        assert shown.split() == ([] if rank else [str(tmp_path / "two")])
    assert same_run(tmp_path / "two", tmp_path / "one")
    assert RunFolder(tmp_path / "two").environment().plan.processes == 2
