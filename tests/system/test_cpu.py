"""Settings of a process on a CPU: products stay float32, freed memory is kept for the next step."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from everest.system import compute as cpu
from everest.system.accelerator import make_accelerator
from everest.system.compute import configure_cpu, matmul_stays_float32


@pytest.fixture(autouse=True)
def default_precision() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


def error_of_a_product() -> float:
    """The error of float32 against float64, relative to the size of the factors."""
    torch.manual_seed(0)
    a, b = torch.randn(300, 400), torch.randn(400, 500)
    exact, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    return ((a @ b - exact).abs() / size).max().item()


def test_products_on_amd_have_the_precision_of_float32(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "_made_by_amd", lambda: True)
    plain = error_of_a_product()
    configure_cpu()
    assert error_of_a_product() <= max(2 * plain, 2**-20)  # bfloat16 has an error of 2**-9


def test_amd_processors_that_lower_the_precision_keep_the_default(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "_made_by_amd", lambda: True)
    monkeypatch.setattr(cpu, "matmul_stays_float32", lambda: False)  # as on a processor with AMX
    configure_cpu()
    assert torch.get_float32_matmul_precision() == "highest"


def test_other_processors_keep_the_default(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "_made_by_amd", lambda: False)
    configure_cpu()
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(("vendor", "amd"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_the_vendor_is_read_from_the_kernel(tmp_path: Path, vendor: str, amd: bool):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    assert cpu._made_by_amd(cpuinfo) is amd


def test_a_lower_precision_is_noticed():
    assert matmul_stays_float32()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not matmul_stays_float32()


@pytest.mark.parametrize("tf32", [False, True])
def test_a_run_on_a_cpu_has_the_precision_of_float32(tf32: bool):
    make_accelerator("auto", tf32=tf32, cpu=True)
    assert error_of_a_product() <= 2**-20


FAULTS = """
import resource
import torch
from everest.system.compute import TRAINER_KEEPS, keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_freed_memory(TRAINER_KEEPS)
for number in range(8):
    before = faults()
    tensors = [torch.ones(5_000_000) for _ in range(20)]  # 20 MB each
    del tensors
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_step_reuses_the_memory_of_the_step_before():
    ended = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, check=True)
    assert int(ended.stdout) < 1000  # of the 97,656 pages that it requests
