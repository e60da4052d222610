"""Contradictions between sections of a recipe: labels, partial training, channels, inputs."""

from __future__ import annotations

from collections.abc import Iterator

from everest.config.heads import named_heads
from everest.config.layers import KeyPath
from everest.config.metrics import ALLOWED
from everest.config.settings import Recipe
from everest.methods.ranked import ByChange
from everest.methods.targets import Target

Problems = Iterator[tuple[KeyPath, str]]  # the key of a setting that contradicts another one, and the reason


def label_problems(recipe: Recipe) -> Problems:
    """Tasks, metrics and weights that do not go with the labels."""
    data, stage = recipe.data, recipe.finetune
    heads = named_heads(data.heads or {})
    tasks = {head.task for head in heads} or {data.task}
    if heads and data.task != "single-label":
        yield ("data", "task"), "does not go with data.heads, where each head has its own; leave it out"
    if data.task == "regression" and not heads:
        for key in ("classes", "num_classes"):
            if getattr(data, key) is not None:
                yield ("data", key), "is of classes, and data.task is regression; set it to null"
    if "regression" in tasks:
        if stage.cutmix:
            text = "cannot mix numbers: half of a frame has no half of a number; set it to 0"
            yield ("finetune", "cutmix"), text
        if stage.sampler != "shuffle" and (not heads or heads[0].task == "regression"):
            yield ("finetune", "sampler"), f"{stage.sampler} needs classes, and the labels are numbers"
        if stage.class_weights != "none" and tasks == {"regression"}:
            yield ("finetune", "class_weights"), "needs classes, and the labels are numbers"
    if stage.sampler == "balanced" and stage.class_weights == "balanced":
        text = "balanced, as finetune.sampler is: rare classes would count twice; set one of them"
        yield ("finetune", "class_weights"), text
    # Of several heads: whether all are right, if each names a class.
    of_heads = ("top1", "loss") if tasks == {"single-label"} else ("loss",)
    known = of_heads if heads else ALLOWED[data.task]
    if stage.best is not None and stage.best not in known:
        yield (
            ("finetune", "best"),
            f"{stage.best} is not measured for these labels; known: {', '.join(known)}",
        )


def partial_problems(recipe: Recipe) -> Problems:
    """Frozen layers and adapters that do not go with the encoder, or with each other."""
    size, finetune = recipe.model.backbone_size, recipe.finetune
    if finetune.frozen_layers(size.depth) > 1 + size.depth:
        yield ("finetune", "freeze"), f"{finetune.freeze} is more than the encoder's {size.depth} blocks"
    if finetune.lora.rank and finetune.freeze != "none":
        text = f"is {finetune.freeze}, and finetune.lora freezes the whole encoder; leave one of them out"
        yield ("finetune", "freeze"), text
    for stage, settings in recipe.stages:
        lora = settings.lora
        if lora.rank > size.width:
            text = f"{lora.rank} is more than the encoder's width of {size.width}"
            yield (stage, "lora", "rank"), text
        twice = next((layer for layer in lora.layers if lora.layers.count(layer) > 1), None)
        if twice is not None:
            yield (stage, "lora", "layers"), f"names {twice} twice"


def view_problems(recipe: Recipe) -> Problems:
    """Settings of pre-training that do not go with learning between views, or with the task of the camera."""
    stage = recipe.pretrain
    if stage.camera_motion and recipe.data.frames < 2:
        yield ("pretrain", "camera_motion"), "needs clips of at least two frames (data.frames)"
    if stage.camera_motion and stage.target.cache is not None and stage.selection.needs_tokenizer:
        text = "needs scores of its own clips, and pretrain.target.cache has others; leave one out"
        yield ("pretrain", "camera_motion"), text
    if stage.objective == "pixels":
        return
    if stage.selection.needs_tokenizer:
        yield ("pretrain", "selection"), "needs a tokenizer, which pretrain.objective=views does not run"
    if stage.frame_selection.alpha > 1:
        yield (("pretrain", "frame_selection", "alpha"), "draws frames for an autoencoder only; set it to 1")
    if stage.batch_size < 2 * stage.views.number:
        text = f"{stage.batch_size} clips are fewer than two videos of {stage.views.number} views to compare"
        yield ("pretrain", "batch_size"), text
    elif stage.batch_size % stage.views.number:
        text = f"{stage.batch_size} clips do not divide into videos of {stage.views.number} views"
        yield ("pretrain", "batch_size"), f"{text} (pretrain.views.number)"
    if recipe.data.clips_per_video != 1:  # two clips of a video would be compared as of different videos
        text = "must be 1 with pretrain.objective=views; list windows of long videos (prepare windows)"
        yield ("data", "clips_per_video"), text


def channel_problems(recipe: Recipe) -> Problems:
    """Mean and std have a value for each channel; tokenizers and other packages work with colors."""
    data = recipe.data
    for key, values in (("mean", data.mean), ("std", data.std)):
        if values is not None and len(values) != data.channels:
            text = f"{len(values)} values, and data.channels is {data.channels}; give one for each channel"
            yield ("data", key), text
    if data.channels == 1:
        if recipe.tokenizer is not None or recipe.pretrain.needs_tokenizer:
            yield ("data", "channels"), "1 does not go with a tokenizer, which codes colors; set it to 3"
        if isinstance(recipe.pretrain.target, Target):
            kind = recipe.pretrain.target.kind
            yield ("data", "channels"), f"1 does not go with {kind}, a target of another package; set it to 3"


def input_problems(recipe: Recipe) -> Problems:
    """The settings that do not go with differences of frames as the input of the model."""
    key = ("model", "input")
    if recipe.model.input != "differences":
        return
    if recipe.data.frames < 2:
        yield key, "differences need clips of at least two frames (data.frames)"
    if recipe.pretrain.needs_tokenizer:
        yield key, "must be frames, from which a tokenizer makes scores and targets"
    if recipe.pretrain.frame_selection.alpha > 1:
        yield key, "must be frames with pretrain.frame_selection.alpha, whose frames are not consecutive"
    for stage, settings in recipe.stages:
        if isinstance(settings.selection, ByChange) and settings.selection.sees_camera:
            yield key, f"must be frames with {stage}.selection.align or cuts, which compare frames"
