"""The memory of a stage: how many clips fit in a pass, and whether the run fits in the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from accelerate import Accelerator

from everest.config.settings import TrainedSection
from everest.errors import LESS_MEMORY, EnvironmentProblem
from everest.models.memory import WEIGHT_BYTES, count_weights, frozen_bytes, training_bytes
from everest.models.partial import frozen_layers
from everest.models.spec import ModelSpec
from everest.system.processes import free_host_memory
from everest.tokenizer.network import TokenizerSpec

MEMORY_SHARE: Final = 0.8  # our choice: of the free memory of a device, for the activations of one pass
CPU_BYTES: Final = 2**30  # our choice: on a CPU larger passes are no faster
# Our choice: of the free memory; measured peaks were 0.8 to 1.2 times the counted bytes.
SURELY_TOO_MUCH: Final = 1.25


@dataclass(frozen=True, kw_only=True)
class PassMemory:
    """The memory of a stage in one process, estimated."""

    clip_bytes: int  # activations of a clip
    state_bytes: int  # of the weights, their gradients and moments, and of frozen models
    copy_bytes: int  # of the weights, in bf16 with gradients, or with adapters added

    def fitting_clips(self, device: torch.device) -> int:
        """The clips that a pass can have in the free memory of a device; at least one."""
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_host_memory()
        free = int(free * MEMORY_SHARE) - self.state_bytes - self.copy_bytes
        if device.type == "cpu":
            free = min(free, CPU_BYTES)
        return max(1, free // self.clip_bytes)

    def needed(self, clips: int) -> int:
        """The bytes of a process whose passes have so many clips."""
        return clips * self.clip_bytes + self.state_bytes


def pass_memory(
    spec: ModelSpec | TokenizerSpec,
    section: TrainedSection,
    accelerator: Accelerator,
    other_bytes: Callable[[int], int],
) -> PassMemory:
    """The memory of a stage, measured without numbers; see `set_up_training` for `other_bytes`."""
    is_model = isinstance(spec, ModelSpec)
    depth = spec.model.backbone_size.depth if is_model else 0
    value_bytes = 4 if accelerator.mixed_precision == "no" else 2
    weights = count_weights(spec, section)
    state_bytes = sum(weights.state_bytes(training=True, bytes_per_value=value_bytes).values())
    clip_bytes = training_bytes(spec, value_bytes, frozen_layers=frozen_layers(section, depth))
    return PassMemory(
        clip_bytes=clip_bytes + other_bytes(value_bytes),
        state_bytes=state_bytes + (frozen_bytes(spec) if is_model else 0),
        copy_bytes=WEIGHT_BYTES * weights.total,
    )


def host_memory_warning(needed: int, *, processes: int) -> str | None:
    """A warning if the run may need more memory than is free; the system would kill it without a message.

    Args:
        needed: bytes of a process.
        processes: of the run on this machine.
    """
    free, needed = free_host_memory(with_swap=True), processes * needed
    if needed <= free:
        return None
    shared = f" in {processes} processes" if processes > 1 else ""
    text = f"{_gib(free)} of memory is free, but the run needs about {_gib(needed)}{shared}; {LESS_MEMORY}"
    if needed > SURELY_TOO_MUCH * free:
        raise EnvironmentProblem(f"too little memory: {text}")
    return f"the system may kill the run: {text}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
