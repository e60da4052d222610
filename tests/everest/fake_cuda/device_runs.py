"""Builds a CUDA device that computes nothing, and runs commands on it in processes of their own.

It is a library that is loaded before CUDA's own, from device.c. The CUDA code of torch above it is real:
dispatch, autocast, the caching allocator, autograd's threads, fused AdamW, pinned memory. So it finds tensors
on two devices, waits of the host, launches, copies from pageable memory and too little memory. It does not
find wrong numbers: all that is copied from it reads as zeros. Left out: several GPUs, compilation, cuDNN
(switched off in the child) and CUPTI. It is built once for each version of torch, among the temporary files.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "device.c"
IN_CHILD = HERE / "in_child"
ROOT = HERE.parents[1]
TORCH_WARNING = "Warning: called a synchronizing CUDA operation"  # of threads that are not Python's
TORCH_LIBRARIES = ("libtorch_cuda", "libtorch_cuda_linalg", "libtorch_python", "libc10_cuda", "libtorch_cpu")
REPLACED = re.compile(r"(__)?cuda[A-Z]|cublas|nccl")  # names of the functions that the device replaces
FLAGS = ("-w", "-O1", "-shared", "-fPIC")
DRIVER = """
int cuDevicePrimaryCtxGetState(int d, int *flags, int *active) { return *active = 1, *flags = 0; }
int cuCtxGetCurrent(void **c) { return *c = (void *)0x9000, 0; }
"""
SMOKE = """
import torch
x = torch.arange(4.0).cuda(); assert x.cpu().tolist() == [0, 0, 0, 0]; (x @ x).item()
assert torch.cuda.get_device_properties(0).major == 9
"""


class NoDeviceError(Exception):
    """This machine, or this build of torch, cannot have the device; the text states why."""


@dataclass(frozen=True)
class Device:
    """A device that is built."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a process that is to see the device."""
        return {
            "LD_PRELOAD": str(self.folder / "runtime.so"),
            "LD_LIBRARY_PATH": str(self.folder),  # of the driver, which torch opens by its name
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False",  # the device has no virtual memory
        }


def built_device() -> Device:
    """The device for the torch of this environment, built once and kept in the folder for temporary files.

    Raises:
        NoDeviceError: with the reason.
    """
    version = _torch_version()
    source = SOURCE.read_bytes() + Path(__file__).read_bytes()
    key = hashlib.sha256(f"{version} {sys.prefix}".encode() + source).hexdigest()[:16]
    kept = Path(tempfile.gettempdir()) / f"everest-fake-cuda-{os.getuid()}"
    kept.mkdir(mode=0o700, exist_ok=True)
    if not (kept / key).is_dir():
        part = Path(tempfile.mkdtemp(dir=kept))
        try:
            _build(part)
            environment = {**os.environ, **Device(part).environment}
            smoke = [sys.executable, "-c", SMOKE]  # torch computes on the device in a process of its own
            ended = subprocess.run(smoke, env=environment, capture_output=True, text=True)
            if ended.returncode:
                last = (ended.stderr.strip() or f"code {ended.returncode}").splitlines()[-1]
                raise NoDeviceError(f"torch {version} does not run on the device: {last}")
            part.rename(kept / key)
        except OSError as error:
            if not (kept / key).is_dir():  # unless another process was faster
                raise NoDeviceError(str(error)) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return Device(kept / key)


def _torch_version() -> str:
    if sys.platform != "linux":
        raise NoDeviceError("the device needs Linux")
    missing = [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]
    if missing:
        raise NoDeviceError(f"the device needs {missing[0]}")
    import torch

    if torch.version.cuda is None:
        raise NoDeviceError(f"torch {torch.__version__} is built without CUDA")
    return torch.__version__


def _build(folder: Path) -> None:
    """Compile the library into `folder`, with a stub that reports success for all that it leaves out."""
    runtime, stubs = folder / "runtime.so", folder / "stubs.c"
    _gcc(SOURCE, "-lpthread", "-o", runtime)
    torch = Path(str(importlib.util.find_spec("torch").origin)).parent
    libraries = [torch / "lib" / f"{name}.so" for name in TORCH_LIBRARIES]
    wanted = {name for path in libraries if path.is_file() for name in _symbols(path, "--undefined-only")}
    missing = {name for name in wanted if REPLACED.match(name)} - _symbols(runtime, "--defined-only")
    stubs.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(missing)))
    _gcc(SOURCE, stubs, "-lpthread", "-o", runtime)
    (folder / "driver.c").write_text(DRIVER)
    _gcc(folder / "driver.c", "-o", folder / "libcuda.so.1")


def _gcc(*arguments: object) -> None:
    """Compile with CUDA's headers: those in the packages that torch needs, or of a toolkit."""
    packages = Path(sysconfig.get_paths()["purelib"])
    folders = sorted(packages.glob("nvidia/*/include"))
    folders += [packages / "triton/backends/nvidia/include", Path("/usr/local/cuda/include")]
    include = [f"-I{folder}" for folder in folders if folder.is_dir()]
    ended = subprocess.run(["gcc", *FLAGS, *include, *map(str, arguments)], capture_output=True, text=True)
    if ended.returncode:
        errors = [line for line in ended.stderr.splitlines() if "error" in line] or [ended.stderr]
        raise NoDeviceError(f"gcc cannot build the device for this version of CUDA: {errors[0]}")


def _symbols(library: Path, which: str) -> set[str]:
    listed = subprocess.run(["nm", "-D", which, str(library)], capture_output=True, text=True, check=True)
    return {line.split()[-1].split("@")[0] for line in listed.stdout.splitlines() if line.strip()}


@dataclass(frozen=True)
class Step:
    """What a process did between two updates of the weights."""

    waits: list[str]  # functions of everest in which the host waited for the device, in order
    counts: dict[str, int]  # of kernels, copies and waits: see device.c


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str
    steps: list[Step]  # of its process that used the device
    counts: dict[str, int]

    @property
    def step(self) -> Step:
        """The fourth step: everything is set up, and nothing is saved."""
        return self.steps[3]


def run_command(
    device: Device, command: list[str], *, timeout: float = 300, extra: dict[str, str] | None = None
) -> Ended:
    """Run a command of Python on the device, and collect what its process records.

    Args:
        command: arguments of the interpreter, such as `-m everest_cli pretrain`.
        extra: further variables of its environment.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            **device.environment,
            "PYTHONPATH": os.pathsep.join([str(IN_CHILD), str(ROOT)]),
            "OMP_NUM_THREADS": "1",
            "FAKE_CUDA_REPORT": folder,
            **(extra or {}),
        }
        started = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=PIPE, stderr=PIPE, text=True
        )
        try:
            stdout, stderr = started.communicate(timeout=timeout)
        finally:
            if started.poll() is None:
                for each in [*psutil.Process(started.pid).children(recursive=True), started]:
                    each.kill()
                started.communicate()
        reports = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    used = max(reports, key=lambda report: report["counts"]["reserved_bytes_peak"])
    lines = [line for line in stderr.splitlines(keepends=True) if TORCH_WARNING not in line]
    steps = [Step(**step) for step in used["steps"]]
    return Ended(started.returncode, stdout, "".join(lines), steps, used["counts"])


def run_everest(device: Device, *arguments: object, **options: Any) -> Ended:
    """Run a command of everest on the device."""
    return run_command(device, ["-m", "everest_cli", *map(str, arguments)], **options)
