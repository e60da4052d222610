"""What a check finds.

Python and the packages, against the versions that everest's own metadata asks for and was tested with.

torch and what it computes on.

The decoders of videos, each on a file that is written here. F frames, H W pixels.

What the operating system grants: shared memory, disk, open files.

All checks, one after another.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Final, Literal

from everest.errors import EnvironmentProblem

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from torch import Tensor

GIB: Final = 2**30
State = Literal["ok", "absent", "warning", "broken"]


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One thing that was looked at.

    Args:
        state: absent: optional and not there. warning: works, with trouble to expect. broken: needed.
        mend: what to do about it; None where all is well.
    """

    name: str
    state: State
    found: str
    mend: str | None = None


def first_line(error: Exception) -> str:
    """The beginning of an error's message, which may be pages long."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


PACKAGE: Final = "everest-video"
# For users; the others are for developers.
EXTRAS: Final = ("energy", "export", "remote", "shards", "trackers")


def check_packages() -> Iterator[CheckResult]:
    """Python, every needed package, every optional one."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        about = importlib.metadata.metadata(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        yield CheckResult(name=PACKAGE, state="warning", found="not installed", mend="run `pip install .`")
        return
    yield CheckResult(name=PACKAGE, state="ok", found=about["Version"])
    python, asked = platform.python_version(), about["Requires-Python"]
    fits = SpecifierSet(asked).contains(python, prereleases=True)
    yield CheckResult(
        name="Python",
        state="ok" if fits else "broken",
        found=python,
        mend=None if fits else f"install Python {asked}",
    )
    requirements = [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or []]
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _needed(requirement)
    for extra in EXTRAS:
        yield from (_optional(requirement, extra) for requirement in requirements if _of(requirement, extra))


