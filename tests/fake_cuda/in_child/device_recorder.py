"""Records in a process on the device: where the host waits, and what is sent to the device in each step."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

PACKAGES = ("everest", "everest_cli", "everest_demo")
SYNCHRONIZES = "called a synchronizing CUDA operation"  # torch's warning
FAILING_STEP = "FAKE_CUDA_FAILING_STEP"  # the step in which the process of the highest rank fails


def start() -> None:
    """Switch off what the device cannot imitate, and record until the process ends."""
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _exchange_objects_on_cpu()
    Recorder().install()


class Recorder:
    """The waits and counts of a process, in all and between two updates of the first optimizer."""

    def __init__(self) -> None:
        library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        library.fake_cuda_counts.restype = ctypes.c_char_p
        self._counts: Callable[[], bytes] = library.fake_cuda_counts
        self._optimizer: Optimizer | None = None
        self._waits: Counter[str] = Counter()
        self._lines: Counter[str] = Counter()
        self._of_step: list[str] = []
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
        for owner, name in (
            (torch.cuda, "synchronize"),
            (torch.cuda.Event, "synchronize"),
            (torch.cuda.Stream, "synchronize"),
        ):
            setattr(owner, name, self._noted(getattr(owner, name)))
        register_optimizer_step_post_hook(self._after_update)
        atexit.register(self._write)

    def note_wait(self) -> None:
        """Record the innermost function of everest that is running."""
        frame = sys._getframe(1)
        while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] not in PACKAGES:
            frame = frame.f_back
        if frame is None:
            where, line = "outside of everest", ""
        else:
            module = frame.f_globals["__name__"].removeprefix("everest.")
            where = f"{module} {frame.f_code.co_qualname}"
            line = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        self._waits[where] += 1
        self._lines[f"{line} {where}"] += 1
        self._of_step.append(where)

    def _noted(self, wait: Callable[..., Any]) -> Callable[..., Any]:
        def waiting(*args: Any, **kwargs: Any) -> Any:
            self.note_wait()
            return wait(*args, **kwargs)

        return waiting

    def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._optimizer = self._optimizer or optimizer
        if optimizer is not self._optimizer:
            return
        now = self.counts()
        counts = {name: now[name] - self._before[name] for name in now if now[name] != self._before[name]}
        self._steps.append({"waits": self._of_step, "counts": counts})
        self._before, self._of_step = now, []
        last_rank = int(os.environ.get("WORLD_SIZE", "1")) - 1
        if os.environ.get(FAILING_STEP) == str(len(self._steps)) and os.environ.get("RANK") == str(last_rank):
            from everest.errors import DataError

            raise DataError("this process fails for a test")

    def _write(self) -> None:
        report = {
            "rank": int(os.environ.get("RANK", "-1")),
            "waits": self._waits,
            "lines": self._lines,
            "steps": self._steps,
            "counts": self.counts(),
            "peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0,
        }
        path = Path(os.environ["FAKE_CUDA_REPORT"]) / f"{os.getpid()}.json"
        path.write_text(json.dumps(report))


def _exchange_objects_on_cpu() -> None:
    """Let collectives of Python objects, whose sizes are computed on the device, take a group of the CPU."""
    groups: list[Any] = []

    def on_cpu(collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not groups:
                groups.append(dist.new_group(backend="gloo"))
            return collective(*args, **{**kwargs, "group": groups[0]})

        return call

    dist.broadcast_object_list = on_cpu(dist.broadcast_object_list)
    dist.all_gather_object = on_cpu(dist.all_gather_object)
