"""Process settings on a CPU: products stay float32, memory is not returned to the system after every step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from everest.models.block import Block
from everest.system import cpu
from everest.system.accelerator import make_accelerator
from everest.system.cpu import has_onednn_matmul, matmul_stays_float32, use_onednn_matmul


def error_of_a_product() -> float:
    """The error of float32 against float64, relative to the factors."""
    torch.manual_seed(0)
    a, b = torch.randn(300, 400), torch.randn(400, 500)
    exact, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    return ((a @ b - exact).abs() / size).max().item()


def test_onednn_matmul_has_the_precision_of_float32(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "_is_amd", lambda: True)
    torch.set_float32_matmul_precision("highest")
    plain = error_of_a_product()
    use_onednn_matmul()
    assert error_of_a_product() <= max(2 * plain, 2**-20)  # bfloat16 is wrong by 2**-9


def test_onednn_is_not_used_where_it_lowers_the_precision(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "_is_amd", lambda: True)
    monkeypatch.setattr(cpu, "matmul_stays_float32", lambda: False)  # as on a processor with AMX
    use_onednn_matmul()
    assert torch.get_float32_matmul_precision() == "highest"
    assert not has_onednn_matmul()


def test_other_processors_use_the_products_and_attention_of_torch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "_is_amd", lambda: False)
    use_onednn_matmul()
    assert torch.get_float32_matmul_precision() == "highest"
    assert not has_onednn_matmul()


@pytest.mark.parametrize(("vendor", "amd"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_the_vendor_is_read_from_the_kernel(tmp_path: Path, vendor: str, amd: bool):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    assert cpu._is_amd(cpuinfo) is amd


@pytest.mark.usefixtures("onednn_matmul")
def test_a_model_works_with_other_settings_of_the_program():
    block, x = Block(32, 2), torch.randn(1, 5, 32)
    torch.backends.cuda.matmul.allow_tf32 = False
    with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
        torch.get_float32_matmul_precision()
    assert block(x).isfinite().all()


def test_a_lower_precision_is_detected():
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
from everest.system.cpu import TRAINER_KEEPS, keep_freed_memory

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
