"""The memory of a pass: how many clips fit, and what to change if too many are in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import torch
from accelerate import Accelerator

from everest.config.settings import TrainedSection
from everest.engine.plan import StagePlan
from everest.errors import EnvironmentProblem
from everest.models.memory import WEIGHT_BYTES, count_weights, frozen_bytes, training_bytes
from everest.models.partial import frozen_layers
from everest.models.spec import ModelSpec
from everest.system.accelerator import free_memory
from everest.system.machine import free_host_memory
from everest.system.text import counted
from everest.tokenizer.network import TokenizerSpec

MEMORY_SHARE: Final = 0.8  # our choice: of the free memory of a device, for the activations of one pass
CPU_BYTES: Final = 2**30  # our choice: on a CPU larger passes are no faster
BF16_BYTES: Final = 2  # of a value
# Our choice: of the free memory; measured peaks were 0.8 to 1.2 times the counted bytes.
SURELY_TOO_MUCH: Final = 1.25


@dataclass(frozen=True, kw_only=True)
class PassMemory:
    """The memory of a stage in one process, estimated: the weights, and the activations of each clip."""

    bytes_of: Callable[[bool, int], int]  # of one clip, by checkpointing and the bytes of a value
    state_bytes: int  # of the weights, their gradients and moments, and of frozen models
    copy_bytes: int  # of the weights, in bf16 with gradients, or with adapters added
    bytes_per_value: int
    checkpointing: bool
    compares_clips: bool  # between views, a pass has all clips of a step

    def fitting_clips(self, device: torch.device) -> int:
        """The clips that a pass can have in the free memory of a device; at least one."""
        free = int(free_memory(device) * MEMORY_SHARE) - self.state_bytes - self.copy_bytes
        if device.type == "cpu":
            free = min(free, CPU_BYTES)
        return max(1, free // self.bytes_of(self.checkpointing, self.bytes_per_value))

    def bytes(self, plan: StagePlan) -> int:
        """The activations of a pass."""
        return plan.micro_batch * self.bytes_of(self.checkpointing, self.bytes_per_value)

    def advice(self, plan: StagePlan, room: int | None = None) -> str:
        """Settings to try when a pass does not fit.

        Args:
            room: bytes for the activations. Then only settings that fit are named. None: unknown.
        """
        clips, taken = plan.micro_batch, self.bytes(plan)
        videos = 2 if self.compares_clips else 1  # of all processes, at least
        most = clips // 2 if room is None else room * clips // taken
        fewer = max(most // plan.unit * plan.unit, plan.unit * -(-videos // plan.processes))
        batch = f"pretrain.batch_size={fewer * plan.processes}"
        settings: dict[str, int] = {}  # and what a pass takes with each
        if fewer < clips:
            setting = batch if self.compares_clips else f"train.micro_batch={fewer}"
            settings[setting] = taken * fewer // clips
        if not self.checkpointing:
            settings["train.checkpointing=true"] = clips * self.bytes_of(True, self.bytes_per_value)
        if self.bytes_per_value > BF16_BYTES and room is None:  # slow on most CPUs
            settings["train.precision=bf16"] = clips * self.bytes_of(self.checkpointing, BF16_BYTES)
        fitting = [
            f"{setting} (about {_gib(size)})"
            for setting, size in settings.items()
            if room is None or size <= room
        ]
        fix = " or ".join(fitting) or "a smaller model, or shorter or smaller clips"
        return f"a pass of {counted(clips, 'clip')} takes about {_gib(taken)} of activations; try {fix}"

    def host_memory_warning(self, plan: StagePlan, *, processes: int) -> str | None:
        """A warning if the run may need more memory than is free; the system would kill it without a message.

        Args:
            processes: of the run on this machine.
        """
        free = free_host_memory(with_swap=True)
        needed = processes * (self.bytes(plan) + self.state_bytes)
        if needed <= free:
            return None
        shared = f" in {processes} processes" if processes > 1 else ""
        advice = self.advice(plan, max(free // processes - self.state_bytes, 0))
        text = f"{_gib(free)} of memory is free, but the run needs about {_gib(needed)}{shared}: {advice}"
        if needed > SURELY_TOO_MUCH * free:
            raise EnvironmentProblem(f"too little memory: {text}")
        return f"the system may kill the run: {text}"


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

    @cache
    def bytes_of(checkpointing: bool, bytes_per_value: int) -> int:
        trained = replace(spec, checkpointing=checkpointing)
        taken = training_bytes(trained, bytes_per_value, frozen_layers=frozen_layers(section, depth))
        return taken + other_bytes(bytes_per_value)

    weights = count_weights(spec, section)
    state_bytes = sum(weights.state_bytes(training=True, bytes_per_value=value_bytes).values())
    return PassMemory(
        bytes_of=bytes_of,
        state_bytes=state_bytes + (frozen_bytes(spec) if is_model else 0),
        copy_bytes=WEIGHT_BYTES * weights.total,
        bytes_per_value=value_bytes,
        checkpointing=spec.checkpointing,
        compares_clips=is_model and spec.views is not None,
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
