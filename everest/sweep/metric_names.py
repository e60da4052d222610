"""The names of a sweep's metrics, their titles and values as text.

A name is that of `everest eval --json`, after `HEAD.` if there are several heads. Metrics of probes have
`probe.NAME.` before it, metrics of data.val `val_`; `pretrain_loss` is the mean of the last steps of a
pre-training.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from everest.config.best import MEASURED_BY, best_metric
from everest.config.heads import Head, named_heads
from everest.config.settings import Recipe
from everest.metrics.names import METRICS, metric_of
from everest.sweep.choices import StageName

PRETRAIN_LOSS: Final = "pretrain_loss"
VALIDATION: Final = "val_"
PROBE: Final = "probe"
HEADLINE_PROBE: Final = "linear"


def headline(
    recipe: Recipe, stages: tuple[StageName, ...], class_names: Collection[str] | None = None
) -> str:
    """The metric that a report shows unless another is chosen: that of the task, of the last stage.

    Args:
        class_names: if they are known. With `background`, top-1 gives way to the mean class accuracy.
    """
    heads = named_heads(recipe.data.heads or {})
    if "eval" in stages and heads and all(head.task == "single-label" for head in heads):
        return "action_top1"
    head = heads[0] if heads else Head(task=recipe.data.task, outputs=1)
    name = MEASURED_BY[head.task] if len(heads) > 1 else best_metric((head,), None, class_names)
    place = f"{heads[0].name}." if heads else ""
    if "eval" in stages:
        return f"{place}{name}"
    if "probe" in stages:
        return f"{place}{PROBE}.{HEADLINE_PROBE}.{name}"
    if "finetune" in stages:
        return f"{VALIDATION}{'loss' if heads else name}"
    return PRETRAIN_LOSS


def metric_title(name: str) -> str:
    """A name as tables and figures show it: `top-1`, `verb top-1`, `linear probe top-1`."""
    *places, last = name.split(".")
    words = [place for place in places if place != PROBE] + ([PROBE] if PROBE in places else [])
    metric = metric_of(name)
    known = next((key for key in METRICS if METRICS[key] is metric), "")
    before = last.removesuffix(known).strip("_") if metric is not None else last
    words += [{"val": "validation", "pretrain": "pre-training"}.get(before, before)] if before else []
    return " ".join([*words, metric.title] if metric is not None else words)
