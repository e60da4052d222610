"""Checks of the settings of the stages: labels, partial training, the probes of pre-training."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from everest.config.heads import Heads, named_heads
from everest.config.layers import STAGES, KeyPath
from everest.config.metrics import ALLOWED
from everest.config.settings import Recipe


def label_problems(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """Yields the key of each setting about labels that contradicts another setting, and the reason."""
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
    known = _metrics(heads, data.task)
    if stage.best is not None and stage.best not in known:
        yield (
            ("finetune", "best"),
            f"{stage.best} is not measured for these labels; known: {', '.join(known)}",
        )


def _metrics(heads: Heads, task: str) -> tuple[str, ...]:
    """The metrics that can choose the best weights."""
    if not heads:
        return ALLOWED[task]
    return ("top1", "loss") if all(head.task == "single-label" for head in heads) else ("loss",)


def label_notices(recipe: Recipe, given: Collection[KeyPath]) -> Iterator[str]:
    """Yields a line for each key in `given` about labels that has no effect."""
    if recipe.data.heads and ("data", "num_classes") in given:
        yield "data.num_classes has no effect with data.heads"
    heads = named_heads(recipe.data.heads or {})
    tasks = {head.task for head in heads} or {recipe.data.task}
    if (
        tasks == {"regression"}
        and ("finetune", "label_smoothing") in given
        and recipe.finetune.label_smoothing
    ):
        yield "finetune.label_smoothing has no effect on numbers"


def partial_problems(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """Yields the key of each setting of partial training that contradicts another setting, and the reason."""
    size, finetune = recipe.model.backbone_size, recipe.finetune
    if finetune.frozen_layers(size.depth) > 1 + size.depth:
        yield ("finetune", "freeze"), f"{finetune.freeze} is more than the encoder's {size.depth} blocks"
    if finetune.lora.rank and finetune.freeze != "none":
        text = f"is {finetune.freeze}, and finetune.lora freezes the whole encoder; leave one of them out"
        yield ("finetune", "freeze"), text
    for stage, settings in zip(STAGES, (recipe.pretrain, recipe.finetune), strict=True):
        lora = settings.lora
        if lora.rank > size.width:
            text = f"{lora.rank} is more than the encoder's width of {size.width}"
            yield (stage, "lora", "rank"), text
        twice = next((layer for layer in lora.layers if lora.layers.count(layer) > 1), None)
        if twice is not None:
            yield (stage, "lora", "layers"), f"names {twice} twice"


def partial_notices(recipe: Recipe, given: Collection[KeyPath]) -> Iterator[str]:
    """Yields a line for each key of adapters in `given` without effect."""
    for stage, settings in zip(STAGES, (recipe.pretrain, recipe.finetune), strict=True):
        for key in ("alpha", "dropout", "layers"):
            if not settings.lora.rank and (stage, "lora", key) in given:
                yield f"{stage}.lora.{key} has no effect if {stage}.lora.rank is 0"


def probe_problems(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """Yields the key of each setting of the probes that contradicts another setting, and the reason."""
    data, probe = recipe.data, recipe.pretrain.probe
    if probe.list is not None and (data.heads or data.task != "single-label"):
        text = (
            "needs one class for each video, and data has other labels (data.task, data.heads); leave it out"
        )
        yield ("pretrain", "probe", "list"), text


def probe_notices(recipe: Recipe, given: Collection[KeyPath]) -> Iterator[str]:
    """Yields a line for each key of the probes in `given` without effect."""
    probe = recipe.pretrain.probe
    for key in ("list", "metric"):
        if not probe.every and ("pretrain", "probe", key) in given:
            yield f"pretrain.probe.{key} has no effect if pretrain.probe.every is 0"
    if probe.every and probe.list is None and ("pretrain", "probe", "metric") in given:
        yield "pretrain.probe.metric has no effect without pretrain.probe.list"
