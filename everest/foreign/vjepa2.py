"""V-JEPA 2 (Assran et al. 2025) as transformers stores it: the names and the configuration of its encoder."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from everest.errors import shown
from everest.foreign.translation import Translation
from everest.models import rotary

CLIP: Final = (64, 256)  # frames and pixels, where the configuration does not state them
PREDICTOR: Final = (
    "it predicts the features of hidden tokens in pre-training, from the outputs of the encoder"
)
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")
_TOP = {
    "encoder.embeddings.patch_embeddings.proj": "encoder.patch_embed.proj",
    "encoder.layernorm": "encoder.norm",
}
_PARTS = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_MATRICES = ("query", "key", "value")
_CONFIG = {"model_type": "vjepa2", "rope_theta": rotary.BASE, "use_rope": True}  # the only values, if any


def translate(names: Collection[str]) -> Translation:
    """Translate the encoder. A key bias has an effect: keys are turned after it is added."""
    translation = Translation()
    for name in names:
        inner = name.removeprefix("vjepa2.")
        layer = _LAYER.fullmatch(inner)
        module, _, leaf = inner.rpartition(".")
        if inner.startswith("predictor."):
            translation.idle[name] = PREDICTOR
        elif module in _TOP:
            translation.take[f"{_TOP[module]}.{leaf}"] = (name,)
        elif layer is None:
            translation.unexpected.append(name)
        else:
            _translate_layer(translation, names, name, layer)
    return translation


def _translate_layer(
    translation: Translation, names: Collection[str], name: str, layer: re.Match[str]
) -> None:
    number, module, leaf = layer.groups()
    block, matrix = f"encoder.blocks.{number}", module.removeprefix("attention.")
    start = name.removesuffix(f"{matrix}.weight")
    matrices = tuple(f"{start}{each}.weight" for each in _MATRICES)
    if module in _PARTS:
        translation.take[f"{block}.{_PARTS[module]}.{leaf}"] = (name,)
    elif matrix in _MATRICES and leaf == "bias":
        translation.take[f"{block}.attn.{matrix[0]}_bias"] = (name,)
    elif matrix in _MATRICES and all(each in names for each in matrices):
        translation.take[f"{block}.attn.qkv.weight"] = matrices
    else:
        translation.unexpected.append(name)


def config_problem(config: Mapping[str, Any], hints: Mapping[str, Any]) -> str | None:
    """Return why a config.json is not that of our encoder; None if it is.

    Args:
        config: empty if there is none. Then the user has to give the clip and the heads: no shape shows them.
        hints: the options that give them, with their values, None if not given.
    """
    missing = [option for option, value in hints.items() if value is None]
    if not config and missing:
        return f"no config.json next to it, which has its clip and heads; set {' and '.join(missing)}"
    for name, value in config.items():
        expected = _CONFIG.get(name)
        if (name in _CONFIG or "rope" in name) and value not in (None, expected):
            needed = "none is possible" if expected is None else f"only {expected} is possible"
            return f"{name} is {shown(value)} in its config.json; {needed}"
    return None
