"""The settings of a recipe: frozen dataclasses whose attributes are the keys of the YAML.

pydantic validates into these classes (everest.config.recipe), so types, ranges and defaults are stated here
and nowhere else. A default that names a table of the EVEREST paper is the value for UCF101, the data set of
most of its ablations.
"""

from __future__ import annotations

import math
from dataclasses import field, replace
from typing import Annotated, Any, Literal, cast

from pydantic import Field

from everest.config import values as v
from everest.config.heads import HeadSettings, Task
from everest.config.model_settings import ModelSettings
from everest.config.stage_settings import (
    AutoencoderSettings,
    EvalSettings,
    FinetuneSettings,
    PretrainSection,
    PretrainSettings,
)
from everest.config.tokenizer_settings import TokenizerSettings
from everest.config.values import settings
from everest.video.pixels import MAX_STD, MIN_STD, STATISTICS_OF_CHANNELS, PixelStatistics

TrainedSection = PretrainSettings | FinetuneSettings | TokenizerSettings


@settings
class DataSettings:
    """The videos, and the size of a clip. Lists, shards and folders are relative to `root`, or URLs."""

    root: str = "."
    train: str | None = "train.csv"
    val: str | None = None
    test: str | None = "test.csv"
    pretrain: str | None = None  # None: `train`; labels are not read
    classes: str | None = None  # file with one class name per line; None: names of folders or labels
    num_classes: v.NumClasses | None = None  # None: counted from `classes`, class folders or labels
    task: Task = "single-label"  # what a label is: one class, any number of classes, a number
    # Several label columns, instead of `num_classes` and `task`: each has a number of classes,
    # {multi-label: N} or regression.
    heads: HeadSettings | None = None
    frames: v.SmallCount = 16  # EVEREST §5
    size: v.Size = 224  # EVEREST §5
    # Frames per second that strides count; None: each frame of a file, as in all official code.
    fps: v.Fps | None = None
    channels: Literal[1, 3] = 3  # 1: luma; all official code uses 3
    # Mean and std of each channel, of values in [0, 1]. None: ImageNet's, as in all official code;
    # of luma the equivalents in everest.video.pixels.
    mean: v.Channels[v.Ratio] | None = None
    std: v.Channels[Annotated[float, Field(ge=MIN_STD, le=MAX_STD)]] | None = None
    flip: bool = True  # EVEREST Tables 7, 8; both stages
    decoder: Literal["auto", "decord"] = "auto"
    # Where the crops of training are resized; auto: on the device if it is a GPU. Bytes differ by a rounding.
    resize: Literal["auto", "cpu", "device"] = "auto"
    # Clips of a video, or segment, in an epoch of training, each at a random place. auto: one for every ten
    # seconds, the length of Kinetics' videos; at least one.
    clips_per_video: v.CountOrAuto = 1
    max_bad: v.Ratio = 0.01  # our choice: the fraction of unreadable videos that ends a run

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) of a clip in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def pixels(self) -> PixelStatistics:
        """`mean` and `std`, by default those of `STATISTICS_OF_CHANNELS`."""
        usual = STATISTICS_OF_CHANNELS[self.channels]
        return PixelStatistics(mean=self.mean or usual.mean, std=self.std or usual.std)

    def with_pixels(self, pixels: PixelStatistics) -> DataSettings:
        """These settings for clips with other channels, mean and std."""
        is_usual = pixels == STATISTICS_OF_CHANNELS[pixels.channels]
        statistics = {"mean": None, "std": None} if is_usual else {"mean": pixels.mean, "std": pixels.std}
        return replace(self, channels=cast("Any", pixels.channels), **cast("Any", statistics))


@settings
class TrainSettings:
    """The training loop, the same in every stage. All defaults are our choice."""

    seed: v.Seed = 0  # seed of all random numbers of a run
    workers: v.NumWorkers = "auto"  # processes that read videos for each process that trains; auto: as cores
    precision: v.PrecisionSetting = "auto"
    save_every: v.SaveEvery = "10min"
    micro_batch: v.CountOrAuto = "auto"
    data_timeout: v.Count = 300  # seconds to wait for a process that reads videos
    checkpointing: bool = False
    compile: v.Compile = "auto"  # auto: each block on a GPU; true: the whole model
    clip_grad: v.Positive | None = None  # largest gradient norm; released scripts: none
    ema: v.Decay | None = None  # decay; released scripts: none

    @property
    def save_seconds(self) -> float:
        """The time between two saves; infinite if `save_every` counts steps."""
        if isinstance(self.save_every, int):
            return math.inf
        unit = self.save_every.lstrip("0123456789")
        return int(self.save_every.removesuffix(unit)) * {"s": 1, "min": 60, "h": 3600}[unit]


@settings
class Recipe:
    """All settings of one data set and method; `pretrain`, `finetune` and `eval` read the same recipe."""

    name: v.RunName  # by default that of the file; a part of the run folder's name
    summary: str = ""  # a line about the recipe, for `everest recipes list`
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    tokenizer: TokenizerSettings | None = None  # None: the method has no tokenizer
    pretrain: PretrainSection = field(default_factory=AutoencoderSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)

    @property
    def stages(self) -> tuple[tuple[str, PretrainSettings], tuple[str, FinetuneSettings]]:
        """The names and sections of the stages that train a transformer."""
        return ("pretrain", self.pretrain), ("finetune", self.finetune)
