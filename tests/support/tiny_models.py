"""Tiny models of every kind, and the optimizer settings of their parameters."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

import everest
from everest.config.tokenizer_settings import TokenizerConfig
from everest.engine.network import parameter_groups
from everest.system.weights import Weights
from everest.tokenizer.adaptive_tokenizer import AdaptiveTokenizer
from everest.tokenizer.spec import TokenizerSpec

TINY = {"width": 24, "depth": 2, "heads": 2, "decoder_width": 16, "decoder_heads": 2, "decoder_depth": 1}

PARTS = {  # of encoders of images
    **{"positions": "learned-separable", "rotary": "pe:3", "norm_before": True, "mlp": "normed-swiglu"},
    **{"registers": 2, "class_token": True},
}


def tiny(kind: str, *, frames=8, size=(32, 32), num_classes=None, **options):
    if kind == "classifier":  # other kinds have no classes
        options["num_classes"] = num_classes
    sizes = {"frames": frames, "size": size, "tubelet": (2, 8, 8), **TINY, **options}
    return everest.create_model("vit-tiny", kind=kind, **sizes)


def tokenizer_of(config: TokenizerConfig, **settings: Any) -> AdaptiveTokenizer:
    return TokenizerSpec(config=config, size=(16, 16), **settings).build()


def save_model(path: Path, spec: Any, model: nn.Module | None = None, **header: Any) -> Path:
    """Save a model of a specification, a new one unless it is given, as weights of the recipe "here"."""
    values = {"classes": None, "recipe": "here", "step": 3, **header}
    tensors = (spec.build() if model is None else model).state_dict()
    Weights(kind=spec.kind, settings=spec.dump(), tensors=tensors, **values).save(path)
    return path


def randomized(model: nn.Module, std: float = 0.2) -> nn.Module:
    """Move all parameters at random: fresh biases and norms are zeros and ones."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(std * torch.randn_like(parameter))
    return model


def assert_all_learn(model: nn.Module) -> None:
    """Every parameter has a finite gradient, not all of it zero."""
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def grouped(model, **options) -> dict[str, tuple[float, float]]:
    """Parameter -> (weight decay, lr scale)."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, weight_decay=0.05, **options)
    return {names[id(p)]: (g["weight_decay"], g["lr_scale"]) for g in groups for p in g["params"]}
