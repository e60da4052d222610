"""The values of a recipe for a data set and a device, each with its reason; budgets count updates.

Whether a set is small depends on its independent groups: windows of a recording look alike.

All rules are our choice. The input, clips, tokens, batch and learning rate for a CPU were chosen on the
validation lists of sets of 50 to 175 real clips, and tried on windows of joined recordings
(benchmarks/timelines.md); the pre-training on 320 to 470 clips (docs/start/choosing.md). The number of steps
for other sets and all values for a GPU were not measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Final, Literal, NamedTuple

import torch

from everest.config.heads import Task
from everest.config.settings import DataSettings, Recipe
from everest.config.values import StageName
from everest.data.footage import read_footage
from everest.data.recipe_clips import finetune_dataset, pretrain_dataset
from everest.engine.schedule import PEAK_LR
from everest.errors import DataError
from everest.lists.labels import class_imbalance, count_classes
from everest.lists.sample import ListSize, Sample, choose_evenly
from everest.lists.sources import read_source
from everest.system.storage import join_location, parse_location
from everest.system.text import plural
from everest.video.reader import video_info
from everest.video.stream import VideoError

# The use of a recipe: pre-training only, a classifier from a pre-trained encoder, or one from scratch.
RecipePurpose = Literal["pretrain", "finetune", "scratch"]


@dataclass(frozen=True, kw_only=True)
class DeviceValues:
    """The model and the batch that a kind of device can train in hours."""

    base: str  # recipe
    backbone: str
    side: int  # of a square of as many pixels as a frame
    tubelet: tuple[int, int, int]
    batch: int
    keep: float  # fraction of the tokens that fine-tuning from scratch encodes


DEVICE_VALUES: Final = {
    "cpu": DeviceValues(base="small", backbone="vit-tiny", side=96, tubelet=(4, 8, 8), batch=16, keep=0.15),
    "8GB": DeviceValues(base="custom", backbone="vit-s", side=160, tubelet=(2, 16, 16), batch=32, keep=0.6),
    "24GB": DeviceValues(base="custom", backbone="vit-s", side=224, tubelet=(2, 16, 16), batch=64, keep=0.6),
    "80GB": DeviceValues(base="custom", backbone="vit-b", side=224, tubelet=(2, 16, 16), batch=128, keep=0.6),
}
CLIP_COVERAGE: Final = 0.75  # of the median video, by a training clip
SAMPLER_IMBALANCE: Final = 10.0  # videos of the most frequent class for each of the rarest
CLIP_FRAMES: Final = 16  # of a clip
MAX_STRIDE: Final = 12  # half a second at 25 frames a second: neighboring frames of a clip are related
MIN_STAGE_STEPS: Final = 600  # of a stage
MAX_STAGE_STEPS: Final = 30_000
MIN_TUBELETS: Final = 4  # along a side of a frame
STEPS_OF_ROOT: Final = 120  # updates times the square root of the number of videos
VIEWS_BATCH_FACTOR: Final = 3  # clips of a step of pre-training, for each one of fine-tuning
KEPT_AFTER_VIEWS: Final = 0.5  # fraction of the tokens, at least
GROUPS_FOR_DIFFERENCES: Final = 500  # at most; more learn from frames
GROUPS_FOR_MILD_CROPS: Final = 100  # at most; more get stronger augmentation
MAX_MEASURED_VIDEOS: Final = 40  # videos whose length and size are read, spread over the list
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # of `turn_left`, `turnLeft`, `turn LEFT`
_SIDE_WORD: Final = re.compile(r"left|right|(?:counter|anti)?clockwise", re.IGNORECASE)


def find_device() -> str:
    """The name of the largest of `DEVICE_VALUES` that this machine has."""
    if not torch.cuda.is_available():
        return "cpu"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    gpus = [name for name in DEVICE_VALUES if name != "cpu"]
    fitting = [name for name in gpus if int(name.removesuffix("GB")) <= 1.1 * memory]
    return fitting[-1] if fitting else gpus[0]


@dataclass(frozen=True, kw_only=True)
class DataStats:
    """The properties of a data set on which the rules depend."""

    train: ListSize
    pretrain: ListSize | None = None  # of `data.pretrain`; None: the same as for training
    classes: int  # 0: the videos have no labels, or numbers
    class_names: tuple[str, ...] = ()  # empty: only the indices of the classes are known
    frames: float  # of the median video or window; at `data.fps`, if it is set
    pretrain_frames: float | None = None  # the same of `data.pretrain`; None: the same as for training
    height: float
    width: float
    task: Task = "single-label"
    imbalance: float = 1.0  # ratio of the most frequent class to the rarest that has a video


def examine_data(data: DataSettings, *, labeled: bool = True) -> DataStats:
    """Count the training videos, windows, groups and classes, and read the length and size of some videos."""
    recipe = Recipe(name="suggest", data=data)
    dataset, known = finetune_dataset(recipe) if labeled else (pretrain_dataset(recipe), None)
    pretrain_samples = pretrain_dataset(recipe).samples if labeled and data.pretrain else ()
    root = parse_location(data.root)
    for key in ("val", "test") if labeled else ("val",):  # a typo in a label would show after hours
        name = getattr(data, key)
        if name is not None and join_location(root, name).exists():
            read_source(data, key, labeled=labeled, classes=known, skip_missing=True)
    frames, height, width = _median_size(dataset.samples, data.fps)
    # Of the first label, which a sampler balances.
    counts = count_classes(sample.labels[0] for sample in dataset.samples) if labeled else {}
    return DataStats(
        train=ListSize.of(dataset.samples),
        pretrain=ListSize.of(pretrain_samples) if pretrain_samples else None,
        classes=sum(head.outputs for head in known.heads if head.task != "regression") if known else 0,
        class_names=(known.names if known else None) or (),
        frames=frames,
        pretrain_frames=_median_size(pretrain_samples, data.fps)[0] if pretrain_samples else None,
        height=height,
        width=width,
        task=data.task if labeled else "single-label",
        imbalance=class_imbalance(counts.values()),
    )


def _median_size(samples: Sequence[Sample], fps: float | None) -> tuple[float, float, float]:
    """The median frames, height and width of some of the videos or segments."""
    sizes, problems = [], []
    for sample in choose_evenly(samples, MAX_MEASURED_VIDEOS):
        try:
            info = video_info(sample.video)
            sizes.append((read_footage(sample, fps).num_frames, info.height, info.width))
        except VideoError as error:
            problems.append(str(error))
    if not sizes:
        raise DataError(f"none of the videos can be read; the first: {problems[0]}")
    frames, height, width = map(median, zip(*sizes, strict=True))
    return frames, height, width


class Choice(NamedTuple):
    """A value of the recipe, and why."""

    key: str  # section.key
    value: Any
    reason: str
    applies: bool = True  # false: the value of the base recipe stays


def choose_values(
    stats: DataStats,
    device_name: str,
    *,
    purpose: RecipePurpose,
    max_steps: Mapping[str, int],
    size: DeviceValues | None = None,
) -> list[Choice]:
    """The values that depend on the data and on a device of `DEVICE_VALUES`, in the order of the sections.

    Stages that are not in `max_steps` have as many steps as the data set needs.
    """
    device = DEVICE_VALUES[device_name]
    if size is not None:
        device = replace(size, batch=device.batch)
    train = stats.train
    device_text = "a CPU" if device_name == "cpu" else f"a GPU of {device_name.removesuffix('GB')} GB"
    median_text = f"the median video, {stats.height:g} x {stats.width:g}"
    size_reason = f"about {device.side} x {device.side} pixels in the shape of {median_text}"
    words = {word.lower() for name in stats.class_names for word in _WORD.findall(name)}
    mirrored = sorted(filter(_SIDE_WORD.fullmatch, words))  # wrong in a mirror
    flip_reason = f"class names have {', '.join(mirrored)}; a mirrored clip shows the opposite"
    positions_reason = "separate positions in time and space; no worse than joint ones on few videos"
    input_reason = f"a model overfits to the still parts of {train}"
    if purpose != "scratch":
        input_reason = "views of frames differ by their position more than by motion"
    sees_differences = purpose != "scratch" or train.num_groups <= GROUPS_FOR_DIFFERENCES
    frames = stats.frames
    if purpose == "finetune":  # an encoder sees actions at one speed in both stages
        frames = min(frames, stats.pretrain_frames or frames)
    stride = min(MAX_STRIDE, max(1, round(CLIP_COVERAGE * frames / CLIP_FRAMES)))
    fraction = min(1.0, stride * CLIP_FRAMES / frames)
    stride_reason = f"a clip covers {fraction:.0%} of the median {train.noun} ({frames:g} frames)"
    choices = [
        Choice("data.frames", CLIP_FRAMES, "as in the papers"),
        Choice("data.size", choose_frame_size(stats, device.side, device.tubelet), size_reason),
        Choice("data.flip", False, flip_reason, applies=bool(mirrored)),
        Choice("model.backbone", device.backbone, f"small enough to train on {device_text}"),
        Choice("model.tubelet", list(device.tubelet), "small tubelets for small frames"),
        Choice("model.positions", "separable", positions_reason),
        Choice("model.input", "differences", input_reason, applies=sees_differences),
        Choice("pretrain.stride", stride, stride_reason),
        *_choose_pretraining(stats, device, max_steps.get("pretrain")),
        Choice("finetune.stride", stride, stride_reason),
        *_schedule("finetune", train, max_steps.get("finetune"), device.batch, f"fits {device_text}"),
        *_choose_finetuning(stats, device, purpose),
        Choice("eval.clips", 2, "as in the papers, a test averages several views"),
        Choice("eval.crops", 3, "over the longer side"),
    ]
    return [choice for choice in choices if choice.applies]


def choose_frame_size(stats: DataStats, side: float, tubelet: Sequence[int]) -> list[int]:
    """Height and width in whole tubelets, in the shape of the video and not larger, unless it is tiny."""
    shape = math.sqrt(stats.height / stats.width)
    sides = ((shape, stats.height), (1 / shape, stats.width))
    return [
        max(MIN_TUBELETS, min(round(side * factor / unit), int(largest // unit))) * unit
        for (factor, largest), unit in zip(sides, tubelet[1:], strict=True)
    ]


def _schedule(
    stage: StageName, size: ListSize, max_steps: int | None, batch: int, batch_reason: str
) -> list[Choice]:
    """The steps and the learning rate of a stage, by its number of videos or windows and its batch."""
    by_root = round(STEPS_OF_ROOT * math.sqrt(size.num_samples))
    by_data = min(MAX_STAGE_STEPS, max(MIN_STAGE_STEPS, by_root))
    steps = by_data if max_steps is None else max(1, min(by_data, max_steps))
    reason = f"{STEPS_OF_ROOT} x sqrt({plural(size.num_samples, size.noun)})"
    if by_root != by_data:
        reason = f"the {'fewest' if by_root < by_data else 'most'} that are suggested"
    if steps < by_data:
        reason = "in the time of --hours"
    rate_reason = f"a peak of {PEAK_LR:g}: base_lr * batch_size / 256"
    return [
        Choice(f"{stage}.steps", steps, reason),
        Choice(f"{stage}.warmup_steps", steps // 10, "a tenth"),
        Choice(f"{stage}.batch_size", batch, batch_reason),
        Choice(f"{stage}.base_lr", round(PEAK_LR * 256 / batch, 6), rate_reason),
    ]


def _choose_pretraining(stats: DataStats, device: DeviceValues, max_steps: int | None) -> list[Choice]:
    """The values of pre-training, which compares clips."""
    size = stats.pretrain or stats.train
    batch = VIEWS_BATCH_FACTOR * device.batch
    schedule = _schedule("pretrain", size, max_steps, batch, "clips are compared with all others of a step")
    objective_reason = "clips of the videos are compared; predicting pixels helped less on real clips"
    camera_reason = "the model also predicts a simulated camera motion over still frames"
    selection = {"strategy": "sampled", "keep_ratio": 0.25, "visible_ratio": None, "uniform": 1.0}
    selection_reason = (
        "a quarter of the tokens, sampled uniformly: sampling by change was no better on most real clips"
    )
    return [
        *schedule,
        Choice("pretrain.objective", "views", objective_reason),
        Choice("pretrain.camera_motion", 1.0, camera_reason),
        Choice("pretrain.selection", selection, selection_reason),
    ]


def _choose_finetuning(stats: DataStats, device: DeviceValues, purpose: RecipePurpose) -> list[Choice]:
    """The values of fine-tuning: tokens, augmentation against overfitting, and what the labels need."""
    from_scratch = purpose == "scratch"
    is_mild = stats.train.num_groups <= GROUPS_FOR_MILD_CROPS
    is_regression = stats.task == "regression"
    keep, tokens_reason = device.keep, "the tokens that change most"
    if not from_scratch and keep < KEPT_AFTER_VIEWS:
        keep, tokens_reason = KEPT_AFTER_VIEWS, "half of the tokens, after pre-training between views"
    crop_reason = f"{'mild' if is_mild else 'stronger'} crops for {stats.train}"
    mixup, mixup_reason = (0.0, "as mild as the crops") if is_mild else (0.8, "as strong as the crops")
    if is_regression:
        mixup, mixup_reason = 0.0, "half of two videos has no number of its own"
    sampler_reason = (
        f"the most frequent class has {stats.imbalance:.3g} times the {stats.train.noun}s of the rarest; "
        "class_weights: balanced is the alternative"
    )
    return [
        Choice("finetune.layer_decay", 1.0, "all layers start from new weights", applies=from_scratch),
        Choice("finetune.selection", {"strategy": "redundancy-robust", "keep_ratio": keep}, tokens_reason),
        Choice("finetune.crop_area", [0.5 if is_mild else 0.3, 1.0], crop_reason),
        Choice("finetune.mixup", mixup, mixup_reason),
        Choice("finetune.rand_augment", None, "as mild as the crops", applies=from_scratch and is_mild),
        Choice("finetune.erasing", 0.0, "as mild as the crops", applies=from_scratch and is_mild),
        Choice("finetune.cutmix", 0.0, "as mixup", applies=is_regression),
        Choice("finetune.label_smoothing", 0.0, "of classes only", applies=is_regression),
        Choice("finetune.sampler", "sqrt", sampler_reason, applies=stats.imbalance > SAMPLER_IMBALANCE),
    ]
