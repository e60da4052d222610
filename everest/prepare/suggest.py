"""A recipe for a data set and a device, each value with its reason. The budgets count updates, not epochs.

All rules are our choice. The clips, tokens, batch and learning rate for a CPU were chosen on the validation
lists of sets of 50 to 144 real clips, with 300 to 450 steps. The number of steps for other sets and all
values for a GPU were not measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from everest.config.settings import DataSettings, Recipe
from everest.config.yaml import write_yaml
from everest.data.stage_source import LISTS
from everest.data.stages import finetune_clips
from everest.errors import DataError, unknown_name
from everest.system.storage import parse_location
from everest.video.reader import probe
from everest.video.stream import VideoError

MOST_PROBED: Final = 40  # videos whose length and size are read, spread over the list
COVERED: Final = 0.75  # of the median video, by a training clip
FEWEST_STEPS: Final = 400  # of a stage
MOST_STEPS: Final = 30_000
FEWEST_TUBELETS: Final = 4  # along a side of a frame
STEPS_OF_ROOT: Final = 60  # updates times the square root of the number of videos


@dataclass(frozen=True, kw_only=True)
class Device:
    """The model and the batch that a kind of device can train in hours."""

    base: str  # recipe
    backbone: str
    side: int  # of a square of as many pixels as a frame
    tubelet: tuple[int, int, int]
    batch: int
    keep: float  # share of the tokens that fine-tuning encodes
    speed: int  # clips per second in fine-tuning, assumed; a step takes at least a tenth of a second


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


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The properties of a data set on which the rules depend."""

    videos: int  # for training
    classes: int
    frames: float  # of the median video
    height: float
    width: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A value of the recipe, and why."""

    key: tuple[str, ...]
    value: Any
    reason: str


def examine_data(data: DataSettings) -> DataFacts:
    """Count the training videos and classes, and read the length and size of some videos.

    Raises:
        DataError: the list cannot be read, or none of the videos.
    """
    clips, classes = finetune_clips(Recipe(name="suggest", data=data))
    step = max(1, len(clips) // MOST_PROBED)
    found, problems = [], []
    for sample in clips.samples[::step]:
        try:
            found.append(probe(sample.video))
        except VideoError as error:
            problems.append(str(error))
    if not found:
        raise DataError(f"none of the videos can be read; the first: {problems[0]}")
    return DataFacts(
        videos=len(clips),
        classes=classes.count,
        frames=median(info.frames for info in found),
        height=median(info.height for info in found),
        width=median(info.width for info in found),
    )


def suggest(facts: DataFacts, device_name: str, *, hours: float) -> list[Choice]:
    """Choose the values that depend on the data set and the device.

    Args:
        hours: for pre-training and fine-tuning together.
    Raises:
        RecipeError: there is no such device.
    """
    if device_name not in DEVICES:
        raise unknown_name("--device", device_name, DEVICES)
    device = DEVICES[device_name]
    size = _frame_size(facts, device)
    frames = 16
    stride = max(1, round(COVERED * facts.frames / frames))
    by_data = min(MOST_STEPS, max(FEWEST_STEPS, round(STEPS_OF_ROOT * math.sqrt(facts.videos))))
    in_time = int(hours * 3600 / 2 * min(device.speed / device.batch, 10))
    steps = max(1, min(by_data, in_time))
    limit = f"{STEPS_OF_ROOT} x sqrt({facts.videos} videos)" if steps == by_data else f"half of {hours:g} h"
    covered = min(1.0, stride * frames / facts.frames)
    peak = 1e-3
    choices = [
        (("model", "backbone"), device.backbone, f"what {device_name} trains in hours"),
        (("model", "tubelet"), list(device.tubelet), "small tubelets for small frames"),
        (("data", "frames"), frames, "as in the papers"),
        (
            ("data", "size"),
            list(size),
            f"about {device.side} x {device.side} pixels in the shape of the median video, "
            f"{facts.height:g} x {facts.width:g}",
        ),
        (
            ("finetune", "stride"),
            stride,
            f"a clip covers {covered:.0%} of the median video ({facts.frames:g} frames)",
        ),
        (("pretrain", "stride"), stride, "as in fine-tuning"),
        (("pretrain", "steps"), steps, limit),
        (("pretrain", "batch_size"), device.batch, f"fits {device_name}"),
        (("finetune", "steps"), steps, limit),
        (("finetune", "batch_size"), device.batch, f"fits {device_name}"),
        (
            ("finetune", "base_lr"),
            peak * 256 / device.batch,
            f"a peak of {peak:g}: base_lr * batch_size / 256",
        ),
        (
            ("finetune", "selection"),
            {"strategy": "redundancy-robust", "keep_ratio": device.keep},
            "the tokens that change most",
        ),
    ]
    return [Choice(key=key, value=value, reason=reason) for key, value, reason in choices]


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
    lines = [
        f"# {facts.videos} training videos of {facts.classes} classes. Each value states its reason.",
        f"base: {base}",
        *write_yaml({"data": data}).splitlines(),
    ]
    section, order = "data", ("data", "model", "pretrain", "finetune")
    for choice in sorted(choices, key=lambda choice: order.index(choice.key[0])):
        if choice.key[0] != section:
            section = choice.key[0]
            lines.append(f"{section}:")
        (name,) = choice.key[1:]
        value = write_yaml({name: choice.value}, width=10_000).rstrip("\n")
        first, *rest = value.splitlines()
        lines += [f"  {first} # {choice.reason}", *(f"  {line}" for line in rest)]
    return "\n".join(lines) + "\n"


def data_section(root: str, *, train: str | None, val: str | None, test: str | None) -> dict[str, Any]:
    """The lists of a data set: the given ones, else `train.csv`, `val.csv` and `test.csv` if they exist.

    Raises:
        DataError: there is no training list.
    """
    location = parse_location(root)
    found = {}
    for key, given in (("train", train), ("val", val), ("test", test)):
        names = [given] if given else [LISTS[key], key]
        found[key] = next((name for name in names if (location / name).exists()), given)
    if found["train"] is None:
        command = f"everest prepare split {root}"
        raise DataError(f"{root}: no {LISTS['train']}; make lists by `{command}`, or name one by --train")
    return {"root": str(location.resolve()), **found}
