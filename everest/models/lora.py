"""Adapters of low rank (LoRA, Hu et al. 2021) for the matrices of an encoder's blocks.

peft replaces Linear modules and computes in their `forward`. A `Block` reads the weights of its Linear
modules and computes with them itself, so here the weight is replaced, by a parametrization of torch.

D rows, C columns of a matrix, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from everest.config.stage_settings import LoraSettings
from everest.methods.importance import full_precision

PATHS: Final = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}  # in a block


class LowRank(nn.Module):
    """Adds alpha / rank * B A to a matrix. B starts at zero, so a new adapter changes nothing.

    The sum is float32 under autocast, too: the product alone would be rounded.

    Args:
        dropout: the share of the columns of A that are dropped in training mode: input channels, the same
            ones for all tokens of a pass. Dropout for each token, as in the released program, would need a
            product of its own.
    """

    def __init__(self, weight: Tensor, *, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.scale, self.dropout = alpha / rank, dropout
        a = weight.new_empty(rank, weight.size(1))
        self.a = nn.Parameter(nn.init.kaiming_uniform_(a, a=math.sqrt(5)))  # (R, C), as the released program
        self.b = nn.Parameter(weight.new_zeros(weight.size(0), rank))  # (D, R)

    def forward(self, weight: Tensor) -> Tensor:
        """The sum (D, C) with a weight (D, C)."""
        a = self.a
        if self.dropout and self.training:
            a = a * F.dropout(torch.ones_like(a[:1]), self.dropout)  # (R, C) * (1, C)
        return self.added(weight, a, self.b)

    def added(self, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """weight + alpha / rank * b a."""
        with full_precision(weight.device):
            return torch.addmm(weight, b, a, alpha=self.scale)


class AdaptedLinear(nn.Linear):
    """A Linear whose weight is the sum with its adapter: one class for all of them.

    Torch makes a class for each module that it parametrizes, and a compiled graph holds for one class only.
    `merged` removes adapters; torch's `remove_parametrizations` would take the weight from all modules.
    """

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The sum (D, C)."""
        parametrizations = cast(nn.ModuleDict, self.parametrizations)
        return parametrizations["weight"]()


def add_adapters(blocks: Iterable[nn.Module], lora: LoraSettings) -> None:
    """Add an adapter to each of the matrices `lora.layers` of every block."""
    for block in blocks:
        for layer in lora.layers:
            linear = cast(nn.Linear, block.get_submodule(PATHS[layer]))
            adapter = LowRank(linear.weight, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout)
            parametrize.register_parametrization(linear, "weight", adapter)
            linear.__class__ = AdaptedLinear


def merged(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The `tensors` of a model with its adapters added to their matrices, as of a model that has none."""
    found = dict(tensors)
    for name, adapter in model.named_modules():
        if isinstance(adapter, LowRank):  # LAYER.parametrizations.weight.0
            of_weight = name.removesuffix(".0")
            weight, a, b = (found.pop(key) for key in (f"{of_weight}.original", f"{name}.a", f"{name}.b"))
            found[of_weight.replace("parametrizations.", "")] = adapter.added(weight, a, b)
    return found
