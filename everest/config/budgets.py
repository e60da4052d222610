"""The budget of a stage: epochs or steps. The last layer that sets one of them decides."""

from __future__ import annotations

from collections.abc import Iterator

from everest.config.layers import KeyPath, Merged


def choose_budgets(merged: Merged) -> Iterator[tuple[KeyPath, str]]:
    """Drop the epochs below a layer with steps, and the steps below a layer with epochs.

    Yields:
        The key and the problem of each stage for which one layer gives both.
    """
    for stage in ("pretrain", "finetune", "tokenizer"):
        section = merged.values.get(stage)
        if not isinstance(section, dict) or section.get("steps") is None:
            continue
        steps, epochs = (merged.origins.get((stage, unit)) for unit in ("steps", "epochs"))
        if steps and epochs and section.get("epochs") is not None and epochs.layer >= steps.layer:
            if epochs.layer == steps.layer:
                yield (stage, "steps"), "a stage has epochs or steps, not both; remove one of them"
            section["steps"] = None
        else:
            section["epochs"] = None
