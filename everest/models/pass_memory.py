"""The memory of a pass: settings with which it fits, and a check on a CPU before the run starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from everest.errors import EnvironmentProblem
from everest.system.posix import free_host_memory
from everest.system.text import counted

BF16_BYTES: Final = 2  # of a value
# Our choice: of the free memory; measured peaks were 0.8 to 1.2 times the counted bytes.
SURELY_TOO_MUCH: Final = 1.25


@dataclass(frozen=True, kw_only=True)
class PassMemory:
    """The activations of a pass in one process, estimated."""

    clips: int  # of the pass
    unit: int  # clips that stay together in a pass
    processes: int  # of the run
    bytes_of: Callable[[bool, int], int]  # of one clip, by checkpointing and the bytes of a value
    bytes_per_value: int
    checkpointing: bool
    compares_clips: bool  # between views, a pass has all clips of a step

    @cached_property
    def bytes(self) -> int:
        """The activations of the pass."""
        return self.clips * self.bytes_of(self.checkpointing, self.bytes_per_value)

    def advice(self, room: int | None = None) -> str:
        """Settings to try when the pass does not fit.

        Args:
            room: bytes for the activations. Then only settings that fit are named. None: unknown.
        """
        tried, unit = self.clips, self.unit
        settings: dict[str, int | None] = {}  # with their bytes, where these are known at no cost
        fewest = unit * (-(-2 // self.processes) if self.compares_clips else 1)  # between views two videos
        most = tried // 2 if room is None else room * tried // self.bytes
        fewer = max(most // unit * unit, fewest)
        if fewer < tried and self.compares_clips:
            settings[f"pretrain.batch_size={fewer * self.processes}"] = self.bytes * fewer // tried
        elif fewer < tried:
            settings[f"train.micro_batch={fewer}"] = self.bytes * fewer // tried
        if not self.checkpointing:
            checkpointed = None if room is None else tried * self.bytes_of(True, self.bytes_per_value)
            settings["train.checkpointing=true"] = checkpointed
        if self.bytes_per_value > BF16_BYTES and room is None:  # slow on most CPUs
            settings["train.precision=bf16"] = None
        fixes = [
            text if size is None else f"{text} (about {_gib(size)})"
            for text, size in settings.items()
            if size is None or room is None or size <= room
        ]
        fix = " or ".join(fixes) or "a smaller model, or shorter or smaller clips"
        return f"a pass of {counted(tried, 'clip')} takes about {_gib(self.bytes)} of activations; try {fix}"

    def check_on_a_cpu(self, *, state_bytes: int, processes: int) -> str | None:
        """A warning if the run may need more memory than is free; the system would kill it without a message.

        Args:
            state_bytes: of the weights, their gradients and moments, and of frozen models.
            processes: of the run on this machine.
        Raises:
            EnvironmentProblem: it surely needs more.
        """
        free = free_host_memory(with_swap=True)
        needed = processes * (self.bytes + state_bytes)
        if needed <= free:
            return None
        each = f" in {processes} processes" if processes > 1 else ""
        advice = self.advice(max(free // processes - state_bytes, 0))
        text = f"{_gib(free)} of memory are free, and the run needs about {_gib(needed)}{each}: {advice}"
        if needed > SURELY_TOO_MUCH * free:
            raise EnvironmentProblem(f"too little memory: {text}")
        return f"the system may kill the run: {text}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
