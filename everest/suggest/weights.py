"""The values of a recipe that starts from weights: clips and encoder follow from them, and little is trained.

All rules are our choice, and not yet measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from everest.checkpoints.describe import WeightSettings
from everest.suggest.rules import DEVICE_VALUES, GROUPS_FOR_DIFFERENCES, Choice, DataFacts, frame_size
from everest.system.text import counted

SECTIONS: Final = ("data", "model", "pretrain", "finetune", "eval")  # in their order in a recipe
TUNED_BLOCKS: Final = 2  # the last ones, on a CPU
TUNED_EPOCHS: Final = 20  # at most, of fine-tuning
FEWEST_TUNED_STEPS: Final = 100
LAYER_DECAY: Final = 0.75  # as in the papers
LORA_RANK: Final = 8
TUNED_PEAK_LR: Final = 3e-4  # trained weights need smaller steps than new ones
ADAPTER_PEAK_LR: Final = 1e-3


def with_weights(
    choices: Sequence[Choice],
    facts: DataFacts,
    device_name: str,
    start: WeightSettings,
    *,
    frames: int | None,
) -> list[Choice]:
    """The choices of `choose_values` for a model that starts from weights.

    `frames` are of a clip of image weights, chosen for a time on a CPU; None: as usual.
    """
    own = [Choice(key, value, "as in the weights") for key, value in start.values.items()]
    if frames is not None:
        own.append(Choice("data.frames", frames, "the most that --latency allows, at least 2"))
    if start.is_image:
        height, width = start.values["data.size"]
        size = frame_size(facts, (height + width) / 2, start.values["model.tubelet"])
        own.append(Choice("data.size", size, f"about {height} x {width} pixels, in whole patches"))
        own.append(Choice("pretrain.camera_motion", 0.0, "image weights see each frame by itself"))
    merged = {choice.key: choice for choice in choices if not choice.key.startswith("model.")}
    merged |= {choice.key: choice for choice in own}
    if "finetune.steps" in merged:
        tuned = _tuning(facts, device_name, start, planned=merged["finetune.steps"].value)
        merged |= {choice.key: choice for choice in tuned}
    return sorted(merged.values(), key=lambda choice: SECTIONS.index(choice.key.partition(".")[0]))


def _tuning(facts: DataFacts, device_name: str, start: WeightSettings, *, planned: int) -> list[Choice]:
    """What fine-tuning trains of the weights, how long, and how fast."""
    batch, size = DEVICE_VALUES[device_name].batch, facts.train
    by_epochs = max(FEWEST_TUNED_STEPS, math.ceil(TUNED_EPOCHS * size.samples / batch))
    steps = min(planned, by_epochs)
    steps_reason = f"{TUNED_EPOCHS} epochs of {counted(size.samples, size.unit)}, as weights learn fast"
    few = f"few labels: {size}"
    depth, peak, trained = start.spec.model.backbone_size.depth, TUNED_PEAK_LR, None
    if device_name == "cpu" and depth > TUNED_BLOCKS:
        reason = f"a CPU trains the last {TUNED_BLOCKS} blocks only"
        trained = Choice("finetune.freeze", f"first:{depth - TUNED_BLOCKS}", reason)
    elif size.groups <= GROUPS_FOR_DIFFERENCES:
        trained, peak = Choice("finetune.lora", {"rank": LORA_RANK}, f"adapters; {few}"), ADAPTER_PEAK_LR
    selection: dict[str, Any] = {"strategy": "all"}
    chosen = [
        Choice("finetune.steps", steps, steps_reason if steps == by_epochs else "in the planned time"),
        Choice("finetune.warmup_steps", steps // 10, "a tenth"),
        Choice("finetune.base_lr", round(peak * 256 / batch, 6), f"a peak of {peak:g}, for trained weights"),
        Choice("finetune.layer_decay", LAYER_DECAY, "early layers of the weights change least"),
        Choice("finetune.selection", selection, "image weights see whole frames", applies=start.is_image),
    ]
    return [choice for choice in [*chosen, *([] if trained is None else [trained])] if choice.applies]
