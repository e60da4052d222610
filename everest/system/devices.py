"""The devices of a run: the values of --gpus and --processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from everest.errors import EnvironmentProblem, RecipeError


@dataclass(frozen=True, kw_only=True)
class Devices:
    """The devices that --gpus and --processes select on this machine."""

    kind: str  # cuda, mps or cpu
    processes: int = 1
    ids: tuple[int, ...] = ()  # of the GPUs; empty: all, in their order


def read_devices(gpus: str, processes: int | None) -> Devices:
    """Parse `auto`, a number of GPUs, their ids as `0,2` or `1,`, `cpu` or `mps`.

    Raises:
        RecipeError: anything else, or --processes without --gpus cpu.
        EnvironmentProblem: GPUs that this machine does not have.
    """
    if gpus == "cpu":
        return Devices(kind="cpu", processes=processes or 1)
    if processes is not None:
        raise RecipeError("--processes goes with --gpus cpu; elsewhere there is one process a GPU")
    parts = gpus.removesuffix(",").split(",")  # "1," is the GPU 1, "1" is one GPU
    if gpus not in ("auto", "mps") and not all(part.strip().isdecimal() for part in parts):
        raise RecipeError(f"--gpus {gpus}: give auto, a number, ids such as 0,2 or 1, or cpu or mps")

    import torch

    available = torch.cuda.device_count()
    if gpus == "mps" or (gpus == "auto" and not available):
        if torch.backends.mps.is_available():
            return Devices(kind="mps")
        if gpus == "mps":
            raise EnvironmentProblem("--gpus mps: this machine has no Apple GPU; use --gpus cpu")
        return Devices(kind="cpu")
    if gpus == "auto":
        return Devices(kind="cuda", processes=available)
    ids = tuple(int(part) for part in parts)
    if len(ids) == 1 and "," not in gpus:
        ids = tuple(range(ids[0]))
    if not ids or len(set(ids)) < len(ids):
        raise RecipeError(f"--gpus {gpus}: give a number from 1, or ids that differ")
    missing = [i for i in ids if i >= available]
    if missing:
        raise EnvironmentProblem(
            f"--gpus {gpus}: no GPU {missing[0]}, this machine has {available}; try --gpus cpu"
        )
    return Devices(kind="cuda", processes=len(ids), ids=ids)


def visible_gpus(ids: Sequence[int]) -> dict[str, str]:
    """The variable that shows a process only these GPUs, numbered among those visible to this process."""
    if not ids:
        return {}
    outer = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = outer.split(",") if outer else None  # numbers, or names such as GPU-8932f937
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[i].strip() if names else str(i) for i in ids)}
