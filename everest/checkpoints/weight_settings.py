"""The settings of a recipe that follow from the weights it starts from, so that no `--set` is needed.

`probe`, `extract`, `recipes suggest --init` and `train --init` share them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from everest.checkpoints.init import as_yaml
from everest.checkpoints.load import clip_of, is_of_images, open_encoder
from everest.checkpoints.public_weights import license_named
from everest.config.model import ModelSettings
from everest.models.spec import ModelSpec
from everest.system.weights import Weights
from everest.video.pixels import USUAL

# Also set where they are the default, because the base of a recipe may set them: None is the backbone's own.
ALWAYS: Final = ("backbone", "width", "depth", "heads", "mlp_width", "tubelet", "positions", "input")
OF_DECODER: Final = ("decoder_depth", "decoder_width", "decoder_heads")


@dataclass(frozen=True, kw_only=True)
class WeightSettings:
    """What weights say about the recipe of a model that starts from them."""

    name: str  # as given: a run, a file, hf:OWNER/NAME, timm:NAME or timm:NAME=FILE
    weights: Weights
    spec: ModelSpec  # that they were saved of
    values: Mapping[str, Any]  # by the keys of a recipe, such as data.size

    @property
    def overrides(self) -> list[str]:
        """The same as `section.key=value` texts."""
        return [f"{key}={as_yaml(value)}" for key, value in self.values.items()]

    @property
    def is_image(self) -> bool:
        """Whether the weights are of single images."""
        return is_of_images(self.spec)

    @property
    def title(self) -> str:
        """The weights in a line: their name, license, backbone and clip."""
        license_name = license_named(self.name) or (self.weights.origin or {}).get("licence")
        height, width = self.values["data.size"]
        clip = f"{self.values['data.frames']} frames of {height} x {width} pixels"
        over = " spread over the video" if self.is_image else ""
        known = f"license {license_name}" if license_name else "license not stated"
        return f"{self.name} ({known}), {self.values['model.backbone']}, {clip}{over}"


def settings_from(checkpoint: str, *, on_cpu: bool | None = None) -> WeightSettings:
    """Read weights, and derive the clips and the encoder of a recipe from them.

    Weights of single images take a frame of the video as a time slice; frames that are larger than
    `everest.checkpoints.load.MOST_SIDE` become smaller.

    Args:
        on_cpu: whether the model will run on a CPU; None: as on this machine.
    Raises:
        CheckpointError: no such weights, or a damaged or foreign file.
        RecipeError: a name that timm does not have.
    """
    weights, spec = open_encoder(checkpoint)
    frames, size = clip_of(spec, on_cpu=on_cpu)
    usual, pixels = USUAL[spec.channels], spec.pixels
    values: dict[str, Any] = {"data.frames": frames, "data.size": list(size)}
    if spec.channels != 3:
        values["data.channels"] = spec.channels
    if pixels != usual:
        values |= {"data.mean": list(pixels.mean), "data.std": list(pixels.std)}
    clip = dict[str, Any](weights.clip or {})
    if (fps := clip.pop("fps", None)) is not None:
        values["data.fps"] = fps
    default, model = ModelSettings(), spec.model
    for field in fields(model):
        value = getattr(model, field.name)
        needed = field.name in ALWAYS or value != getattr(default, field.name)
        if needed and field.name not in OF_DECODER:
            values[f"model.{field.name}"] = list(value) if isinstance(value, tuple) else value
    values |= {f"{stage}.{key}": value for stage in ("pretrain", "finetune") for key, value in clip.items()}
    return WeightSettings(name=checkpoint, weights=weights, spec=spec, values=values)
