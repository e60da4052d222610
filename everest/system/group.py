"""The processes of a launcher that divide the work of a command: they exchange small objects only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch.distributed as dist

from everest.system.compute import Runtime

T = TypeVar("T")

# A process that is done waits for the longest recordings of the others. One that dies ends the wait at once.
LONGEST_WAIT: Final = timedelta(days=30)


@dataclass(frozen=True, kw_only=True, eq=False)
class Processes:
    """The processes of a command, and which of them this is."""

    rank: int = 0
    count: int = 1
    group: Any = None  # of torch.distributed; None: this is the only one

    @property
    def is_main(self) -> bool:
        """Whether this process writes the output."""
        return self.rank == 0

    def decide(self, decide: Callable[[], T]) -> T:
        """Let the main process decide for all, by what it finds on the disk."""
        values = [decide() if self.is_main else None]
        if self.group is not None:
            dist.broadcast_object_list(values, group=self.group)
        (value,) = values
        return value  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Wait for all; returns the values by rank in the main process, and none in the others."""
        if self.group is None:
            return [value]
        values: list[Any] | None = [None] * self.count if self.is_main else None
        dist.gather_object(value, values, group=self.group)
        return values or []


ALONE: Final = Processes()


def processes_of(runtime: Runtime) -> Processes:
    """The processes of a command, each of which must call it."""
    if runtime.processes == 1:
        return ALONE
    # Of its own, as NCCL's, for training, needs a GPU to wait.
    group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    return Processes(rank=runtime.rank, count=runtime.processes, group=group)
