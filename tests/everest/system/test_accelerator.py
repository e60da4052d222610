import sys

import pytest

from everest.system.accelerator import COLLECTIVE_TIMEOUT
from everest.system.launch import Devices, LostPeer, run_processes

START = """
import os, sys, torch, torch.distributed as dist
from everest.errors import DataError
from everest.config.recipe import load_recipe
from everest.config.run_options import RunOptions
from everest.engine.context import run_context
from everest.engine.folder_check import FolderRules
from everest.system.accelerator import make_accelerator
from everest.system.launch import LostPeer
from everest_cli.main import as_user_error
accelerator = make_accelerator("fp32", cpu=True)
"""
TIMEOUT = """
accelerator.wait_for_everyone()  # a process that ends would break the connection that the other one sets up
found = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu")).options._timeout
sys.exit(found.total_seconds() != float(os.environ["EXPECTED"]))
"""
FAILING = """
try:
    options = RunOptions(stage="pretrain", recipe_file="", cpu=True)
    with run_context(options, load_recipe("demo"), print, FolderRules()):
        if accelerator.process_index == 1:
            raise DataError("this process fails")
        accelerator.wait_for_everyone()
except DataError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
except LostPeer as error:
    sys.exit(error.exit_code)
"""
LOST_AND_OWN = """
accelerator.wait_for_everyone()
if accelerator.process_index == 1:  # an error of its own, while the other waits, in words of gloo
    mine = as_user_error(RuntimeError("[gloo/pair.cc] Connection closed by peer"))
    sys.exit(0 if mine is None else 1)
try:
    accelerator.wait_for_everyone()
    accelerator.wait_for_everyone()
except RuntimeError as error:
    sys.exit(as_user_error(RuntimeError("no word about it")).exit_code)
"""


def run_two(code: str) -> tuple[int, str]:
    """Run code in two processes that are connected by gloo."""
    return run_processes(Devices(type="cpu", num_processes=2), [sys.executable, "-c", START + code])


@pytest.mark.slow
def test_a_collective_may_take_as_long_as_the_main_process_works_alone(monkeypatch):
    monkeypatch.setenv("EXPECTED", str(COLLECTIVE_TIMEOUT.total_seconds()))
    assert run_two(TIMEOUT) == (0, "")


def test_a_failing_process_ends_while_the_other_waits(capfd):
    code, errors = run_two(FAILING)
    assert code == 4
    assert (errors + capfd.readouterr().err).count("error: this process fails") == 1


@pytest.mark.slow
def test_a_lost_process_is_known_by_the_connection_not_by_words():
    code, errors = run_two(LOST_AND_OWN)
    assert (code, errors.count("lost their connections")) == (LostPeer.exit_code, 1)
