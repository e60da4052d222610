"""Errors that torch raises for what a user can fix."""

from __future__ import annotations

from typing import Final

import torch
from torch.distributed import DistError

from everest.errors import LESS_MEMORY, EnvironmentProblem, UserError
from everest.system.launch import LostPeer

COMPILERS: Final = ("torch._dynamo", "torch._inductor")  # whose errors have no public name
# Other errors than torch.OutOfMemoryError, and those of gloo, are told apart by their texts only.
NO_MEMORY: Final = ("out of memory", "can't allocate memory")  # of a driver, of MPS; of the CPU's allocator


def as_user_error(error: RuntimeError) -> UserError | None:
    """The problem of the user; None for a bug."""
    text = str(error)
    if "onnection" in text and (isinstance(error, DistError) or "gloo" in text):
        return LostPeer(f"another process of the run is gone ({text.splitlines()[0]})")
    if isinstance(error, torch.OutOfMemoryError) or any(words in text for words in NO_MEMORY):
        return EnvironmentProblem(f"out of memory ({text.splitlines()[0]}); {LESS_MEMORY}")
    if type(error).__module__.startswith(COMPILERS):
        why = " ".join(text.split("\n\n")[0].split())
        return EnvironmentProblem(
            f"train.compile: torch cannot compile the model ({why}); remove its cache "
            "(TORCHINDUCTOR_CACHE_DIR, else torchinductor_USER among the temporary files), or set "
            "train.compile=false"
        )
    return None
