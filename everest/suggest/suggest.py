"""A recipe for a data set and a device, each value with its reason. The budgets count updates, not epochs.

Whether a set is small depends on its independent groups: windows of a recording look alike.

All rules are our choice. The input, clips, tokens, batch and learning rate for a CPU were chosen on the
validation lists of sets of 50 to 175 real clips, and tried on windows of joined recordings
(benchmarks/timelines.md); the pre-training on 320 to 470 clips (docs/start/choosing.md). The number of steps
for other sets and all values for a GPU were not measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from everest.config.yaml import write_yaml
from everest.engine.plan import PEAK_LR, steps_between_checkpoints
from everest.lists.labels import IMBALANCED
from everest.lists.sample import ListSize
from everest.probes.collapse import probed_steps
from everest.suggest.data_facts import DataFacts, ProbeList
from everest.suggest.devices import DEVICES, Device, Purpose
from everest.system.text import counted

COVERED: Final = 0.75  # of the median video, by a training clip
MOST_OF_VIDEO: Final = 0.5  # a clip that covers more is the only one that is evaluated
WHOLE_FRAME: Final = 0.8  # a crop that shows more is the only one that is evaluated
FRAMES: Final = 16  # of a clip
MOST_STRIDE: Final = 12  # half a second at 25 frames a second: neighboring frames of a clip are related
FEWEST_STEPS: Final = 600  # of a stage
MOST_STEPS: Final = 30_000
FEWEST_TUBELETS: Final = 4  # along a side of a frame
STEPS_OF_ROOT: Final = 120  # updates times the square root of the number of videos
COMPARED: Final = 3  # clips of a step of pre-training, for each one of fine-tuning
KEPT_AFTER_VIEWS: Final = 0.5  # share of the tokens, at least
FEW_GROUPS: Final = 500  # up to here a model sees differences
VERY_FEW_GROUPS: Final = 100  # up to here mild augmentation
MOST_PROBES: Final = 20
MOST_SHARE: Final = 0.05  # of the cost of a run, which its probes may add
COST: Final = 3.2  # computation for a probed video, in training clips: of the recipe custom, the most of all
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # of `turn_left`, `turnLeft`, `turn LEFT`
_SIDE: Final = re.compile(r"left|right|(?:counter|anti)?clockwise", re.IGNORECASE)


class Choice(NamedTuple):
    """A value of the recipe, and why."""

    key: str  # section.key
    value: Any
    reason: str


def choose_values(
    facts: DataFacts,
    device_name: str,
    *,
    purpose: Purpose = "scratch",
    most_steps: Mapping[str, int] | None = None,
) -> list[Choice]:
    """Choose the values that depend on the data set and the device.

    Args:
        device_name: one of `DEVICES`.
        most_steps: of a stage; None: as many as the data set needs.
    """
    device = DEVICES[device_name]
    on = "a CPU" if device_name == "cpu" else f"a GPU of {device_name.removesuffix('GB')} GB"
    views, kept = _compared_views(), _kept(device, purpose)
    decay = Choice("finetune.layer_decay", 1.0, "all layers start from new weights")
    limits = most_steps or {}
    chosen = [
        *_clip(facts, device, purpose),
        Choice("model.backbone", device.backbone, f"trains in hours on {on}"),
        Choice("model.tubelet", list(device.tubelet), "small tubelets for small frames"),
        Choice("model.positions", "separable", "of time and place; no worse than flat ones on few videos"),
        *_budgets("pretrain", facts.pretrain or facts.train, limits.get("pretrain")),
        *_budgets("finetune", facts.train, limits.get("finetune")),
        *views,
        *_batch("pretrain", COMPARED * device.batch, "clips are compared with all others of a step"),
        *_batch("finetune", device.batch, f"fits {on}"),
        *([decay] if purpose == "scratch" else []),
        kept,
        *_augmentation(facts, purpose),
        *_labels(facts, purpose),
    ]
    chosen += _probes(facts, chosen)
    chosen += _evaluated_views(facts, chosen)
    order = ("data", "model", "pretrain", "finetune", "eval")
    return sorted(chosen, key=lambda choice: order.index(choice.key.split(".")[0]))


def _clip(facts: DataFacts, device: Device, purpose: Purpose) -> list[Choice]:
    size, frames = _frame_size(facts, device), facts.frames
    if purpose == "finetune" and facts.pretrain is not None:  # the encoder sees actions at one speed
        frames = min(frames, facts.pretrain_frames)
    return [
        Choice("data.frames", FRAMES, "as in the papers"),
        Choice(
            "data.size",
            list(size),
            f"about {device.side} x {device.side} pixels in the shape of the median video, "
            f"{facts.height:g} x {facts.width:g}",
        ),
        _stride("pretrain", frames, facts.train.unit),
        _stride("finetune", frames, facts.train.unit),
    ]


def _stride(stage: str, frames: float, unit: str) -> Choice:
    stride = min(MOST_STRIDE, max(1, round(COVERED * frames / FRAMES)))
    return Choice(f"{stage}.stride", stride, f"{_coverage(stride, frames, unit)} ({frames:g} frames)")


def _coverage(stride: int, frames: float, unit: str) -> str:
    return f"a clip covers {min(1.0, stride * FRAMES / frames):.0%} of the median {unit}"


def _budgets(stage: str, size: ListSize, most: int | None) -> list[Choice]:
    """The steps by the number of videos or windows, at most `most`."""
    by_data = min(MOST_STEPS, max(FEWEST_STEPS, round(STEPS_OF_ROOT * math.sqrt(size.samples))))
    steps = by_data if most is None else max(1, min(by_data, most))
    limit = f"{STEPS_OF_ROOT} x sqrt({counted(size.samples, size.unit)})"
    if steps == FEWEST_STEPS:
        limit = "the fewest that are suggested"
    if steps < by_data:
        limit = "in the time of --hours"
    return [Choice(f"{stage}.steps", steps, limit), Choice(f"{stage}.warmup_steps", steps // 10, "a tenth")]


def _compared_views() -> list[Choice]:
    """Pre-training that compares clips of the videos: predicted pixels helped less on real clips."""
    return [
        Choice(
            "pretrain.objective",
            "views",
            "clips of the videos are compared; predicting pixels helped less on real clips",
        ),
        Choice("pretrain.camera_motion", 1.0, "the motion of a camera over still frames is predicted, too"),
        Choice(
            "pretrain.selection",
            {"strategy": "drawn", "keep_ratio": 0.25, "visible_ratio": None, "uniform": 1.0},
            "a quarter of the tokens, drawn uniformly: drawing by change was no better on most real clips",
        ),
    ]


def _batch(stage: str, clips: int, reason: str) -> list[Choice]:
    rate = f"a peak of {PEAK_LR:g}: base_lr * batch_size / 256"
    return [
        Choice(f"{stage}.batch_size", clips, reason),
        Choice(f"{stage}.base_lr", round(PEAK_LR * 256 / clips, 6), rate),
    ]


def _kept(device: Device, purpose: Purpose) -> Choice:
    keep, reason = device.keep, "the tokens that change most"
    if purpose != "scratch" and keep < KEPT_AFTER_VIEWS:
        keep = KEPT_AFTER_VIEWS
        reason = "half of the tokens, after pre-training between views"
    return Choice("finetune.selection", {"strategy": "redundancy-robust", "keep_ratio": keep}, reason)


def _augmentation(facts: DataFacts, purpose: Purpose) -> list[Choice]:
    """The augmentation and the input that keep a model from overfitting, and no flips that change a label."""
    groups = facts.train.groups
    mild = groups <= VERY_FEW_GROUPS
    count = str(facts.train)
    least, strength = (0.5, "mild") if mild else (0.3, "stronger")
    chosen = [Choice("finetune.crop_area", [least, 1.0], f"{strength} crops for {count}")]
    if facts.task != "regression":
        chosen.append(Choice("finetune.mixup", 0.0 if mild else 0.8, "with the crops"))
    if purpose == "scratch" and mild:
        chosen.append(Choice("finetune.rand_augment", None, "with the crops"))
        chosen.append(Choice("finetune.erasing", 0.0, "with the crops"))
    if purpose != "scratch" or groups <= FEW_GROUPS:
        of_few = f"a model overfits to the still parts of {count}"
        reason = (
            of_few if purpose == "scratch" else "views of frames differ by their places more than by motion"
        )
        chosen.append(Choice("model.input", "differences", reason))
    words = side_words(facts.class_names)
    if words:
        reason = f"class names have {', '.join(words)}; a mirrored clip shows the opposite"
        chosen.append(Choice("data.flip", False, reason))
    return chosen


def side_words(names: Iterable[str]) -> list[str]:
    """The words for a side or a turn in names of classes, in lower case, sorted."""
    words = {word.lower() for name in names for word in _WORD.findall(name)}
    return sorted(word for word in words if _SIDE.fullmatch(word))


def _labels(facts: DataFacts, purpose: Purpose) -> list[Choice]:
    """The settings that follow from the kind of the labels and the balance of the classes."""
    if purpose == "pretrain":
        return []
    if facts.task == "regression":
        return [
            Choice("finetune.mixup", 0.0, "half of two videos has no number of its own"),
            Choice("finetune.cutmix", 0.0, "as mixup"),
            Choice("finetune.label_smoothing", 0.0, "of classes only"),
        ]
    if facts.imbalance > IMBALANCED:
        reason = (
            f"the most frequent class has {facts.imbalance:.3g} times the {facts.train.unit}s of the rarest; "
            "class_weights: balanced is the alternative"
        )
        return [Choice("finetune.sampler", "sqrt", reason)]
    return []


def _probes(facts: DataFacts, chosen: Sequence[Choice]) -> list[Choice]:
    """The probes of pre-training; none if they are not cheap."""
    values = {choice.key: choice.value for choice in chosen}
    steps, batch = values["pretrain.steps"], values["pretrain.batch_size"]
    read = (facts.pretrain or facts.train).samples
    for probed in (facts.probed, facts.probed.without_labels()):
        found = choose_every(probed, steps=steps, batch=batch, videos=read)
        if found is not None:
            every, share = found
            named = {} if probed.name is None else {"list": probed.name}
            reason = f"measures the features while the run trains, for about {share:.1%} of its cost"
            return [Choice("pretrain.probe", {"every": every, **named}, reason)]
    reason = f"probes would cost more than {MOST_SHARE:.0%} of so few steps; every: 1 makes them anyway"
    return [Choice("pretrain.probe", {"every": 0}, reason)]


def choose_every(probed: ProbeList, *, steps: int, batch: int, videos: int) -> tuple[int, float] | None:
    """The epochs between two probes, and their share of the cost; None if so few as two cost too much.

    Args:
        steps, batch: of pre-training.
        videos: for pre-training.
    """
    checkpoint = steps_between_checkpoints(steps, videos, batch)
    for every in range(1, -(-steps // checkpoint) + 1):
        probes = len(probed_steps(steps, every=every, checkpoint_steps=checkpoint))
        share = probes * COST * (probed.videos + probed.held_out) / (steps * batch)
        if probes <= MOST_PROBES and share < MOST_SHARE:
            return every, share
    return None


def _evaluated_views(facts: DataFacts, chosen: Sequence[Choice]) -> list[Choice]:
    """One clip and one crop where they show most of the median sample, else as many as the base has."""
    values, views = {choice.key: choice.value for choice in chosen}, []
    stride, (height, width) = values["finetune.stride"], values["data.size"]
    if stride * FRAMES > MOST_OF_VIDEO * facts.frames:
        coverage = _coverage(stride, facts.frames, facts.train.unit)
        views.append(Choice("eval.clips", 1, f"{coverage}: one is enough"))
    shapes = sorted((height / width, facts.height / facts.width))
    shown = shapes[0] / shapes[1]  # by the largest crop of the shape of a clip
    if shown > WHOLE_FRAME:
        views.append(Choice("eval.crops", 1, f"a crop shows {shown:.0%} of the median frame: one is enough"))
    return views


def _frame_size(facts: DataFacts, device: Device) -> tuple[int, int]:
    """Height and width in whole tubelets, at least `FEWEST_TUBELETS`; no larger than the video otherwise."""
    _, rows, columns = device.tubelet
    shape = math.sqrt(facts.height / facts.width)
    height, width = (
        max(FEWEST_TUBELETS, round(min(device.side * factor, largest) / unit)) * unit
        for factor, largest, unit in ((shape, facts.height, rows), (1 / shape, facts.width, columns))
    )
    return height, width


def recipe_text(choices: Sequence[Choice], data: dict[str, Any], *, base: str, facts: DataFacts) -> str:
    """The YAML of a recipe with a comment for each value."""
    of_classes = f"{facts.classes} classes" if facts.classes else "no labels"
    if facts.task == "regression":
        of_classes = "numbers as labels"
    more = f" Pre-training: {facts.pretrain}." if facts.pretrain else ""
    lines = [
        f"# Training: {facts.train}, {of_classes}.{more} Each value states its reason.",
        f"base: {base}",
        *(write_yaml({"data": data}).splitlines() if data else ["data:"]),
    ]
    section = "data"
    for choice in choices:
        own_section, name = choice.key.split(".")
        if own_section != section:
            section = own_section
            lines.append(f"{section}:")
        value = write_yaml({name: choice.value}, width=10_000).rstrip("\n")
        first, *rest = value.splitlines()
        lines += [f"  {first} # {choice.reason}", *(f"  {line}" for line in rest)]
    return "\n".join(lines) + "\n"
