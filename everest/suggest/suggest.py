"""A recipe for a data set and a device, each value with its reason. The budgets count updates, not epochs.

All rules are our choice. The input, clips, tokens, batch and learning rate for a CPU were chosen on the
validation lists of sets of 50 to 175 real clips. The number of steps for other sets and all values for a GPU
were not measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from everest.config.yaml import write_yaml
from everest.data.probe_clips import MOST_VIDEOS
from everest.errors import unknown_name
from everest.lists.label_facts import IMBALANCED
from everest.suggest.choices import Choice, Purpose, choose_every
from everest.suggest.data_facts import DataFacts
from everest.suggest.suggest_augmentation import augmentation
from everest.train.plan import PEAK_LR
from everest.train.probes import MOST_SHARE

COVERED: Final = 0.75  # of the median video, by a training clip
FRAMES: Final = 16  # of a clip
MOST_STRIDE: Final = 12  # half a second at 25 frames a second: neighboring frames of a clip are related
FEWEST_STEPS: Final = 600  # of a stage
MOST_STEPS: Final = 30_000
FEWEST_TUBELETS: Final = 4  # along a side of a frame
STEPS_OF_ROOT: Final = 120  # updates times the square root of the number of videos
STEPS_A_SECOND: Final = 10  # at most, assumed


@dataclass(frozen=True, kw_only=True)
class Device:
    """The model and the batch that a kind of device can train in hours."""

    base: str  # recipe
    backbone: str
    side: int  # of a square of as many pixels as a frame
    tubelet: tuple[int, int, int]
    batch: int
    keep: float  # share of the tokens that fine-tuning encodes
    speed: int  # clips per second in fine-tuning, assumed


DEVICES: Final = {
    "cpu": Device(
        base="small", backbone="vit-tiny", side=96, tubelet=(4, 8, 8), batch=16, keep=0.15, speed=60
    ),
    "8GB": Device(
        base="custom", backbone="vit-s", side=160, tubelet=(2, 16, 16), batch=32, keep=0.6, speed=100
    ),
    "24GB": Device(
        base="custom", backbone="vit-s", side=224, tubelet=(2, 16, 16), batch=64, keep=0.6, speed=150
    ),
    "80GB": Device(
        base="custom", backbone="vit-b", side=224, tubelet=(2, 16, 16), batch=128, keep=0.6, speed=200
    ),
}


def check_device(name: str) -> str:
    """The name of a device; RecipeError if there is none of that name."""
    if name not in DEVICES:
        raise unknown_name("--device", name, DEVICES)
    return name


def choose_values(
    facts: DataFacts, device_name: str, *, hours: float, purpose: Purpose = "scratch"
) -> list[Choice]:
    """Choose the values that depend on the data set and the device.

    Args:
        hours: for each stage.
    Raises:
        RecipeError: there is no such device.
    """
    device = DEVICES[check_device(device_name)]
    on = "a CPU" if device_name == "cpu" else f"a GPU of {device_name.removesuffix('GB')} GB"
    chosen = [
        *_clip(facts, device),
        Choice.of("model.backbone", device.backbone, f"trains in hours on {on}"),
        Choice.of("model.tubelet", list(device.tubelet), "small tubelets for small frames"),
        Choice.of("model.positions", "separable", "of time and place; no worse than flat ones on few videos"),
        *_budgets("pretrain", facts.pretrain_videos or facts.videos, device, hours=hours),
        *_budgets("finetune", facts.videos, device, hours=hours),
        Choice.of("pretrain.batch_size", device.batch, f"fits {on}"),
        Choice.of("finetune.batch_size", device.batch, f"fits {on}"),
        *(
            Choice.of(
                f"{stage}.base_lr",
                PEAK_LR * 256 / device.batch,
                f"a peak of {PEAK_LR:g}: base_lr * batch_size / 256",
            )
            for stage in ("pretrain", "finetune")
        ),
        *_layer_decay(purpose),
        Choice.of(
            "finetune.selection",
            {"strategy": "redundancy-robust", "keep_ratio": device.keep},
            "the tokens that change most",
        ),
        *augmentation(facts, purpose),
        *_labels(facts, purpose),
    ]
    chosen += _probes(facts, chosen, batch=device.batch)
    order = ("data", "model", "pretrain", "finetune")
    return sorted(chosen, key=lambda choice: order.index(choice.key[0]))


def _clip(facts: DataFacts, device: Device) -> list[Choice]:
    size = _frame_size(facts, device)
    return [
        Choice.of("data.frames", FRAMES, "as in the papers"),
        Choice.of(
            "data.size",
            list(size),
            f"about {device.side} x {device.side} pixels in the shape of the median video, "
            f"{facts.height:g} x {facts.width:g}",
        ),
        _stride("pretrain", facts.pretrain_frames or facts.frames),
        _stride("finetune", facts.frames),
    ]


def _stride(stage: str, frames: float) -> Choice:
    stride = min(MOST_STRIDE, max(1, round(COVERED * frames / FRAMES)))
    covered = f"{min(1.0, stride * FRAMES / frames):.0%}"
    return Choice.of(
        f"{stage}.stride", stride, f"a clip covers {covered} of the median video ({frames:g} frames)"
    )


def _budgets(stage: str, videos: int, device: Device, *, hours: float) -> list[Choice]:
    by_data = min(MOST_STEPS, max(FEWEST_STEPS, round(STEPS_OF_ROOT * math.sqrt(videos))))
    in_time = int(hours * 3600 * min(device.speed / device.batch, STEPS_A_SECOND))
    steps = max(1, min(by_data, in_time))
    limit = f"{STEPS_OF_ROOT} x sqrt({videos} videos)" if steps == by_data else f"in {hours:g} h"
    if steps == FEWEST_STEPS:
        limit = "the fewest that are suggested"
    return [
        Choice.of(f"{stage}.steps", steps, limit),
        Choice.of(f"{stage}.warmup_steps", steps // 10, "a tenth"),
    ]


def _layer_decay(purpose: Purpose) -> list[Choice]:
    """The same learning rate in all layers if none of them is trained already."""
    if purpose != "scratch":
        return []
    return [Choice.of("finetune.layer_decay", 1.0, "all layers start from new weights")]


def _labels(facts: DataFacts, purpose: Purpose) -> list[Choice]:
    """The settings that follow from the kind of the labels and the balance of the classes."""
    if purpose == "pretrain":
        return []
    if facts.task == "regression":
        return [
            Choice.of("finetune.mixup", 0.0, "half of two videos has no number of its own"),
            Choice.of("finetune.cutmix", 0.0, "as mixup"),
            Choice.of("finetune.label_smoothing", 0.0, "of classes only"),
        ]
    if facts.imbalance > IMBALANCED:
        reason = (
            f"the most frequent class has {facts.imbalance:.3g} times the videos of the rarest; "
            "class_weights: balanced is the alternative"
        )
        return [Choice.of("finetune.sampler", "sqrt", reason)]
    return []


def _probes(facts: DataFacts, chosen: Sequence[Choice], *, batch: int) -> list[Choice]:
    """The probes of pre-training; none if they are not cheap."""
    steps = next(choice.value for choice in chosen if choice.key == ("pretrain", "steps"))
    for probed in (facts.probed, facts.probed.without_labels(MOST_VIDEOS)):
        found = choose_every(probed, steps=steps, batch=batch, videos=facts.pretrain_videos or facts.videos)
        if found is not None:
            every, share = found
            named = {} if probed.name is None else {"list": probed.name}
            reason = f"measures the features while the run trains, for about {share:.1%} of its cost"
            return [Choice.of("pretrain.probe", {"every": every, **named}, reason)]
    reason = f"probes would cost more than {MOST_SHARE:.0%} of so few steps; every: 1 makes them anyway"
    return [Choice.of("pretrain.probe", {"every": 0}, reason)]


def _frame_size(facts: DataFacts, device: Device) -> tuple[int, int]:
    """Height and width in whole tubelets, at least `FEWEST_TUBELETS`; no larger than the video otherwise."""
    _, rows, columns = device.tubelet
    shape = math.sqrt(facts.height / facts.width)
    height, width = (
        max(FEWEST_TUBELETS, round(min(device.side * factor, largest) / unit)) * unit
        for factor, largest, unit in (
            (shape, facts.height, rows),
            (1 / shape, facts.width, columns),
        )
    )
    return height, width


def recipe_text(choices: Sequence[Choice], data: dict[str, Any], *, base: str, facts: DataFacts) -> str:
    """The YAML of a recipe with a comment for each value."""
    of_classes = f"{facts.classes} classes" if facts.classes else "no labels"
    if facts.task == "regression":
        of_classes = "numbers as labels"
    more = f", and {facts.pretrain_videos} for pre-training" if facts.pretrain_videos else ""
    lines = [
        f"# {facts.videos} training videos with {of_classes}{more}. Each value states its reason.",
        f"base: {base}",
        *(write_yaml({"data": data}).splitlines() if data else ["data:"]),
    ]
    section = "data"
    for choice in choices:
        if choice.key[0] != section:
            section = choice.key[0]
            lines.append(f"{section}:")
        (name,) = choice.key[1:]
        value = write_yaml({name: choice.value}, width=10_000).rstrip("\n")
        first, *rest = value.splitlines()
        lines += [f"  {first} # {choice.reason}", *(f"  {line}" for line in rest)]
    return "\n".join(lines) + "\n"
