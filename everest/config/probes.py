"""Checks of the probes of pre-training."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from everest.config.layers import KeyPath
from everest.config.settings import Recipe


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
