"""Checks of a machine: packages, devices and decoders; everest.profiling.machine_checks has the others.

Nothing heavy is imported before its own check: a broken package is a result, not a crash.
F frames, H W pixels.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Final

from everest.errors import EnvironmentProblem
from everest.profiling.machine_checks import GIB, CheckResult, at_least, check_system, first_line
from everest.system.cores import num_cores
from everest.system.posix import free_host_memory, host_memory

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from torch import Tensor
    from torch import device as Device


def run_checks() -> list[CheckResult]:
    """Run all checks. A check that cannot run at all is a result, too."""
    results: list[CheckResult] = []
    for name, check in CHECKS.items():
        try:
            results += check()
        except ImportError as error:
            fix = f"run `pip install --force-reinstall {PACKAGE}`"
            results.append(CheckResult(name, "broken", first_line(error), fix))
    return results


# --- packages -----------------------------------------------------------------------------------------------

PACKAGE: Final = "everest-video"
EXTRAS: Final = ("export", "remote", "trackers")  # for users; the others are for developers


def check_packages() -> Iterator[CheckResult]:
    """Check Python and the packages against the versions in everest's own metadata."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        about = importlib.metadata.metadata(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        yield CheckResult(PACKAGE, "warning", "not installed", "run `pip install .`")
        return
    yield CheckResult(PACKAGE, "ok", about["Version"])
    python, required = platform.python_version(), about["Requires-Python"]
    if SpecifierSet(required).contains(python, prereleases=True):
        yield CheckResult("Python", "ok", python)
    else:
        yield CheckResult("Python", "broken", python, f"install Python {required}")
    requirements = [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or []]
    yield from (_check_package(needed) for needed in requirements if _applies(needed))
    for extra in EXTRAS:
        optional = (part for part in requirements if _applies(part, extra) and not _applies(part))
        yield from (_check_package(requirement, extra) for requirement in optional)


