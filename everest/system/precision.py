"""Which precision a device computes fast."""

from __future__ import annotations

from typing import Final

import torch

FIRST_WITH_BF16: Final = 8  # compute capability: Ampere; Volta and Turing have units for fp16 only


def computes_bf16(device: torch.device) -> bool:
    """Whether a device is a GPU with units for bfloat16; older ones only emulate it, and slowly."""
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_properties(device).major >= FIRST_WITH_BF16


def auto_precision(*, cpu: bool) -> str:
    """The precision of `train.precision: auto`: of the first GPU bf16 or else fp16; of a CPU fp32.

    Args:
        cpu: the CPU computes even if there is a GPU.
    """
    if cpu or not torch.cuda.is_available():
        return "fp32"
    return "bf16" if computes_bf16(torch.device("cuda", torch.cuda.current_device())) else "fp16"
