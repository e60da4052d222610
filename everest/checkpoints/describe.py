"""Describes weights: their clips and settings, by the recipe next to them or by their header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from statistics import median
from typing import Any, Final

from everest.checkpoints.load import (
    AnyModel,
    LoadedModel,
    Which,
    choose_clip,
    find_recipe_beside,
    is_image_encoder,
    is_timm_name,
    open_encoder,
    open_model,
    read_clip_spec,
)
from everest.checkpoints.public_weights import read_public_weights
from everest.config.heads import head_settings
from everest.config.model_settings import ModelSettings
from everest.config.recipe import dump_recipe, load_recipe
from everest.config.settings import DataSettings, Recipe
from everest.config.stage_settings import STAGES
from everest.data.footage import frame_span
from everest.data.recipe_clips import clip_format
from everest.data.views import ClipFormat
from everest.errors import CheckpointError, UserError
from everest.lists.sample import choose_evenly
from everest.lists.sources import read_source
from everest.models.base import ClipModel
from everest.models.classifier import Classifier
from everest.models.clip_spec import ClipSpec, ModelSpec
from everest.system.events import Notify
from everest.system.files import write_text
from everest.system.processes import warn_on_main
from everest.system.run_folder import RECIPE_FILE, WEIGHTS_FILE
from everest.system.text import plural
from everest.system.weights import Weights
from everest.tokenizer.spec import TokenizerSpec
from everest.video.pixels import IMAGENET, STATISTICS_OF_CHANNELS, PixelStatistics
from everest.video.reader import video_info

FALLBACK_RECIPE: Final = "ucf101"  # gives the views, and the stride if weights without a recipe state none
# These keys are set even at their default, because a base recipe may set them; None: the backbone's value.
ALWAYS_SET: Final = ("backbone", "width", "depth", "heads", "mlp_width", "tubelet", "positions", "input")
MAX_TIMED: Final = 20  # default: maximum number of videos whose length is measured
DECODER_SETTINGS: Final = ("decoder_depth", "decoder_width", "decoder_heads")


def load_model(checkpoint: str | Path, *, which: Which | None = None) -> AnyModel:
    """Return the model of a checkpoint, of any kind, in eval mode on the CPU; it knows its clips and classes.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or foreign.
        RecipeError: the recipe next to the weights is damaged.
    """
    loaded = open_model(checkpoint, which=which)
    if isinstance(loaded.module, ClipModel):
        loaded.module.recipe = recover_recipe(loaded, notify=None if loaded.weights.clip else warn_on_main)
    return loaded.module


def save_classifier(
    folder: Path,
    module: Classifier,
    recipe: Recipe,
    *,
    class_names: tuple[str, ...] | None,
    origin: dict[str, Any] | None = None,
) -> Path:
    """Write a classifier and its recipe to a folder that every command takes as --checkpoint.

    Equal content gives equal bytes. The weights are written last, so a folder with weights is complete.

    Args:
        origin: describes the weights that the classifier started from (everest.checkpoints.init.InitWeights).
    Returns:
        The file of the weights.
    """
    weights = Weights(
        kind="classifier",
        settings=module.spec.dump(),
        classes=class_names,
        recipe=recipe.name,
        step=0,
        origin=origin,
        clip=recipe.finetune.clip_settings(recipe.data.fps),
        tensors=module.state_dict(),
    )
    (folder / WEIGHTS_FILE).unlink(missing_ok=True)  # old weights must not lie next to a new recipe
    write_text(folder / RECIPE_FILE, dump_recipe(recipe))
    weights.save(folder / WEIGHTS_FILE)
    return folder / WEIGHTS_FILE


def find_training_clip(loaded: LoadedModel) -> ClipFormat | None:
    """Return the clips that a model was trained on; None if the file does not state their stride."""
    if loaded.weights.clip is None and find_recipe_beside(loaded.file) is None:
        return None
    return clip_format(recover_recipe(loaded, notify=None), loaded.model.stage)


def measure_training_seconds(data: DataSettings) -> float | None:
    """The median length of the training videos; None if they are missing."""
    try:
        samples = read_source(data, "train", labeled=False, skip_missing=True).samples
        seconds = [  # images have no rate: 0 seconds
            frame_span(sample)[1] / (video_info(sample.video).fps or inf)
            for sample in choose_evenly(samples, MAX_TIMED)
        ]
    except UserError:  # such as videos that have moved
        return None
    return round(median(seconds), 2) or None


def describe_weights(file: Path, weights: Weights) -> dict[str, Any]:
    """Return the document of `everest convert --inspect --json` for weights of everest or timm."""
    read_spec = TokenizerSpec.from_settings if weights.kind == "tokenizer" else read_clip_spec
    spec = read_spec(weights.settings, source=file)
    is_model = isinstance(spec, ClipSpec)
    is_timm = is_timm_name(file)
    return {
        "checkpoint": str(file),
        "family": "timm" if is_timm else "everest",
        "title": "image model of timm" if is_timm else "written by everest",
        "kind": weights.kind,
        "frames": spec.frames if is_model else spec.chunk,
        **(weights.clip or {"stride": None, "sampling": None}),
        "size": list(spec.size),
        "channels": spec.channels if is_model else 3,
        "num_classes": spec.num_classes if is_model else None,
        "heads": head_settings(spec.heads) if is_model else None,
        "classes": list(weights.classes) if weights.classes else None,
        "recipe": weights.recipe,
        "step": weights.step,
        "origin": weights.origin,
    }


def describe_sampling(*, stride: int, sampling: str, fps: float | None) -> str:
    """State in words how the frames of a clip are chosen; see `ClipFormat`."""
    if sampling != "dense":
        return f"a clip spans the whole video ({sampling} sampling)"
    frames = "frames of the video" if fps is None else f"frames at {fps:g} per second"
    if stride == 1:
        return f"the frames of a clip are successive {frames}"
    return f"the frames of a clip are {stride} {frames} apart"


def recover_recipe(loaded: LoadedModel, *, notify: Notify | None) -> Recipe:
    """Return the recipe of a model's run, with the clip size of the weights.

    Without a recipe next to the weights, the stride is that of their training, if their header states it,
    and the views are those of the recipe `ucf101`. Image weights get one view, the center of the frames,
    because their clips span the video.

    Args:
        notify: receives a notice when `ucf101` is used.
    """
    file, spec = loaded.file, loaded.spec
    assert isinstance(spec, ClipSpec)
    if recipe_file := find_recipe_beside(file):
        recipe = load_recipe(recipe_file, imports=False)
        data = replace(recipe.data, frames=spec.frames, size=spec.size)
        return replace(recipe, data=data.with_pixels(spec.pixels))
    clip = loaded.weights.clip
    recipe = make_clip_recipe(spec, clip or {})
    if is_image_encoder(read_clip_spec(loaded.weights.settings, source=file)):
        recipe = replace(recipe, eval=replace(recipe.eval, clips=1, crops=1))
        text = (
            f"image weights; by default one center view of {spec.frames} frames spread over the video, "
            f"{spec.size[0]} x {spec.size[1]} pixels; change it with --views or --recipe"
        )
    else:
        text = f"no {RECIPE_FILE} next to it, so clips are sampled as in recipe {FALLBACK_RECIPE}, at stride "
        text += f"{recipe.finetune.stride}; {'as in training' if clip else 'choose another with --recipe'}"
    if notify is not None:
        notify(f"{file}: {text}")
    return recipe


def make_clip_recipe(spec: ClipSpec, clip: Mapping[str, Any]) -> Recipe:
    """Return the recipe `ucf101` with the heads and the clips of a model.

    Args:
        clip: `stride`, `sampling` and `fps` of the training, as far as they are known.
    """
    recipe, sampled = load_recipe(FALLBACK_RECIPE), dict(clip)
    fps, heads = sampled.pop("fps", None), head_settings(spec.heads)
    data = DataSettings(frames=spec.frames, size=spec.size, fps=fps, heads=heads)
    if head := spec.only_head:
        num_classes = None if head.task == "regression" else head.outputs
        data = replace(data, task=head.task, num_classes=num_classes)
    return replace(
        recipe,
        data=data.with_pixels(spec.pixels),
        model=spec.model if isinstance(spec, ModelSpec) else recipe.model,
        pretrain=replace(recipe.pretrain, **sampled),
        finetune=replace(recipe.finetune, **sampled),
    )


def with_pixels_of(recipe: Recipe, spec: ClipSpec, *, source: Path) -> Recipe:
    """Return a recipe with the channels, mean and std of a model, which the weights determine."""
    pixels = recipe.data.pixels
    if pixels not in (spec.pixels, STATISTICS_OF_CHANNELS[spec.channels], IMAGENET):
        raise CheckpointError(f"{source}: {describe_pixel_mismatch(spec.pixels, pixels)}")
    return replace(recipe, data=recipe.data.with_pixels(spec.pixels))


def describe_pixel_mismatch(saved: PixelStatistics, requested: PixelStatistics) -> str:
    """State how the clips of weights and of a recipe differ, and the settings that make them equal."""
    if saved.channels != requested.channels:
        return (
            f"trained on clips of {plural(saved.channels, 'channel')}, the recipe has "
            f"{plural(requested.channels, 'channel')}; set data.channels={saved.channels}"
        )
    return (
        "trained with another normalization than the recipe's; to match it, "
        f"set data.mean={list(saved.mean)} and data.std={list(saved.std)}"
    )


def as_yaml(value: object) -> str:
    """Format the value of a setting for --set."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


