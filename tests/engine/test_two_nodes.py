"""Two nodes: two torchrun launchers on this machine that meet over loopback, with a process each."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from processes import TWO, everest, wait_for_rows
from small_runs import logged, same_run, sets

from everest.system.run_folder import RunFolder

PAGE = Path(__file__).parents[2] / "docs" / "large.md"


def nodes(*options: object) -> list[subprocess.Popen[str]]:
    """Start the command of the page on both nodes, with a process each and other options of the run."""
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
    assert RunFolder(tmp_path / "two").environment().plan.processes == 2
