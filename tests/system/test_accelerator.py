import sys

from everest.system.accelerator import COLLECTIVE_TIMEOUT
from everest.system.launch import Devices, run_processes

START = """
import os, sys
import torch, torch.distributed as dist
from everest.errors import DataError
from everest.engine.start import end_training_on_error
from everest.system.accelerator import make_accelerator
from everest_cli.main import torch_problem
accelerator = make_accelerator("fp32", tf32=False, cpu=True)
"""
TIMEOUT = """
found = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu")).options._timeout
sys.exit(found.total_seconds() != float(os.environ["EXPECTED"]))
"""
FAILING = """
try:
    with end_training_on_error(accelerator):
        if accelerator.process_index == 1:
            raise DataError("this process fails")
        accelerator.wait_for_everyone()
except DataError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
except RuntimeError as error:
    sys.exit(getattr(torch_problem(error), "exit_code", 1))
"""


def run_two(code: str) -> tuple[int, str]:
    """Run code in two processes that are connected by gloo."""
    return run_processes(Devices(kind="cpu", processes=2), [sys.executable, "-c", START + code])


def test_a_collective_may_take_as_long_as_the_main_process_works_alone(monkeypatch):
    monkeypatch.setenv("EXPECTED", str(COLLECTIVE_TIMEOUT.total_seconds()))
    assert run_two(TIMEOUT) == (0, "")


def test_a_failing_process_ends_while_the_other_waits(capfd):
    code, errors = run_two(FAILING)
    assert code == 4
    assert (errors + capfd.readouterr().err).count("error: this process fails") == 1
