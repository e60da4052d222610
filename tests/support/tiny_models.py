"""Tiny models of every kind, and the optimizer settings of their parameters."""

from __future__ import annotations

import everest
from everest.train.network import parameter_groups

TINY = {"width": 24, "depth": 2, "heads": 2, "decoder_width": 16, "decoder_heads": 2, "decoder_depth": 1}


def tiny(kind: str, *, frames=8, size=(32, 32), **options):
    sizes = {"frames": frames, "size": size, "tubelet": (2, 8, 8), **TINY, **options}
    return everest.create_model("vit-tiny", kind=kind, **sizes)


def grouped(model, **options) -> dict[str, tuple[float, float]]:
    """Parameter -> (weight decay, lr scale)."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, weight_decay=0.05, **options)
    return {names[id(p)]: (g["weight_decay"], g["lr_scale"]) for g in groups for p in g["params"]}
