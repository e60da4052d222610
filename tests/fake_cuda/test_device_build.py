"""The device is left out, with a reason, where it cannot be built."""

from __future__ import annotations

import shutil
import subprocess
import sys

import device_build
import pytest
import torch
from device_build import Device, NoDeviceError, built_device


@pytest.mark.parametrize(
    ("reason", "owner", "name", "value"),
    [
        ("needs Linux", sys, "platform", "darwin"),
        ("needs gcc", shutil, "which", lambda tool: None),
        ("built without CUDA", torch.version, "cuda", None),
    ],
)
def test_a_machine_that_cannot_have_the_device_is_told_why(monkeypatch, reason, owner, name, value):
    monkeypatch.setattr(owner, name, value)
    with pytest.raises(NoDeviceError, match=reason):
        built_device()


def test_an_unknown_version_of_cuda_is_no_error_of_the_compiler(device, monkeypatch, tmp_path):
    monkeypatch.setattr(device_build, "SOURCES", tmp_path)
    for name in (*device_build.RUNTIME, "driver.c"):
        (tmp_path / name).write_text("#error unknown layout\n")
    with pytest.raises(NoDeviceError, match="cannot build the device for this version of CUDA"):
        built_device()


def test_memory_returns_what_was_copied_and_zeros_for_what_was_computed(device: Device):
    code = """
import torch
x = torch.arange(4.0).cuda()
assert x.cpu().tolist() == [0, 1, 2, 3]
assert x.clone().cpu().tolist() == [0, 1, 2, 3]
assert (x[1:] + 1).cpu().tolist() == [0, 0, 0]
try:
    torch.empty(10**12, device="cuda")
except torch.OutOfMemoryError:
    print("out of memory")
"""
    command = [sys.executable, "-c", code]
    environment = {**device_build.os.environ, **device.environment}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout == "out of memory\n"