def _applies(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _check_package(requirement: Requirement, extra: str = "") -> CheckResult:
    """Check an installed version against the oldest that works and the newest that was tested.

    Args:
        extra: the extra that brings the package; empty if everest always needs it.
    """
    name, versions = requirement.name, requirement.specifier
    fix = f"run `pip install '{name}{versions}'`"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if not extra:
            return CheckResult(name, "broken", "not installed", fix)
        return CheckResult(
            name, "absent", f"not installed ({extra})", f"if wanted: `pip install '{PACKAGE}[{extra}]'`"
        )
    if versions.contains(version, prereleases=True):
        return CheckResult(name, "ok", version)
    oldest = [part for part in versions if part.operator == ">="]
    if any(not part.contains(version, prereleases=True) for part in oldest):
        return CheckResult(name, "broken", f"{version}, too old", fix)
    return CheckResult(name, "warning", f"{version}, newer than tested", f"in case of problems {fix}")


# --- devices ------------------------------------------------------------------------------------------------

DRIVER: Final = Path("/proc/driver/nvidia/version")
REINSTALL_TORCH: Final = "install both from one place: `pip install --force-reinstall torch torchvision`"
LITTLE_MEMORY: Final = 2 * GIB  # our choice: a small model's run


def check_devices() -> Iterator[CheckResult]:
    """Check processor and memory, torch with torchvision, and the GPUs."""
    yield CheckResult("processor", "ok", f"{num_cores()} cores")
    free = free_host_memory()
    fix = "lower train.workers and train.micro_batch, or end other programs"
    yield at_least(
        "memory", f"{free / GIB:.1f} of {host_memory() / GIB:.1f} GiB free", free >= LITTLE_MEMORY, fix
    )
    try:
        import torch
    except Exception as error:  # whatever a broken package raises
        yield CheckResult("torch", "broken", f"cannot be imported: {first_line(error)}", REINSTALL_TORCH)
        return
    try:
        import torchvision

        torch.ops.torchvision.nms  # noqa: B018 — missing where the two were built for different versions
        yield CheckResult("torch and torchvision", "ok", f"{torch.__version__} and {torchvision.__version__}")
    except Exception as error:
        found = f"does not fit torch {torch.__version__}: {first_line(error)}"
        yield CheckResult("torch and torchvision", "broken", found, REINSTALL_TORCH)
    yield from _check_cuda(torch)
    if torch.backends.mps.is_available():
        yield check_step("MPS", torch.device("mps"))


def _check_cuda(torch: ModuleType) -> Iterator[CheckResult]:
    has_driver = DRIVER.is_file() or shutil.which("nvidia-smi") is not None
    if torch.version.cuda is None and torch.version.hip is None:
        if has_driver:
            fix = "install a torch for CUDA: the selector on the front page of PyTorch gives the command"
            yield CheckResult("CUDA", "warning", "an NVIDIA driver, but a torch without CUDA", fix)
        else:
            yield CheckResult("CUDA", "absent", "none; runs on the CPU")
        return
    built = f"torch is built for CUDA {torch.version.cuda or torch.version.hip}"
    with warnings.catch_warnings(record=True) as caught:  # the reason why CUDA does not start
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available and not has_driver:
        yield CheckResult("CUDA", "absent", f"{built}; no driver, runs on the CPU")
    elif not available:
        reason = str(caught[0].message).splitlines()[0] if caught else "no GPU is visible"
        fix = "update the NVIDIA driver, or look at CUDA_VISIBLE_DEVICES"
        yield CheckResult("CUDA", "warning", f"{built}, but: {reason}", fix)
    else:
        yield CheckResult("CUDA", "ok", built)
        yield from (_check_gpu(torch, number) for number in range(torch.cuda.device_count()))


def check_step(name: str, device: Device) -> CheckResult:
    """Pre-train a tiny model for a step on a device for which torch may lack functions."""
    import torch

    from everest.config.recipe import load_recipe
    from everest.models.of_recipe import pretrain_spec

    tiny = ("data.size=32", "data.frames=4", "model.tubelet=[2,8,8]", "model.depth=1")
    model = pretrain_spec(load_recipe("small", overrides=tiny), tokenizer=None).build()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            frames = torch.zeros(2, 3, 4, 32, 32, dtype=torch.uint8, device=device)
            model.to(device)(frames).loss.backward()
        except NotImplementedError as error:
            fix = "set PYTORCH_ENABLE_MPS_FALLBACK=1, or use --gpus cpu"
            return CheckResult(name, "warning", f"cannot train: {first_line(error)}", fix)
        except (RuntimeError, TypeError) as error:
            return CheckResult(name, "warning", f"cannot train: {first_line(error)}", "use --gpus cpu")
    slow = [first_line(warning.message) for warning in caught if "fall back" in str(warning.message)]
    found = f"trains with --gpus {device.type}"
    return CheckResult(name, "ok", f"{found}; partly on the CPU: {slow[0]}" if slow else found)


def _check_gpu(torch: ModuleType, number: int) -> CheckResult:
    about, name = torch.cuda.get_device_properties(number), f"GPU {number}"
    found = f"{about.name}, {about.total_memory / GIB:.0f} GiB, capability {about.major}.{about.minor}"
    try:
        (torch.ones(8, device=f"cuda:{number}") + 1).sum().item()
    except RuntimeError as error:
        fix = "install a torch built for this GPU, or exclude it by --gpus"
        return CheckResult(name, "broken", f"{found}; cannot compute: {first_line(error)}", fix)
    from everest.system.compute import computes_bf16

    fast = computes_bf16(torch.device("cuda", number))
    return CheckResult(name, "ok", f"{found}, {'bf16' if fast else 'no bf16: train.precision auto is fp16'}")


# --- decoders -----------------------------------------------------------------------------------------------

FRAME_IDS: Final = (11, 0, 7)  # out of order
CLOSE: Final = 4.0  # levels of a mean difference: compression; another frame differs by far more
NEEDED: Final = "pyav"  # reads every file; the others are faster on some
REINSTALL_AV: Final = "run `pip install --force-reinstall av`"


def check_decoders() -> Iterator[CheckResult]:
    """Check FFmpeg, and decode a rendered file by every back-end."""
    try:
        import av
    except Exception as error:  # whatever a broken package raises
        yield CheckResult("PyAV", "broken", f"cannot be imported: {first_line(error)}", REINSTALL_AV)
        return
    versions = sorted(av.library_versions.items())
    found = ", ".join(f"{name} {'.'.join(map(str, version))}" for name, version in versions)
    yield CheckResult("FFmpeg of PyAV", "ok", found)
    try:
        import torch

        from everest.video.backends import DECODERS
        from everest.video.writer import write_video
    except Exception as error:
        yield CheckResult(
            "decoders", "broken", f"not tried: {first_line(error)}", "fix the packages above first"
        )
        return
    frames = torch.full((16, 64, 96, 3), 40, dtype=torch.uint8)  # (F, H, W, 3): a bar that moves right
    for number in range(16):
        frames[number, :, 4 * number : 4 * number + 24] = 220
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rendered.mp4"
        write_video(path, frames, fps=12)
        yield from (_check_decoder(name, path, frames) for name in DECODERS if name != "auto")


def _check_decoder(name: str, path: Path, frames: Tensor) -> CheckResult:
    from everest.video.reader import VideoError, read_frames

    title = f"decoder {name}"
    try:
        decoded = read_frames(path, FRAME_IDS, decoder=name)  # (F, H, W, 3)
        difference = float((decoded.float() - frames[list(FRAME_IDS)].float()).abs().mean())
        if difference <= CLOSE:
            return CheckResult(title, "ok", f"reads the right {len(FRAME_IDS)} frames")
        problem = f"returns other frames than requested (mean difference {difference:.1f})"
    except EnvironmentProblem as error:
        return CheckResult(title, "absent", first_line(error), "data.decoder: auto does without")
    except VideoError as error:
        problem = error.reason
    except Exception as error:  # whatever a broken package raises
        problem = first_line(error)
    if name == NEEDED:
        return CheckResult(title, "broken", problem, REINSTALL_AV)
    return CheckResult(title, "warning", problem, "leave data.decoder at auto")


CHECKS: Final[dict[str, Callable[[], Iterator[CheckResult]]]] = {
    "packages": check_packages,
    "devices": check_devices,
    "decoders": check_decoders,
    "system": check_system,
}