def _of(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _needed(requirement: Requirement) -> CheckResult:
    version = _version(requirement)
    if version is None:
        mend = f"run `pip install '{requirement.name}{requirement.specifier}'`"
        return CheckResult(name=requirement.name, state="broken", found="not installed", mend=mend)
    return _judged(requirement, version)


def _optional(requirement: Requirement, extra: str) -> CheckResult:
    version = _version(requirement)
    if version is None:
        mend = f"if wanted: `pip install '{PACKAGE}[{extra}]'`"
        return CheckResult(name=requirement.name, state="absent", found=f"not installed ({extra})", mend=mend)
    return _judged(requirement, version)


def _version(requirement: Requirement) -> str | None:
    try:
        return importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _judged(requirement: Requirement, version: str) -> CheckResult:
    """An installed version against the oldest that works and the newest that was tested."""
    name, asked = requirement.name, requirement.specifier
    if asked.contains(version, prereleases=True):
        return CheckResult(name=name, state="ok", found=version)
    oldest = [part for part in asked if part.operator == ">="]
    mend = f"run `pip install '{name}{asked}'`"
    if any(not part.contains(version, prereleases=True) for part in oldest):
        return CheckResult(name=name, state="broken", found=f"{version}, too old", mend=mend)
    found = f"{version}, newer than tested"
    return CheckResult(name=name, state="warning", found=found, mend=f"in case of trouble {mend}")


DRIVER: Final = Path("/proc/driver/nvidia/version")
REINSTALL: Final = "install both from one place: `pip install --force-reinstall torch torchvision`"
LITTLE_MEMORY: Final = 2 * GIB  # ours: a small model's run


def check_devices() -> Iterator[CheckResult]:
    """Processor and memory, torch with torchvision, GPUs."""
    yield from _processor()
    try:
        import torch
    except Exception as error:  # whatever a broken package raises
        found = f"cannot be imported: {first_line(error)}"
        yield CheckResult(name="torch", state="broken", found=found, mend=REINSTALL)
        return
    yield _torchvision(torch)
    yield from _cuda(torch)
    if torch.backends.mps.is_available():
        yield CheckResult(name="MPS", state="ok", found="a Mac's GPU: --gpus mps")


def _processor() -> Iterator[CheckResult]:
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield CheckResult(name="processor", state="ok", found=f"{allowed} cores")
    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    if memory.available < LITTLE_MEMORY:
        mend = "lower train.workers and train.micro_batch, or end other programs"
        yield CheckResult(name="memory", state="warning", found=found, mend=mend)
    else:
        yield CheckResult(name="memory", state="ok", found=found)


def _torchvision(torch: ModuleType) -> CheckResult:
    try:
        import torchvision

        torch.ops.torchvision.nms  # noqa: B018 — missing where the two were built for different versions
    except Exception as error:
        found = f"does not go with torch {torch.__version__}: {first_line(error)}"
        return CheckResult(name="torch and torchvision", state="broken", found=found, mend=REINSTALL)
    found = f"{torch.__version__} and {torchvision.__version__}"
    return CheckResult(name="torch and torchvision", state="ok", found=found)


def _cuda(torch: ModuleType) -> Iterator[CheckResult]:
    has_driver = DRIVER.is_file() or shutil.which("nvidia-smi") is not None
    if torch.version.cuda is None and torch.version.hip is None:
        if has_driver:
            mend = "install a torch for CUDA: the selector on the front page of PyTorch gives the line"
            yield CheckResult(
                name="CUDA", state="warning", found="an NVIDIA driver, but a torch without CUDA", mend=mend
            )
        else:
            yield CheckResult(name="CUDA", state="absent", found="none; runs on the CPU")
        return
    built = f"torch is built for CUDA {torch.version.cuda or torch.version.hip}"
    with warnings.catch_warnings(record=True) as said:  # why it does not start
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available and not has_driver:
        yield CheckResult(name="CUDA", state="absent", found=f"{built}; no driver, runs on the CPU")
    elif not available:
        reason = str(said[0].message).splitlines()[0] if said else "no GPU is visible"
        mend = "update the NVIDIA driver, or look at CUDA_VISIBLE_DEVICES"
        yield CheckResult(name="CUDA", state="warning", found=f"{built}, but: {reason}", mend=mend)
    else:
        yield CheckResult(name="CUDA", state="ok", found=built)
        yield from (_gpu(torch, number) for number in range(torch.cuda.device_count()))


def _gpu(torch: ModuleType, number: int) -> CheckResult:
    about, name = torch.cuda.get_device_properties(number), f"GPU {number}"
    found = f"{about.name}, {about.total_memory / GIB:.0f} GiB, capability {about.major}.{about.minor}"
    try:
        (torch.ones(8, device=f"cuda:{number}") + 1).sum().item()
    except RuntimeError as error:
        mend = "install a torch built for this GPU, or leave it out by --gpus"
        return CheckResult(
            name=name, state="broken", found=f"{found}; cannot compute: {first_line(error)}", mend=mend
        )
    fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return CheckResult(name=name, state="ok", found=f"{found}, {'bf16' if fast else 'no bf16: fp32 or fp16'}")


ASKED: Final = (11, 0, 7)  # frames, out of order
CLOSE: Final = 4.0  # levels of a mean difference: compression; another frame differs by far more
NEEDED: Final = "pyav"  # reads every file; the others are faster on some
REINSTALL_AV: Final = "run `pip install --force-reinstall av`"


def check_decoders() -> Iterator[CheckResult]:
    """FFmpeg, and a real decode by every back-end."""
    try:
        import av
    except Exception as error:  # whatever a broken package raises
        found = f"cannot be imported: {first_line(error)}"
        yield CheckResult(name="PyAV", state="broken", found=found, mend=REINSTALL_AV)
        return
    versions = (
        f"{name} {'.'.join(map(str, version))}" for name, version in sorted(av.library_versions.items())
    )
    yield CheckResult(name="FFmpeg of PyAV", state="ok", found=", ".join(versions))
    try:
        from everest.video.backends import DECODERS
        from everest.video.writer import write_video
    except Exception as error:
        found = f"not tried: {first_line(error)}"
        yield CheckResult(name="decoders", state="broken", found=found, mend="mend the packages above first")
        return
    frames = _rendered()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rendered.mp4"
        write_video(path, frames, fps=12)
        for name in DECODERS:
            if name != "auto":
                yield _decoded(name, path, frames)


def _rendered() -> Tensor:
    """(16, 64, 96, 3) uint8: a bright bar that goes right."""
    import torch

    frames = torch.full((16, 64, 96, 3), 40, dtype=torch.uint8)
    for number in range(16):
        frames[number, :, 4 * number : 4 * number + 24] = 220
    return frames


def _decoded(name: str, path: Path, frames: Tensor) -> CheckResult:
    from everest.video.reader import VideoError, read_frames

    title = f"decoder {name}"
    try:
        read = read_frames(path, ASKED, decoder=name)  # (F, H, W, 3)
    except EnvironmentProblem as error:
        return CheckResult(
            name=title, state="absent", found=first_line(error), mend="data.decoder: auto does without"
        )
    except VideoError as error:
        return _trouble(name, error.reason)
    except Exception as error:  # whatever a broken package raises
        return _trouble(name, first_line(error))
    difference = float((read.float() - frames[list(ASKED)].float()).abs().mean())
    if difference > CLOSE:
        return _trouble(name, f"returns other frames than asked for (mean difference {difference:.1f})")
    return CheckResult(name=title, state="ok", found=f"reads the right {len(ASKED)} frames")


def _trouble(name: str, found: str) -> CheckResult:
    if name == NEEDED:
        return CheckResult(name=f"decoder {name}", state="broken", found=found, mend=REINSTALL_AV)
    return CheckResult(
        name=f"decoder {name}", state="warning", found=found, mend="leave data.decoder at auto"
    )


SHARED: Final = Path("/dev/shm")
ENOUGH_SHARED: Final = GIB  # ours; a container has 64 MiB unless told, a batch of clips takes as much
ENOUGH_DISK: Final = 5 * GIB  # ours: states of a ViT-B run, twice
ENOUGH_FILES: Final = 1024  # ours: workers share their batches by open files


def check_system() -> Iterator[CheckResult]:
    """Shared memory, the disk of the working folder, the limit of open files."""
    if SHARED.is_dir():
        total = shutil.disk_usage(SHARED).total
        mend = "start the container with --shm-size=8g or --ipc=host, or set train.workers=0"
        yield _enough("shared memory", f"{total / GIB:.1f} GiB", total >= ENOUGH_SHARED, mend)
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    told = f"{free / GIB:.1f} GiB free at {here}"
    if not os.access(here, os.W_OK):
        yield _enough("disk", f"{here} cannot be written", False, "name another --output")
    else:
        yield _enough("disk", told, free >= ENOUGH_DISK, "free some space, or name another --output")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    unlimited = limit == resource.RLIM_INFINITY
    told = "no limit" if unlimited else str(limit)
    yield _enough("open files", told, unlimited or limit >= ENOUGH_FILES, "run `ulimit -n 4096` before")


def _enough(name: str, found: str, enough: bool, mend: str) -> CheckResult:
    return CheckResult(
        name=name, state="ok" if enough else "warning", found=found, mend=None if enough else mend
    )


CHECKS: Final[dict[str, Callable[[], Iterator[CheckResult]]]] = {
    "packages": check_packages,
    "devices": check_devices,
    "decoders": check_decoders,
    "system": check_system,
}


def examine() -> list[CheckResult]:
    """What all checks find. One that cannot even be made is a finding too."""
    found: list[CheckResult] = []
    for name, check in CHECKS.items():
        try:
            found += check()
        except ImportError as error:
            mend = f"run `pip install --force-reinstall {PACKAGE}`"
            found.append(CheckResult(name=name, state="broken", found=first_line(error), mend=mend))
    return found
