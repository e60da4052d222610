"""The values of env.json in a run folder: the environment, --init, and the weights it started from."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

PACKAGES: Final = ("everest-video", "torch", "torchvision", "timm", "accelerate", "av")  # with versions
INIT: Final = "init"  # the weights
INIT_NAME: Final = "init_name"  # the option --init, as an absolute path
DECODER: Final = "decoder"  # the option --decoder
ORIGIN: Final = "origin"  # describes the weights, and what they started from in turn

Decoder = Literal["keep", "fresh"]


@dataclass(frozen=True, kw_only=True)
class Init:
    """The option --init of a run.

    Args:
        name: as the user wrote it, a path made absolute.
        file: the weights that were found.
        decoder: the option --decoder; None: keep the decoder if it fits.
    """

    name: str
    file: str
    decoder: Decoder | None = None


def current_environment() -> dict[str, Any]:
    """Versions, devices, commit and command line: all that is needed to repeat a run."""
    import torch  # here, because listing runs needs no torch

    versions = dict.fromkeys(PACKAGES, "not installed")
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    commit = None  # of the checkout that the package runs from; None for an installed wheel or without git
    package_folder = Path(__file__).resolve().parents[1]
    command = ["git", "rev-parse", "--show-toplevel", "HEAD"]
    with suppress(OSError, subprocess.SubprocessError):
        git = subprocess.run(
            command, cwd=package_folder, capture_output=True, text=True, check=True, timeout=10
        )
        top, head = git.stdout.split("\n")[:2]
        # A wheel installed inside another project's checkout does not take that project's commit.
        commit = head if Path(top) == package_folder.parent else None
    return {
        "command": sys.argv,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["cpu"],
        "git_commit": commit,
    }
