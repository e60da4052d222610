"""Builds a CUDA device that computes nothing: a library that is loaded before CUDA's own, from device.c.

The CUDA code of torch above it is real: dispatch, autocast, the caching allocator, autograd's threads, fused
AdamW, pinned memory. So it finds tensors on two devices, waits of the host, launches, copies from pageable
memory and too little memory. It does not find wrong numbers: all that is copied from it reads as zeros. Left
out: several GPUs, compilation, cuDNN (switched off in the child) and CUPTI.

The library is built once for each version of torch, into the folder for temporary files.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "device.c"
IN_CHILD = HERE / "in_child"
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
            _try_out(Device(part))
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
    libraries = [_torch_folder() / "lib" / f"{name}.so" for name in TORCH_LIBRARIES]
    wanted = {name for path in libraries if path.is_file() for name in _symbols(path, "--undefined-only")}
    missing = {name for name in wanted if REPLACED.match(name)} - _symbols(runtime, "--defined-only")
    stubs.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(missing)))
    _gcc(SOURCE, stubs, "-lpthread", "-o", runtime)
    (folder / "driver.c").write_text(DRIVER)
    _gcc(folder / "driver.c", "-o", folder / "libcuda.so.1")


def _try_out(device: Device) -> None:
    """Raise unless torch computes on the device in a process of its own."""
    command = [sys.executable, "-c", SMOKE]
    ended = subprocess.run(command, env={**os.environ, **device.environment}, capture_output=True, text=True)
    if ended.returncode:
        last = (ended.stderr.strip() or f"code {ended.returncode}").splitlines()[-1]
        raise NoDeviceError(f"torch {_torch_version()} does not run on the device: {last}")


def _torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _include_options() -> list[str]:
    """The folders with CUDA's headers: in the packages that torch needs, or a toolkit."""
    packages = Path(sysconfig.get_paths()["purelib"])
    folders = [*sorted(packages.glob("nvidia/*/include")), packages / "triton/backends/nvidia/include"]
    folders.append(Path("/usr/local/cuda/include"))
    return [f"-I{folder}" for folder in folders if folder.is_dir()]


def _gcc(*arguments: object) -> None:
    ended = subprocess.run(
        ["gcc", *FLAGS, *_include_options(), *map(str, arguments)], capture_output=True, text=True
    )
    if ended.returncode:
        errors = [line for line in ended.stderr.splitlines() if "error" in line] or [ended.stderr]
        raise NoDeviceError(f"gcc cannot build the device for this version of CUDA: {errors[0]}")


def _symbols(library: Path, which: str) -> set[str]:
    listed = subprocess.run(["nm", "-D", which, str(library)], capture_output=True, text=True, check=True)
    return {line.split()[-1].split("@")[0] for line in listed.stdout.splitlines() if line.strip()}
