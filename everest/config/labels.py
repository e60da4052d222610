"""Checks of the settings about labels: tasks, heads, and how fine-tuning learns them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from everest.config.heads import Heads, named_heads
from everest.config.layers import KeyPath
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
