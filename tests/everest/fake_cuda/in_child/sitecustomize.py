"""Imported by Python at its start: records where the host waits for the device, and what each step sends."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

PACKAGES = ("everest", "everest_cli", "everest_demo")
SYNCHRONIZES = "called a synchronizing CUDA operation"  # torch's warning


class Recorder:
    """The waits and counts of a process, in all and between two updates of the first optimizer."""

    def __init__(self) -> None:
        library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        library.fake_cuda_counts.restype = ctypes.c_char_p
        self._counts: Callable[[], bytes] = library.fake_cuda_counts
        self._optimizer: Optimizer | None = None
        self._waits: list[str] = []  # of the current step
        self._steps: list[dict[str, Any]] = []
        self._before = self.counts()

    def counts(self) -> dict[str, int]:
        return json.loads(self._counts())

    def install(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the mode is a prototype
            torch.cuda.set_sync_debug_mode("warn")
        warnings.filterwarnings("always", message=f".*{SYNCHRONIZES}.*")
        show = warnings.showwarning

        def showwarning(message: Warning | str, *rest: Any, **named: Any) -> None:
            if SYNCHRONIZES in str(message):
                self.note_wait()
            else:
                show(message, *rest, **named)

        warnings.showwarning = showwarning
        # torch's debug mode does not see these.
        for owner in (torch.cuda, torch.cuda.Event, torch.cuda.Stream):
            owner.synchronize = self._noted(owner.synchronize)
        register_optimizer_step_post_hook(self._after_update)
        atexit.register(self._write)

    def note_wait(self) -> None:
        """Record the innermost function of everest that is running."""
        frame = sys._getframe(1)
        while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] not in PACKAGES:
            frame = frame.f_back
        module = frame and frame.f_globals["__name__"].removeprefix("everest.")
        self._waits.append(f"{module} {frame.f_code.co_qualname}" if frame else "outside of everest")

    def _noted(self, wait: Callable[..., Any]) -> Callable[..., Any]:
        def waiting(*args: Any, **kwargs: Any) -> Any:
            self.note_wait()
            return wait(*args, **kwargs)

        return waiting

    def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._optimizer = self._optimizer or optimizer
        if optimizer is self._optimizer:
            now = self.counts()
            counts = {name: now[name] - self._before[name] for name in now}
            self._steps.append({"waits": self._waits, "counts": counts})
            self._before, self._waits = now, []

    def _write(self) -> None:
        path = Path(os.environ["FAKE_CUDA_REPORT"]) / f"{os.getpid()}.json"
        path.write_text(json.dumps({"steps": self._steps, "counts": self.counts()}))


# What the device cannot imitate.
torch.backends.cudnn.enabled = False
torch.backends.cuda.enable_cudnn_sdp(False)
Recorder().install()
