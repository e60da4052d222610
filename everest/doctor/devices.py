"""torch and what it computes on."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

from everest.doctor.finding import GIB, Finding, first_line

DRIVER: Final = Path("/proc/driver/nvidia/version")
REINSTALL: Final = "install both from one place: `pip install --force-reinstall torch torchvision`"
LITTLE_MEMORY: Final = 2 * GIB  # ours: a small model's run


def check_devices() -> Iterator[Finding]:
    """Processor and memory, torch with torchvision, GPUs."""
    yield from _processor()
    try:
        import torch
    except Exception as error:  # whatever a broken package raises
        found = f"cannot be imported: {first_line(error)}"
        yield Finding(name="torch", state="broken", found=found, mend=REINSTALL)
        return
    yield _torchvision(torch)
    yield from _cuda(torch)
    if torch.backends.mps.is_available():
        yield Finding(name="MPS", state="ok", found="a Mac's GPU: --gpus mps")


def _processor() -> Iterator[Finding]:
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(name="processor", state="ok", found=f"{allowed} cores")
    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    if memory.available < LITTLE_MEMORY:
        mend = "lower train.workers and train.micro_batch, or end other programs"
        yield Finding(name="memory", state="warning", found=found, mend=mend)
    else:
        yield Finding(name="memory", state="ok", found=found)


def _torchvision(torch: ModuleType) -> Finding:
    try:
        import torchvision

        torch.ops.torchvision.nms  # noqa: B018 — missing where the two were built for different versions
    except Exception as error:
        found = f"does not go with torch {torch.__version__}: {first_line(error)}"
        return Finding(name="torch and torchvision", state="broken", found=found, mend=REINSTALL)
    found = f"{torch.__version__} and {torchvision.__version__}"
    return Finding(name="torch and torchvision", state="ok", found=found)


def _cuda(torch: ModuleType) -> Iterator[Finding]:
    has_driver = DRIVER.is_file() or shutil.which("nvidia-smi") is not None
    if torch.version.cuda is None and torch.version.hip is None:
        if has_driver:
            mend = "install a torch for CUDA: the selector on the front page of PyTorch gives the line"
            yield Finding(
                name="CUDA", state="warning", found="an NVIDIA driver, but a torch without CUDA", mend=mend
            )
        else:
            yield Finding(name="CUDA", state="absent", found="none; runs on the CPU")
        return
    built = f"torch is built for CUDA {torch.version.cuda or torch.version.hip}"
    with warnings.catch_warnings(record=True) as said:  # why it does not start
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available and not has_driver:
        yield Finding(name="CUDA", state="absent", found=f"{built}; no driver, runs on the CPU")
    elif not available:
        reason = str(said[0].message).splitlines()[0] if said else "no GPU is visible"
        mend = "update the NVIDIA driver, or look at CUDA_VISIBLE_DEVICES"
        yield Finding(name="CUDA", state="warning", found=f"{built}, but: {reason}", mend=mend)
    else:
        yield Finding(name="CUDA", state="ok", found=built)
        yield from (_gpu(torch, number) for number in range(torch.cuda.device_count()))


def _gpu(torch: ModuleType, number: int) -> Finding:
    about, name = torch.cuda.get_device_properties(number), f"GPU {number}"
    found = f"{about.name}, {about.total_memory / GIB:.0f} GiB, capability {about.major}.{about.minor}"
    try:
        (torch.ones(8, device=f"cuda:{number}") + 1).sum().item()
    except RuntimeError as error:
        mend = "install a torch built for this GPU, or leave it out by --gpus"
        return Finding(
            name=name, state="broken", found=f"{found}; cannot compute: {first_line(error)}", mend=mend
        )
    fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return Finding(name=name, state="ok", found=f"{found}, {'bf16' if fast else 'no bf16: fp32 or fp16'}")
