"""`everest doctor`: the versions of packages, the devices of this machine, and one decoded video.

Each heavy package is first imported by its check, so a broken package is a result, not a crash.
F frames, H W pixels.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

from everest.errors import EnvironmentProblem
from everest.system.processes import free_host_memory, num_cores
from everest.system.run_folder import PACKAGES
from everest.system.text import plural

GIB: Final = 2**30
REINSTALL: Final = "run `pip install --force-reinstall {}`"
FRAME_IDS: Final = (11, 0, 7)  # out of order
State = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class CheckResult:
    """The result of one check."""

    name: str
    state: State  # warning: works, but problems are likely
    found: str
    fix: str | None = None  # the remedy; None if the check passed


def run_checks() -> list[CheckResult]:
    """Run all checks. A check that cannot run also gives a result."""
    results: list[CheckResult] = []
    for check in (check_packages, check_memory, check_torch, check_decoding):
        try:
            results.extend(check())  # results from before an error are kept
        except Exception as error:  # whatever a broken package raises
            name = check.__name__.removeprefix("check_")
            package = {"torch": "torch torchvision", "decoding": "av"}.get(name, ".")
            text = (str(error).strip() or type(error).__name__).splitlines()[0]  # a message may fill pages
            results.append(CheckResult(name, "broken", text[:160], REINSTALL.format(package)))
    return results


def summarize_results(results: Sequence[CheckResult]) -> str:
    """Summarize all checks in a sentence: whether everest works, and on which device."""
    broken, warned = (
        [result.name for result in results if result.state == state] for state in ("broken", "warning")
    )
    if broken:
        return f"everest does not work on this machine: fix {', '.join(broken)} first."
    gpus = sum(result.name.startswith("GPU") for result in results)
    device = plural(gpus, "GPU") if gpus else "the CPU"
    look = f"; look at {', '.join(warned)}" if warned else ""
    return f"everest works on this machine, on {device}{look}."


def check_packages() -> Iterator[CheckResult]:
    """Name the versions of Python and of the packages that results depend on."""
    yield CheckResult("Python", "ok", platform.python_version())
    for name in PACKAGES:
        try:
            yield CheckResult(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            what = "." if name == "everest-video" else name  # everest is installed from its folder
            yield CheckResult(name, "broken", "not installed", f"run `pip install {what}`")


def check_memory() -> Iterator[CheckResult]:
    """Check the cores, the memory, and the shared memory, which workers use to hand over clips."""
    yield CheckResult("processor", "ok", f"{num_cores()} cores")

    from everest.data.workers import SHARED_MEMORY_FIX, free_shared_memory

    # Heuristic: memory for training a small model; shared memory for the clips of a run on one GPU. A Docker
    # container has 64 MB of shared memory, some systems have none.
    amounts = (
        ("memory", free_host_memory(), 2 * GIB, "lower train.workers and train.micro_batch"),
        ("shared memory", free_shared_memory(), GIB, SHARED_MEMORY_FIX),
    )
    for name, free, needed, fix in amounts:
        if free is not None:
            is_ok = free >= needed
            found = f"{free / GIB:.2f} GiB free"
            yield CheckResult(name, "ok" if is_ok else "warning", found, None if is_ok else fix)


def check_torch() -> Iterator[CheckResult]:
    """Check that torch and torchvision fit each other, and the GPUs."""
    import torch
    import torchvision

    torch.ops.torchvision.nms  # noqa: B018 — missing where the two were built for different versions
    yield CheckResult("torch and torchvision", "ok", f"{torch.__version__} and {torchvision.__version__}")

    from everest.system.compute import computes_bf16

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(num_gpus):
        about = torch.cuda.get_device_properties(number)
        (torch.ones(8, device=f"cuda:{number}") + 1).sum().item()  # fails if torch is not built for it
        precision = "bf16" if computes_bf16(torch.device("cuda", number)) else "fp16"
        yield CheckResult(
            f"GPU {number}", "ok", f"{about.name}, {about.total_memory / GIB:.0f} GiB, {precision}"
        )
    if not num_gpus and shutil.which("nvidia-smi") is not None:
        found = f"an NVIDIA driver, but torch finds no GPU (CUDA of torch: {torch.version.cuda})"
        fix = "install a torch for CUDA, update the driver, or look at CUDA_VISIBLE_DEVICES"
        yield CheckResult("CUDA", "warning", found, fix)
    if torch.backends.mps.is_available():
        yield CheckResult("GPU", "ok", "of a Mac, by --gpus mps")


def check_decoding() -> Iterator[CheckResult]:
    """Write a video, and compare three of its decoded frames."""
    import torch

    from everest.video.reader import read_frames
    from everest.video.writer import write_video

    frames = torch.full((16, 64, 96, 3), 40, dtype=torch.uint8)  # (F, H, W, 3): a bar that moves right
    for number in range(16):
        frames[number, :, 4 * number : 4 * number + 24] = 220
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rendered.mp4"
        write_video(path, frames, fps=12)
        decoded = read_frames(path, FRAME_IDS)  # (F, H, W, 3)
    difference = float((decoded.float() - frames[list(FRAME_IDS)].float()).abs().mean())
    if difference > 4:  # levels that compression changes; a wrong frame differs far more
        raise EnvironmentProblem(f"decoded frames differ by {difference:.1f} of 255 levels")
    yield CheckResult("decoding", "ok", f"{len(FRAME_IDS)} of {len(FRAME_IDS)} test frames are correct")
