"""Builds the CUDA device that computes nothing: two libraries that are loaded before CUDA's own."""

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
SOURCES = HERE / "device"
IN_CHILD = HERE / "in_child"
RUNTIME = ("counters.c", "memory.c", "runtime.c", "blas.c", "nccl.c")
TORCH_LIBRARIES = ("libtorch_cuda", "libtorch_cuda_linalg", "libtorch_python", "libc10_cuda", "libtorch_cpu")
REPLACED = re.compile(r"(__)?cuda[A-Z]|cublas|nccl")  # names of the functions that the device replaces
FLAGS = ("-w", "-O1", "-shared", "-fPIC")
SMOKE = """
import torch
x = torch.arange(4.0).cuda(); assert x.cpu().tolist() == [0, 1, 2, 3]; (x @ x).item()
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
            "LD_LIBRARY_PATH": str(self.folder),
            "TRITON_LIBCUDA_PATH": str(self.folder),
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False",  # the device has no virtual memory
        }


def built_device() -> Device:
    """The device for the torch of this environment, built once and kept in the folder for temporary files.

    Raises:
        NoDeviceError: with the reason.
    """
    version = _torch_version()
    sources = b"".join(path.read_bytes() for path in [*sorted(SOURCES.iterdir()), Path(__file__)])
    key = hashlib.sha256(f"{version} {sys.prefix}".encode() + sources).hexdigest()[:16]
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
    """Compile both libraries into `folder`."""
    runtime = folder / "runtime.so"
    sources = [str(SOURCES / name) for name in RUNTIME]
    _gcc(*sources, "-ldl", "-lpthread", "-o", runtime)
    libraries = [_torch_folder() / "lib" / f"{name}.so" for name in TORCH_LIBRARIES]
    wanted = {name for path in libraries if path.is_file() for name in _symbols(path, "--undefined-only")}
    stubs = {name for name in wanted if REPLACED.match(name)} - _symbols(runtime, "--defined-only")
    _gcc(*sources, _stubs(folder / "stubs.c", stubs), "-ldl", "-lpthread", "-o", runtime)

    driver = folder / "libcuda.so.1"
    options = ["-Wl,-soname,libcuda.so.1", "-ldl", "-o", driver]
    _gcc(SOURCES / "driver.c", *options)
    stubs = _declared("cuda.h") - _symbols(driver, "--defined-only")
    _gcc(SOURCES / "driver.c", _stubs(folder / "driver_stubs.c", stubs), *options)
    (folder / "libcuda.so").symlink_to("libcuda.so.1")


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


def _declared(header: str) -> set[str]:
    """The functions of the driver that a header declares, by their names in the library."""
    command = ["gcc", "-E", "-P", *_include_options(), "-include", header, "-x", "c", "/dev/null"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"\bCUresult\s+(cu[A-Z]\w*)\s*\(", text))


def _stubs(path: Path, names: set[str]) -> Path:
    """A source file with functions that report success and do nothing else."""
    path.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(names)))
    return path