@dataclass(frozen=True, kw_only=True)
class WeightSettings:
    """What weights say about the recipe of a model that starts from them."""

    name: str  # the name as given: a run, a file, hf:OWNER/NAME, timm:NAME or timm:NAME=FILE
    weights: Weights
    spec: ModelSpec  # the spec of the model whose weights were saved
    values: Mapping[str, Any]  # values by recipe key, such as data.size

    @property
    def overrides(self) -> list[str]:
        """The settings as `section.key=value` texts."""
        return [f"{key}={as_yaml(value)}" for key, value in self.values.items()]

    @property
    def is_image(self) -> bool:
        """Whether the weights were trained on single images."""
        return is_image_encoder(self.spec)

    @property
    def title(self) -> str:
        """The weights in a line: their name, license and backbone."""
        name = self.name.partition("=")[0].partition("@")[0]  # without a file or a revision
        listed = next((weights.license for weights in read_public_weights() if weights.name == name), None)
        license_name = listed or (self.weights.origin or {}).get("licence") or "not stated"
        return f"{self.name} (license {license_name}), {self.values['model.backbone']}"


def read_weight_settings(checkpoint: str, *, on_cpu: bool | None = None) -> WeightSettings:
    """Read weights, and derive the clips and the encoder of a recipe from them.

    For image weights, each frame of the video is a time index; frames that are larger than
    `everest.checkpoints.load.MAX_SIDE` are made smaller.

    Args:
        on_cpu: whether the model will run on a CPU; None: if this machine has no GPU.
    Raises:
        CheckpointError: the weights are missing, damaged or foreign.
        RecipeError: a name that timm does not have.
    """
    weights, spec = open_encoder(checkpoint)
    frames, size = choose_clip(spec, on_cpu=on_cpu)
    default_pixels, pixels = STATISTICS_OF_CHANNELS[spec.channels], spec.pixels
    values: dict[str, Any] = {"data.frames": frames, "data.size": list(size)}
    if spec.channels != 3:
        values["data.channels"] = spec.channels
    if pixels != default_pixels:
        values |= {"data.mean": list(pixels.mean), "data.std": list(pixels.std)}
    clip = dict[str, Any](weights.clip or {})
    if (fps := clip.pop("fps", None)) is not None:
        values["data.fps"] = fps
    default_values = vars(ModelSettings())
    for name, value in vars(spec.model).items():
        if (name in ALWAYS_SET or value != default_values[name]) and name not in DECODER_SETTINGS:
            values[f"model.{name}"] = list(value) if isinstance(value, tuple) else value
    values |= {f"{stage}.{key}": value for stage in STAGES for key, value in clip.items()}
    return WeightSettings(name=checkpoint, weights=weights, spec=spec, values=values)
