"""Partial training: frozen layers, and adapters of low rank (LoRA, Hu et al. 2021).

Frozen weights get no gradient and are not in the optimizer.

An adapter adds to the weight of its layer, so that it needs no product of its own; peft computes two more.

D rows, C columns of a matrix, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.settings import TrainedSection
from everest.config.stage_settings import FinetuneSettings, LoraSettings
from everest.models.block import RecomputedLinear
from everest.models.classifier import VideoClassifier
from everest.models.vit import Encoder
from everest.system.compute import full_precision

# The adapted layers by their names in a block.
LAYER_PATHS: Final = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


def freeze_and_adapt(model: nn.Module, section: TrainedSection) -> None:
    """Freeze the weights of a classifier that its stage does not train, and add its adapters.

    Weights outside of the encoder, and those of other models, are always trained.
    """
    if not (isinstance(model, VideoClassifier) and isinstance(section, FinetuneSettings)):
        return
    encoder, lora = model.encoder, section.adapters
    if lora is not None:
        encoder.requires_grad_(False)
        for block in encoder.blocks:
            for layer in dict.fromkeys(lora.layers):
                linear = block.get_submodule(LAYER_PATHS[layer])
                assert isinstance(linear, nn.Linear)
                block.set_submodule(LAYER_PATHS[layer], LowRank(linear, lora))
    else:
        freeze_layers(encoder, section.frozen_layers(len(encoder.blocks)))


def freeze_layers(encoder: Encoder, layers: int) -> None:
    """Freeze the first layers of an encoder: the embedding, with all that is added to it, then each block."""
    if layers:
        later = (*encoder.blocks[layers - 1 :], encoder.norm)
        trained = {id(parameter) for module in later for parameter in module.parameters()}
        for parameter in encoder.parameters():
            parameter.requires_grad_(id(parameter) in trained)


class LowRank(nn.Module):
    """A Linear with the weight W + alpha / rank * B A. B starts at zero, so a new adapter changes nothing.

    The sum is float32 under autocast, too: the product alone would be rounded.

    Args:
        linear: its weight W (D, C) and its bias stay frozen.
        lora: `dropout` is the fraction of the columns of A that are dropped in training mode: input channels,
            the same ones for all tokens of a micro-batch. Dropout for each token, as in the official code,
            would need another product.
    """

    def __init__(self, linear: nn.Linear, lora: LoraSettings) -> None:
        super().__init__()
        self.scale, self.dropout = lora.alpha / lora.rank, lora.dropout
        self.original, self.bias = linear.weight, linear.bias
        rows, columns = linear.weight.shape
        a = linear.weight.new_empty(lora.rank, columns)
        self.a = nn.Parameter(nn.init.kaiming_uniform_(a, a=math.sqrt(5)))  # (R, C), as the official code
        self.b = nn.Parameter(linear.weight.new_zeros(rows, lora.rank))  # (D, R)

    @property
    def weight(self) -> Tensor:
        """The sum (D, C)."""
        a = self.a
        if self.dropout and self.training:
            a = a * F.dropout(torch.ones_like(a[:1]), self.dropout)  # (R, C) * (1, C)
        return self.add_adapter(self.original, a, self.b)

    def add_adapter(self, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The sum (D, C) of a weight (D, C) and alpha / rank times b (D, R) a (R, C)."""
        with full_precision(weight.device):
            return torch.addmm(weight, b, a, alpha=self.scale)

    forward = RecomputedLinear.forward  # which reads `weight` and `bias`


def merge_adapters(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The `tensors` of a model, in which each matrix is the sum of itself and its adapter."""
    plain = dict(tensors)
    for name, module in model.named_modules():
        if isinstance(module, LowRank):
            weight, a, b = (plain.pop(f"{name}.{part}") for part in ("original", "a", "b"))
            plain[f"{name}.weight"] = module.add_adapter(weight, a, b)
    return plain
